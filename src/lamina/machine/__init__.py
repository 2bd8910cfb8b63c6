"""What lamina runs on: the processor, its memory and pages, and the libraries below it."""
