"""In Python: what `lamina.train` takes beside a configuration (rows, models, functions), and what it shows."""
