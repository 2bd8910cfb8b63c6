"""What tests share: models, tokenizers, files and settings, made in memory."""
