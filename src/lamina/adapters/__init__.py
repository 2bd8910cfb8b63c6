"""The adapter on disk: its format, its lock on a base, its certificate, and loading it."""
