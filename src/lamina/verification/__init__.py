"""`lamina verify`: compares every optimization of training with the plain computation, on the user's model and data."""
