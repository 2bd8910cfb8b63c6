"""Ways out of a run: a merged model."""
