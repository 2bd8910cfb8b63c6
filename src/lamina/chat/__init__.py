"""Chat templates: from a conversation to text and token ids, and from a model's text back to its answer."""
