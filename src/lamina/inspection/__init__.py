"""Looking at data before training on it: `check` reports what is wrong with it, `show` prints it as a model sees it."""
