"""`KERNELS`, the parameters of every C++ kernel: dtype, shape and layout of each tensor; numbers; sizes.

Shapes are written in letters. A letter means the same size in all tensors of a kernel: T tokens or rows, D width or
head size, H query heads, J key heads, R rotated elements or rank, V vocabulary, N documents, M rows to multiply, O and
I the out_features and in_features of a weight. Every size is at least 1. Tensors are on the CPU and aligned to the size
of their elements; no kernel needs more alignment than that.

`contract.py` checks every call against this table, and a test checks the table against the declarations in C++.
"""

from __future__ import annotations

import torch

from lamina.compute.kernels.contract import Kernel, Layout, Real, Rule, Size, Tensor, Whole


def _rows(name: str, shape: str, written: bool = False, optional: bool = False) -> Tensor:
    return Tensor(name, shape, None, Layout.ROWS, written, optional)


def _floats(name: str, shape: str, written: bool = False, optional: bool = False) -> Tensor:
    return Tensor(name, shape, torch.float32, Layout.DENSE, written, optional)


def _bytes(name: str, shape: str, written: bool = False, optional: bool = False) -> Tensor:
    return Tensor(name, shape, torch.uint8, Layout.DENSE, written, optional)


def _quotient(a: int, b: int) -> int:
    """Divides a by b, rounding up."""
    return -(-a // b)


_ROWS = (Size("rows", "T"), Size("width", "D"))
_DROPOUT = (*_ROWS, Whole("key", -(2**63), 2**64 - 1), Whole("threshold", -(2**15), 2**15), Real("factor"))
_ACTIVATION = Whole("kind", 0, 1)

# Shared by both attention kernels: queries, keys and values; the last parameters; the rules for heads.
_HEADS = (_rows("q", "THD"), _rows("k", "TJD"), _rows("v", "TJD"))
_DOCUMENTS = (
    Tensor("lengths", "N", torch.int64),
    Size("documents", "N"),
    Size("tokens", "T"),
    Size("heads", "H"),
    Size("key_heads", "J"),
    Size("size", "D"),
    Whole("window", 0, 2**31 - 1),
    Real("scale"),
    Real("softcap"),
)
HEAD_STEP, MOST_HEAD_SIZE = 32, 256
_ATTENTION_RULES = (
    Rule(
        f"the head size D is a multiple of {HEAD_STEP}, at most {MOST_HEAD_SIZE}",
        lambda sizes: sizes["D"] % HEAD_STEP == 0 and sizes["D"] <= MOST_HEAD_SIZE,
    ),
    Rule("the query heads H are a multiple of the key heads J", lambda sizes: sizes["H"] % sizes["J"] == 0),
)

# A weight (O, I) in 4 bits: P bytes of two weights each; a table of C values; and B scales. With double quantization,
# instead of B scales, Q bytes that index the K values of `nested_code`, times G scales in `nested_absmax`, one per 256.
WEIGHT_STEP, NESTED_BLOCK, MOST_ROWS = 32, 256, 8
_BLOCKSIZE = Whole("blocksize", WEIGHT_STEP, 2**31 - 1)
_FOUR_BITS = (
    _bytes("packed", "P"),
    _floats("table", "C"),
    _BLOCKSIZE,
    _floats("absmax", "B", optional=True),
    _bytes("nested", "Q", optional=True),
    _floats("nested_code", "K", optional=True),
    _floats("nested_absmax", "G", optional=True),
    Real("nested_offset"),
)
_WHOLE_VECTORS = Rule(f"in_features I are a multiple of {WEIGHT_STEP}", lambda sizes: sizes["I"] % WEIGHT_STEP == 0)
_SIXTEEN = Rule("there are C = 16 values", lambda sizes: sizes["C"] == 16)
_WHOLE_BLOCKS = Rule(
    f"the blocksize is a multiple of {WEIGHT_STEP}", lambda sizes: sizes["blocksize"] % WEIGHT_STEP == 0
)
_FOUR_BIT_RULES = (
    _WHOLE_VECTORS,
    _SIXTEEN,
    _WHOLE_BLOCKS,
    Rule("P bytes hold two of the O I weights each", lambda sizes: sizes["O"] * sizes["I"] == 2 * sizes["P"]),
    Rule(
        "each block of O I weights has a scale, in B or in Q",
        lambda sizes: (
            [sizes[letter] for letter in "BQ" if letter in sizes]
            == [_quotient(sizes["O"] * sizes["I"], sizes["blocksize"])]
        ),
    ),
    Rule(
        f"scales in Q come with K = 256 values, and with one of G scales per {NESTED_BLOCK}",
        lambda sizes: (
            "Q" not in sizes or (sizes.get("K"), sizes.get("G")) == (256, _quotient(sizes["Q"], NESTED_BLOCK))
        ),
    ),
)
_EIGHT_BITS = (Tensor("packed", "OI", torch.int8), _floats("scales", "O"), Real("step"))
_DEQUANTIZED = (_rows("out", "OI", written=True), Size("rows", "O"), Size("columns", "I"))
_MULTIPLIED = (
    _floats("x", "MI"),
    Size("count", "M"),
    _rows("y", "MO", written=True),
    Size("rows", "O"),
    Size("columns", "I"),
)
_FEW_ROWS = Rule(f"there are at most M = {MOST_ROWS} rows", lambda sizes: sizes["M"] <= MOST_ROWS)

_ALL = (
    Kernel(
        "rms_norm",
        (
            _rows("x", "TD"),
            _rows("y", "TD", written=True),
            Tensor("weight", "D"),
            _floats("scale", "T", written=True),
            *_ROWS,
            Real("eps"),
            Real("offset"),
        ),
    ),
    Kernel(
        "rms_norm_backward",
        (
            _rows("g", "TD"),
            _rows("x", "TD"),
            Tensor("weight", "D"),
            _floats("scale", "T"),
            _rows("residual", "TD", optional=True),
            _rows("dx", "TD", written=True),
            *_ROWS,
            Real("offset"),
        ),
    ),
    Kernel("gated", (_rows("gate", "TD"), _rows("up", "TD"), _rows("out", "TD", written=True), *_ROWS, _ACTIVATION)),
    Kernel("gated_backward", (*(_rows(name, "TD", written=True) for name in ("gate", "up", "d")), *_ROWS, _ACTIVATION)),
    Kernel(
        "rotary",
        (
            _rows("x", "THD", written=True),
            _rows("cosine", "TR"),
            _rows("sine", "TR"),
            Size("tokens", "T"),
            Size("heads", "H"),
            Size("head_size", "D"),
            Size("rotated", "R"),
            Real("direction"),
        ),
        (Rule("R is even, at most D", lambda sizes: sizes["R"] % 2 == 0 and sizes["R"] <= sizes["D"]),),
    ),
    Kernel("scale_columns", (_rows("y", "TD", written=True), _floats("scale", "D"), *_ROWS)),
    Kernel(
        "scale_columns_backward",
        (
            _rows("g", "TD"),
            _rows("y", "TD"),
            _floats("scale", "D"),
            _rows("out", "TD", written=True),
            _floats("sums", "D", written=True),
            *_ROWS,
        ),
    ),
    Kernel("dropped", (_rows("x", "TD"), _rows("out", "TD", written=True), *_DROPOUT)),
    Kernel("add_dropped", (_rows("x", "TD"), _rows("out", "TD", written=True), *_DROPOUT)),
    Kernel(
        "narrow_product",
        (
            _rows("narrow", "TR"),
            _rows("wide", "TD"),
            Tensor("out", "RD", torch.float32, Layout.GRID, written=True),
            Size("tokens", "T"),
            Size("rank", "R"),
            Size("width", "D"),
            Real("factor"),
        ),
        dtypes=(torch.bfloat16,),
        everywhere=False,
    ),
    Kernel(
        "cross_entropy",
        (
            _rows("logits", "TV", written=True),
            Tensor("target", "T", torch.int64),
            _floats("loss", "T", written=True),
            Size("rows", "T"),
            Size("width", "V"),
            Real("multiplier"),
            Real("softcap"),
            Whole("wants_gradient", 0, 1),
        ),
    ),
    Kernel(
        "attention",
        (*_HEADS, _rows("out", "THD", written=True), _floats("lse", "HT", written=True), *_DOCUMENTS),
        _ATTENTION_RULES,
    ),
    Kernel(
        "choose",
        (
            _rows("logits", "TV"),
            _floats("temperatures", "T"),
            Tensor("top_ks", "T", torch.int64),
            _floats("top_ps", "T"),
            _floats("min_ps", "T"),
            Tensor("uniforms", "T", torch.int64),
            Tensor("mask", "TU", torch.int32, Layout.ROWS, optional=True),
            Tensor("tokens", "T", torch.int64, written=True),
            Size("rows", "T"),
            Size("width", "V"),
        ),
        (
            Rule(
                "a mask has U words, of 32 tokens each",
                lambda sizes: "U" not in sizes or sizes["U"] == _quotient(sizes["V"], 32),
            ),
        ),
        dtypes=(torch.float32,),
    ),
    Kernel(
        "log_normalizer",
        (_rows("logits", "TV"), _floats("out", "T", written=True), Size("rows", "T"), Size("width", "V")),
        dtypes=(torch.float32,),
    ),
    Kernel(
        "attention_backward",
        (
            *_HEADS,
            _rows("out", "THD"),
            _rows("grad", "THD"),
            _floats("lse", "HT"),
            _rows("dq", "THD", written=True),
            _rows("dk", "TJD", written=True),
            _rows("dv", "TJD", written=True),
            _floats("shares", "S", written=True, optional=True),
            *_DOCUMENTS,
        ),
        (
            *_ATTENTION_RULES,
            Rule(
                "S holds dk and dv of all query heads",
                lambda sizes: "S" not in sizes or sizes["S"] == 2 * sizes["H"] * sizes["T"] * sizes["D"],
            ),
        ),
    ),
    Kernel(
        "pack_4bit",
        (
            Tensor("weights", "W"),
            _BLOCKSIZE,
            _floats("bounds", "L"),
            _bytes("order", "C"),
            _bytes("packed", "P", written=True),
            _floats("absmax", "B", written=True),
            Size("blocks", "B"),
        ),
        (
            _WHOLE_BLOCKS,
            _SIXTEEN,
            Rule("there are L = 15 bounds between them", lambda sizes: sizes["L"] == 15),
            Rule("W weights are B blocks", lambda sizes: sizes["W"] == sizes["B"] * sizes["blocksize"]),
            Rule("P bytes hold two weights each", lambda sizes: sizes["W"] == 2 * sizes["P"]),
        ),
    ),
    Kernel("dequantize_4bit", (*_FOUR_BITS, *_DEQUANTIZED), _FOUR_BIT_RULES),
    Kernel("multiply_4bit", (*_FOUR_BITS, *_MULTIPLIED), (*_FOUR_BIT_RULES, _FEW_ROWS)),
    Kernel("dequantize_8bit", (*_EIGHT_BITS, *_DEQUANTIZED), (_WHOLE_VECTORS,)),
    Kernel("multiply_8bit", (*_EIGHT_BITS, *_MULTIPLIED), (_WHOLE_VECTORS, _FEW_ROWS)),
)
KERNELS = {kernel.name: kernel for kernel in _ALL}
