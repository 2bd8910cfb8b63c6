"""Base models: finds, loads, fingerprints and writes them."""
