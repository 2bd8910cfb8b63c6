"""The user's own proof of exactness: `verify` compares every shortcut of training with the plain way, on their data."""
