"""The user's cache folder: what is kept there, and how to clear it."""
