"""The bundled main job: from generated data to a merged model with a certificate, on the embedded base."""
