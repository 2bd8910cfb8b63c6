"""The gate: what a candidate must show, row by row, before it may take a champion's place."""
