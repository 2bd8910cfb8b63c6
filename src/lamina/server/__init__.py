"""The HTTP server: OpenAI's API before an engine that answers for one base and many adapters."""
