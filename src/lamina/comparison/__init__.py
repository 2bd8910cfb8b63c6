"""`lamina compare`: trains several candidates with the same budget and compares them."""
