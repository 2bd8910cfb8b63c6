"""The registry: immutable versions of adapters, aliases that move by evidence alone, and the history of both."""
