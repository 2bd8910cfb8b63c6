"""The user's cache folder: what is kept there, and taking out of it what nobody uses."""
