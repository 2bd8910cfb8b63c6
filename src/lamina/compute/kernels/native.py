"""Python functions for the C++ kernels on the CPU: the functions of `plain.py`, and attention.

`build.py` compiles and loads the kernels; `table.py` declares their parameters, and every call is checked against it.
"""

from __future__ import annotations

import torch

from lamina.compute.kernels import plain
from lamina.compute.kernels.build import load_kernels
from lamina.compute.kernels.contract import SUFFIX, Argument
from lamina.compute.kernels.table import HEAD_STEP, KERNELS, MOST_HEAD_SIZE
from lamina.errors import KernelError

# With fewer documents x key heads per thread than this, attention's backward distributes query heads one by one.
TASKS_A_THREAD = 4


def unavailable() -> str | None:
    """Returns why there are no kernels, or None if there are."""
    library = load_kernels()
    return library.reason if library.loaded is None else None


def supports(*tensors: torch.Tensor) -> bool:
    """Whether the kernels support these tensors: on the CPU, one supported dtype, contiguous rows, not empty."""
    dtype = tensors[0].dtype
    return dtype in SUFFIX and all(t.is_cpu and t.dtype == dtype and t.stride(-1) == 1 and t.numel() for t in tensors)


def call(name: str, dtype: torch.dtype, *given: Argument) -> None:
    """Calls a kernel for a dtype.

    Args:
        name: A key of `table.KERNELS`.
        dtype: One of the kernel's dtypes.
        given: Tensors and numbers in the order of the table, without the sizes.

    Raises:
        KernelError: The kernel does not support them.
    """
    arguments = KERNELS[name].bind(dtype, given)
    load_kernels().function(name, dtype)(*arguments)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float, out: torch.Tensor) -> torch.Tensor:
    scale = torch.empty(x.shape[0], dtype=torch.float32)
    call("rms_norm", x.dtype, x, out, weight, scale, eps, offset)
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
    call("rms_norm_backward", x.dtype, grad, x, weight, scale, residual, out, offset)


def gated(gate: torch.Tensor, up: torch.Tensor, activation: int, out: torch.Tensor) -> None:
    call("gated", out.dtype, gate, up, out, activation)


def gated_backward_(gate: torch.Tensor, up: torch.Tensor, activation: int, grad: torch.Tensor) -> None:
    call("gated_backward", grad.dtype, gate, up, grad, activation)


def rotary_(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, inverse: bool) -> None:
    call("rotary", x.dtype, x, cosine, sine, -1.0 if inverse else 1.0)


def scale_columns_(y: torch.Tensor, scale: torch.Tensor) -> None:
    call("scale_columns", y.dtype, y, scale)


def scale_columns_backward(grad: torch.Tensor, y: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    sums = torch.empty(grad.shape[1], dtype=torch.float32)
    call("scale_columns_backward", grad.dtype, grad, y, scale, out, sums)
    return sums


def dropped(x: torch.Tensor, key: int, threshold: int, factor: float, out: torch.Tensor) -> None:
    call("dropped", x.dtype, x, out, key, threshold, factor)


def add_dropped_(total: torch.Tensor, x: torch.Tensor, key: int, threshold: int, factor: float) -> None:
    call("add_dropped", x.dtype, x, total, key, threshold, factor)


def narrow_product(narrow: torch.Tensor, wide: torch.Tensor, out: torch.Tensor, factor: float) -> None:
    takes = wide.dtype == torch.bfloat16 and out.dtype == torch.float32 and supports(narrow, wide)
    if takes and load_kernels().has_pairs:
        call("narrow_product", wide.dtype, narrow, wide, out, factor)
    else:
        plain.narrow_product(narrow, wide, out, factor)


def cross_entropy_(
    logits: torch.Tensor, targets: torch.Tensor, multiplier: float, softcap: float | None, wants_grad: bool
) -> torch.Tensor:
    lowest, highest = (int(target) for target in targets.aminmax())
    if lowest < 0 or highest >= logits.shape[1]:
        raise KernelError(f"targets from {lowest} to {highest} are not among {logits.shape[1]} logits")
    loss = torch.empty(logits.shape[0], dtype=torch.float32)
    call("cross_entropy", logits.dtype, logits, targets, loss, multiplier, softcap or 0.0, int(wants_grad))
    return loss


def can_attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    """Whether `attention` supports these queries, keys and values, (T, heads, head size) each."""
    size = q.shape[-1]
    return (
        supports(q, k, v)
        and v.shape[-1] == size
        and size % HEAD_STEP == 0
        and size <= MOST_HEAD_SIZE
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
    """Computes causal attention within documents.

    Args:
        q: (T, H, D).
        k: (T, J, D); H is a multiple of J.
        v: Like k.
        lengths: Tokens of each document; they sum to T.
        scale: Factor of the scores.
        window: How many tokens a token sees, itself included; None for all.
        softcap: Scores become softcap tanh(score / softcap); None for none.
        out: Output, (T, H, D).

    Returns:
        The logsumexp of the scores, (H, T) float32, for the backward.
    """
    lse = torch.empty(q.shape[1], q.shape[0], dtype=torch.float32)
    documents = _documents(q, lengths, scale, window, softcap)
    call("attention", q.dtype, q, k, v, out, lse, *documents)
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
    """Writes the gradients of q, k and v into `results`; other arguments as in `attention`."""
    shares = None
    if len(lengths) * k.shape[1] < TASKS_A_THREAD * torch.get_num_threads():
        shares = torch.empty(2 * q.numel(), dtype=torch.float32)  # of dk and dv, by query head
    documents = _documents(q, lengths, scale, window, softcap)
    call("attention_backward", q.dtype, q, k, v, out, grad, lse, *results, shares, *documents)


def _documents(
    q: torch.Tensor, lengths: list[int], scale: float, window: int | None, softcap: float | None
) -> tuple[torch.Tensor, int, float, float]:
    """Builds the last arguments of both attention kernels."""
    if sum(lengths) != q.shape[0] or min(lengths) < 0:
        raise KernelError(f"documents of {lengths} tokens do not make up a sequence of {q.shape[0]}")
    # A window as long as the sequence masks nothing.
    seen = 0 if window is None or window >= q.shape[0] else window
    if seen < 0 or window == 0:
        raise KernelError(f"a window of {window} tokens sees nothing")
    return torch.tensor(lengths, dtype=torch.int64), seen, scale, softcap or 0.0
