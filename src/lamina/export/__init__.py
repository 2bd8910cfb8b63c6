"""Ways out of a run: a merged model, a quantized base model."""
