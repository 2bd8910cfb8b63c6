"""From a conversation to text and tokens, and back: chat templates, whatever they are."""
