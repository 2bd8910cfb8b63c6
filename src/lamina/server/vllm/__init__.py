"""The front of vLLM's servers, which serve adapters that were certified through their own log-probabilities."""
