"""The hot path: fused adapter linears, packed attention, and cross entropy over supervised tokens."""
