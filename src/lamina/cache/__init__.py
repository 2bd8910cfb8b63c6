"""The user's cache folder: what is in it, and how to clear it."""
