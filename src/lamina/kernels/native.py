"""The kernels in C++: compiled on first use for this very machine, kept in lamina's cache, called without overhead.

The sources include nothing but the C library, so compiling takes seconds and needs neither torch's headers nor
Python's. They use torch's own OpenMP threads. The functions are those of `plain.py`.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from lamina.cache import cache_folder
from lamina.kernels import plain

SOURCES = ("pointwise.cpp", "dropout.cpp", "attention.cpp", "narrow.cpp", "packed.cpp")
HEADERS = ("numbers.h", "memory.h", "blocks.h")
FLAGS = (
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-std=gnu++17",
    "-shared",
    "-fPIC",
)
# What g++ links by itself; gcc, which $CXX may name, does not.
LIBRARIES = ("-lstdc++", "-lm") if sys.platform == "linux" else ()
COMPILE_SECONDS = 300

# With fewer documents x key heads than so many for each thread, attention's backward gives out query heads one by one.
TASKS_A_THREAD = 4

_SUFFIX = {torch.bfloat16: "_bfloat16", torch.float32: "_float32"}


class Unavailable(Exception):
    """Why there are no compiled kernels here."""


@functools.cache
def load() -> ctypes.CDLL:
    """Loads the kernels, compiling them if this machine has not done so yet.

    Raises:
        Unavailable: There is no compiler, or it failed.
    """
    if os.environ.get("LAMINA_KERNELS") == "plain":
        raise Unavailable("LAMINA_KERNELS=plain asks for plain torch")
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    compiler = shlex.split(found or "")  # $CXX may carry options
    if not compiler:
        raise Unavailable("no C++ compiler was found (g++ or clang++, or $CXX)")
    sources = [Path(__file__).with_name(name) for name in SOURCES]
    library = cache_folder() / "kernels" / f"{_key(compiler, sources)}.so"
    try:
        if not library.exists():
            _compile(compiler, sources, library)
        loaded = ctypes.CDLL(str(library))
    except OSError as error:
        raise Unavailable(str(error)) from error
    return loaded


def unavailable() -> str | None:
    """None if the kernels are there, else the reason."""
    try:
        load()
    except Unavailable as reason:
        return str(reason)
    return None


def _key(compiler: list[str], sources: list[Path]) -> str:
    """Changes with the sources, the compiler, and the machine that the code is for."""
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{compiler[0]} --version failed: {error}") from error
    headers = [Path(__file__).with_name(name) for name in HEADERS]
    parts = [
        version,
        repr(sorted(torch.cpu.get_capabilities().items())).encode(),
        " ".join([*compiler, *_flags(), *LIBRARIES]).encode(),
    ]
    return hashlib.sha256(b"\0".join(parts + [source.read_bytes() for source in sources + headers])).hexdigest()[:32]


def _flags() -> list[str]:
    # Compilers shy away from 512-bit vectors for the sake of older CPUs' clock.
    wide = ["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else []
    return [*FLAGS, *wide]


def _compile(compiler: list[str], sources: list[Path], library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and renamed: two processes that compile at once do no harm, and half a library is never loaded.
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        aside = Path(folder) / library.name
        command = [*compiler, *_flags(), *map(str, sources), *LIBRARIES, "-o", str(aside)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMPILE_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"{compiler[0]} took longer than {COMPILE_SECONDS} s") from error
        if done.returncode:
            raise Unavailable(f"{compiler[0]} failed: {done.stderr.strip()[:500]}")
        aside.replace(library)


def supports(*tensors: torch.Tensor) -> bool:
    """Whether the kernels can take these: on the CPU, in one dtype that they know, rows without gaps."""
    dtype = tensors[0].dtype
    return dtype in _SUFFIX and all(t.device.type == "cpu" and t.dtype == dtype and t.stride(-1) == 1 for t in tensors)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float, out: torch.Tensor) -> torch.Tensor:
    scale = torch.empty(x.shape[0], dtype=torch.float32)
    call("rms_norm", x.dtype, *rows(x), *rows(out), pointer(weight), pointer(scale), *x.shape, real(eps), real(offset))
    return scale


def rms_norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    offset: float,
    residual: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    added = (None, 0) if residual is None else rows(residual)
    call(
        "rms_norm_backward",
        x.dtype,
        *rows(grad),
        *rows(x),
        pointer(weight),
        pointer(scale),
        *added,
        *rows(out),
        *x.shape,
        real(offset),
    )


def gated(gate: torch.Tensor, up: torch.Tensor, activation: int, out: torch.Tensor) -> None:
    assert gate.stride() == up.stride()
    call("gated", out.dtype, pointer(gate), *rows(up), *rows(out), *out.shape, activation)


def gated_backward_(gate: torch.Tensor, up: torch.Tensor, activation: int, grad: torch.Tensor) -> None:
    assert gate.stride() == up.stride()
    call("gated_backward", grad.dtype, pointer(gate), *rows(up), *rows(grad), *grad.shape, activation)


def rotary_(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, inverse: bool) -> None:
    assert x.stride(1) == x.shape[2] and cosine.stride() == sine.stride()
    direction = real(-1.0 if inverse else 1.0)
    call("rotary", x.dtype, *rows(x), pointer(cosine), *rows(sine), *x.shape, cosine.shape[-1], direction)


def scale_columns_(y: torch.Tensor, scale: torch.Tensor) -> None:
    call("scale_columns", y.dtype, *rows(y), pointer(scale), *y.shape)


def scale_columns_backward(grad: torch.Tensor, y: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    sums = torch.empty(grad.shape[1], dtype=torch.float32)
    results = (*rows(out), pointer(sums))
    call("scale_columns_backward", grad.dtype, *rows(grad), *rows(y), pointer(scale), *results, *grad.shape)
    return sums


def dropped(x: torch.Tensor, key: int, threshold: int, factor: float, out: torch.Tensor) -> None:
    call("dropped", x.dtype, *rows(x), *rows(out), *x.shape, key, threshold, real(factor))


def add_dropped_(total: torch.Tensor, x: torch.Tensor, key: int, threshold: int, factor: float) -> None:
    call("add_dropped", x.dtype, *rows(x), *rows(total), *x.shape, key, threshold, real(factor))


def narrow_product(narrow: torch.Tensor, wide: torch.Tensor, out: torch.Tensor, factor: float) -> None:
    takes = wide.dtype == torch.bfloat16 and out.dtype == torch.float32 and supports(narrow, wide)
    if not takes or not _has_pairs():
        plain.narrow_product(narrow, wide, out, factor)
        return
    sizes = (out.stride(0), out.stride(1), *narrow.shape, wide.shape[1])
    call("narrow_product", wide.dtype, *rows(narrow), *rows(wide), pointer(out), *sizes, real(factor))


def _has_pairs() -> bool:
    """Whether the CPU multiplies bfloat16 as it is: AMX or AVX512-BF16."""
    return bool(load().lamina_has_pairs())


def cross_entropy_(
    logits: torch.Tensor, targets: torch.Tensor, multiplier: float, softcap: float | None, wants_grad: bool
) -> torch.Tensor:
    assert logits.is_contiguous() and targets.is_contiguous()
    loss = torch.empty(logits.shape[0], dtype=torch.float32)
    settings = (real(multiplier), real(softcap or 0.0), int(wants_grad))
    call("cross_entropy", logits.dtype, pointer(logits), pointer(targets), pointer(loss), *logits.shape, *settings)
    return loss


def attends(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    """Whether `attention` can take these heads, (T, heads, head size) each."""
    size = q.shape[-1]
    return (
        supports(q, k, v)
        and v.shape[-1] == size
        and size % 32 == 0
        and size <= 256
        and all(tensor.stride(1) == size for tensor in (q, k, v))
        and unavailable() is None
    )


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: list[int],
    scale: float,
    window: int | None,
    softcap: float | None,
    out: torch.Tensor,
) -> torch.Tensor:
    """Causal attention within documents.

    Args:
        q: (T, H, D).
        k: (T, J, D); H is a multiple of J.
        v: Like k.
        lengths: Tokens of each document; they sum to T.
        scale: Factor of the scores.
        window: Tokens seen, one's own included; None for all.
        softcap: Scores become softcap tanh(score / softcap); None for none.
        out: (T, H, D), written.

    Returns:
        (H, T) float32: log of the sum of the exponentiated scores, for the backward.
    """
    lse = torch.empty(q.shape[1], q.shape[0], dtype=torch.float32)
    documents, sizes = _documents(q, k, lengths, scale, window, softcap)
    call("attention", q.dtype, *rows(q), *rows(k), *rows(v), *rows(out), pointer(lse), pointer(documents), *sizes)
    return lse


def attention_backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: list[int],
    scale: float,
    window: int | None,
    softcap: float | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    grad: torch.Tensor,
    results: tuple[torch.Tensor, ...],
) -> None:
    """Writes the gradients of q, k and v into `results`; the rest as in `attention`."""
    documents, sizes = _documents(q, k, lengths, scale, window, softcap)
    shares = None
    if len(lengths) * k.shape[1] < TASKS_A_THREAD * torch.get_num_threads():
        shares = torch.empty(2 * q.numel(), dtype=torch.float32)  # of dk and dv, by query head
    given = (*rows(q), *rows(k), *rows(v), *rows(out), *rows(grad), pointer(lse))
    written = (*itertools.chain.from_iterable(map(rows, results)), None if shares is None else pointer(shares))
    call("attention_backward", q.dtype, *given, *written, pointer(documents), *sizes)


def _documents(
    q: torch.Tensor, k: torch.Tensor, lengths: list[int], scale: float, window: int | None, softcap: float | None
) -> tuple[torch.Tensor, tuple[object, ...]]:
    """The documents' lengths as a tensor, which must outlive the call, and the last arguments of both kernels."""
    assert sum(lengths) == q.shape[0], "documents make up the whole sequence"
    heads = (q.shape[1], k.shape[1], q.shape[2])
    sizes = (len(lengths), q.shape[0], *heads, window or 0, real(scale), real(softcap or 0.0))
    return torch.tensor(lengths, dtype=torch.int64), sizes


def call(name: str, dtype: torch.dtype, *arguments: object) -> None:
    """Calls a kernel's form for a dtype; whole numbers go as 64 bits, None as a null pointer."""
    function = getattr(load(), f"lamina_{name}{_SUFFIX[dtype]}")
    function(*(ctypes.c_int64(a) if type(a) is int else ctypes.c_void_p() if a is None else a for a in arguments))


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    """Where a tensor begins."""
    return ctypes.c_void_p(tensor.data_ptr())


def rows(tensor: torch.Tensor) -> tuple[ctypes.c_void_p, int]:
    """Where a tensor begins, and how many elements lie between its rows."""
    return ctypes.c_void_p(tensor.data_ptr()), tensor.stride(0)


def real(value: float) -> ctypes.c_float:
    """A float32 argument."""
    return ctypes.c_float(value)
