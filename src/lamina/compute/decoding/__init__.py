"""Decoding: one step of generation for many sequences, with their own adapters, in one call of the C++ kernels."""

from lamina.compute.decoding.decoder import Decoder, build_decoder
from lamina.compute.decoding.forms import AdapterForms, NotMixed

__all__ = ["AdapterForms", "Decoder", "NotMixed", "build_decoder"]
