"""Adapters on disk: their format, the lock to a base model, the certificate, and loading."""
