"""Chat templates: from a conversation to text and token ids, and from a model's output back to its answer."""
