"""Decoding: one step of generation for many sequences, with their own adapters, in one call of the C++ kernels."""

from lamina.compute.decoding.build import build_decoder
from lamina.compute.decoding.decoder import Decoder
from lamina.compute.decoding.forms import AdapterForms, NotMixed

__all__ = ["AdapterForms", "Decoder", "NotMixed", "build_decoder"]
