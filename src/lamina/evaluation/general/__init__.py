"""General text and unrelated prompts, written for lamina, on which forgetting is measured."""
