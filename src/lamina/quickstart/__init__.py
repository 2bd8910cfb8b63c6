"""The bundled example: from generated data to a merged model with a certificate."""
