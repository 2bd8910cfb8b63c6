"""From data files to batches: reads rows, makes examples, tokenizes, splits, mixes and packs them."""
