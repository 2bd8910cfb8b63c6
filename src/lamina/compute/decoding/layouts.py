"""The structures of `kernels/step.h`, member by member.

Every member has 8 bytes, so there is no padding to get wrong.
Tensors are passed as addresses: whoever fills a structure keeps them alive, and has checked dtype, shape and strides.
"""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int64, c_void_p
from typing import Any

import torch

from lamina.compute.kernels.build import load_kernels
from lamina.compute.kernels.contract import SUFFIX
from lamina.errors import KernelError

DENSE, FOUR_BITS, EIGHT_BITS = 0, 1, 2

Q, K, V, O, GATE, UP, DOWN = range(7)  # noqa: E741
PLACES = 7
INPUT, ATTENTION, MLP, OUTPUT, QUERY, KEY = range(6)
NORMS = 6

# Tokens in a block of the cache; outputs in a panel; ranks are filled up to a multiple of OUTPUTS.
BLOCK_TOKENS, PANEL, OUTPUTS = 16, 16, 4


class Weight(ctypes.Structure):
    """A frozen linear layer: see `products.h`."""

    _fields_ = [
        ("data", c_void_p),
        ("stride", c_int64),
        ("storage", c_int64),
        ("rows", c_int64),
        ("columns", c_int64),
        ("table", c_void_p),
        ("blocksize", c_int64),
        ("absmax", c_void_p),
        ("nested", c_void_p),
        ("nested_code", c_void_p),
        ("nested_absmax", c_void_p),
        ("nested_offset", c_double),
        ("scales", c_void_p),
        ("step", c_double),
        ("bias", c_void_p),
    ]


class Norm(ctypes.Structure):
    """An RMS norm; no weight for none."""

    _fields_ = [("weight", c_void_p), ("eps", c_double), ("offset", c_double)]


class Layer(ctypes.Structure):
    """A decoder layer and its cache."""

    _fields_ = [
        ("linears", Weight * PLACES),
        ("norms", Norm * NORMS),
        ("heads", c_int64),
        ("key_heads", c_int64),
        ("size", c_int64),
        ("scale", c_double),
        ("softcap", c_double),
        ("window", c_int64),
        ("activation", c_int64),
        ("angles", c_int64),
        ("keys", c_void_p),
        ("values", c_void_p),
    ]


class Form(ctypes.Structure):
    """How an adapter acts on a linear layer: see `adapted.h`."""

    _fields_ = [
        ("A", c_void_p),
        ("B", c_void_p),
        ("rank", c_int64),
        ("columns", c_void_p),
        ("inputs", c_void_p),
        ("outputs", c_void_p),
        ("delta", c_void_p),
        ("added", c_void_p),
        ("weight", c_void_p),
        ("bias", c_void_p),
    ]


class Bottleneck(ctypes.Structure):
    """A small network on a sublayer's output; width 0 for none."""

    _fields_ = [
        ("down", c_void_p),
        ("down_bias", c_void_p),
        ("up", c_void_p),
        ("up_bias", c_void_p),
        ("width", c_int64),
        ("scaling", c_double),
        ("activation", c_int64),
        ("parallel", c_int64),
    ]


class AdapterLayer(ctypes.Structure):
    """How an adapter acts on a decoder layer."""

    _fields_ = [("linears", Form * PLACES), ("norms", c_void_p * NORMS), ("networks", Bottleneck * 2)]


class Adapter(ctypes.Structure):
    """How an adapter acts on a model."""

    _fields_ = [("layers", ctypes.POINTER(AdapterLayer)), ("head", ctypes.POINTER(Form)), ("final_norm", c_void_p)]


class Segment(ctypes.Structure):
    """Neighboring rows with the same adapter, or none."""

    _fields_ = [("begin", c_int64), ("end", c_int64), ("adapter", ctypes.POINTER(Adapter))]


class Model(ctypes.Structure):
    """The decoder layers, the last norm and the head."""

    _fields_ = [
        ("layers", ctypes.POINTER(Layer)),
        ("layer_count", c_int64),
        ("width", c_int64),
        ("inner", c_int64),
        ("attended", c_int64),
        ("final_norm", Norm),
        ("head", Weight),
        ("multiplier", c_double),
        ("softcap", c_double),
        ("rotated", c_int64),
        ("cosine", c_void_p * 2),
        ("sine", c_void_p * 2),
    ]


class Step(ctypes.Structure):
    """The rows of one step."""

    _fields_ = [
        ("x", c_void_p),
        ("rows", c_int64),
        ("positions", c_void_p),
        ("tables", c_void_p),
        ("blocks", c_void_p),
        ("table_row", c_int64),
        ("segments", ctypes.POINTER(Segment)),
        ("segment_count", c_int64),
        ("largest_rank", c_int64),
        ("wanted", c_void_p),
        ("wanted_count", c_int64),
        ("wanted_segments", ctypes.POINTER(Segment)),
        ("logits", c_void_p),
    ]


_ALL = (Weight, Norm, Layer, Form, Bottleneck, AdapterLayer, Adapter, Segment, Model, Step)


def decode_function(dtype: torch.dtype) -> Any:
    """Returns the C function that runs a step: (Model*, Step*).

    Raises:
        KernelError: The structures differ from those that the library was compiled with.
    """
    library = load_kernels().loaded
    assert library is not None
    sizes = (c_int64 * len(_ALL))()
    library.lamina_decode_sizes(sizes)
    if list(sizes) != [ctypes.sizeof(structure) for structure in _ALL]:
        raise KernelError("the structures of decoding/layouts.py are not those of step.h. This is a fault in lamina.")
    function = getattr(library, f"lamina_decode_{SUFFIX[dtype]}")
    function.argtypes, function.restype = (ctypes.POINTER(Model), ctypes.POINTER(Step)), None
    return function


def address(tensor: torch.Tensor | None) -> int | None:
    """Returns where a tensor's elements are; None for none."""
    return None if tensor is None else tensor.data_ptr()
