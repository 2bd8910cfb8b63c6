"""From a data file to token ids with the supervised ones marked."""
