"""Proves exactness on the user's model and data: compares every shortcut of training with the plain way."""
