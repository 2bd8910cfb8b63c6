"""Proofs of single parts of the hot path: attention, kernels, cross entropy, dropout."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from tools.gpu.worker import Here
from torch import nn

from lamina.compute.kernels import kernels_for, use_backend
from lamina.compute.ops.attention import (
    AttentionSettings,
    attention_backward,
    attention_forward,
    packed_attention_forward,
)
from lamina.compute.ops.dropout import draw_dropout
from lamina.compute.ops.log_probs import chunked_log_probs
from lamina.structure.head import LogitTransform

# Relative distances (L2) that rounding to a dtype explains.
ROUNDING = {torch.bfloat16: 1.5e-2, torch.float16: 2e-3, torch.float32: 2e-5}
# Documents shorter and longer than any block of a kernel, one of them a single token.
LENGTHS, SMALL_LENGTHS = [5, 1, 64, 131, 700, 33], [5, 1, 40, 17]
# Query heads, key heads, head size. FlashAttention does not take the last one.
HEADS = ((4, 2, 64), (6, 1, 128), (4, 4, 256), (4, 2, 20))


def dtypes(here: Here) -> tuple[torch.dtype, ...]:
    """Those that are tried."""
    return (torch.float32,) if here.small else (torch.bfloat16, torch.float16, torch.float32)


def distance(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative, in L2."""
    return float((ours.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-30))


def name(dtype: torch.dtype) -> str:
    """`bfloat16`."""
    return str(dtype).removeprefix("torch.")


def attention(here: Here) -> None:
    """Values and gradients, of the fused layers' attention and of the one that transformers' code calls."""
    lengths = SMALL_LENGTHS if here.small else LENGTHS
    for dtype in dtypes(here):
        for heads, key_heads, size in HEADS[::3] if here.small else HEADS:
            for window, softcap in ((None, None), (33, None), (None, 20.0)):
                _attention(
                    here, dtype, (heads, key_heads, size), AttentionSettings(lengths, size**-0.5, window, softcap)
                )


def _attention(here: Here, dtype: torch.dtype, shape: tuple[int, int, int], settings: AttentionSettings) -> None:
    heads, key_heads, size = shape
    generator = torch.Generator().manual_seed(0)
    tokens, widths = sum(settings.lengths), [heads * size, key_heads * size, key_heads * size]
    # Views into one product's result, as a layer has them, and room that is wider than the output.
    qkv = torch.randn(tokens, sum(widths), generator=generator).to(here.device, dtype)
    room = torch.zeros(tokens, heads * size + 8, device=here.device, dtype=dtype)
    grad = torch.randn(tokens, heads, size, generator=generator).to(here.device, dtype)
    q, k, v = (part.unflatten(1, (-1, size)) for part in qkv.split(widths, 1))
    out = room[:, : heads * size].unflatten(1, (heads, size))
    exact = _by_document(q, k, v, grad, settings)

    def backward() -> tuple[torch.Tensor, ...]:
        results = torch.empty_like(qkv)
        parts = tuple(part.unflatten(1, (-1, size)) for part in results.split(widths, 1))
        attention_backward(q, k, v, out, grad, settings, state, parts)
        return parts

    with use_backend("plain"):  # on a CPU: document by document, as CUDA does without FlashAttention
        state = attention_forward(q, k, v, settings, out)
        ours = (out, *backward())
        again = backward()
    what = f"{name(dtype)}, {heads}/{key_heads} heads of {size}, window {settings.window}, softcap {settings.softcap}"
    worst = max(distance(a, b) for a, b in zip(ours, exact, strict=True))
    here.record.prove(f"{what}: output and gradients", worst, ROUNDING[dtype])
    differs = sum(int((a != b).sum()) for a, b in zip(ours[1:], again, strict=True))
    here.record.prove(f"{what}: gradients that differ when computed again", differs)
    first = settings.lengths[0]
    grad[:first] = 0.0
    with use_backend("plain"):
        stray = max(float(part[:first].abs().max()) for part in backward())
    here.record.prove(f"{what}: gradient that reaches another document", stray)
    leaves = [part.transpose(0, 1)[None].detach().requires_grad_() for part in (q, k, v)]
    module = nn.Module()
    options = {"scaling": settings.scale, "sliding_window": settings.window, "softcap": settings.softcap}
    whole, _ = packed_attention_forward(
        module, leaves[0], leaves[1], leaves[2], None, document_lengths=settings.lengths, **options
    )
    here.record.prove(
        f"{what}: through transformers' interface", distance(whole[0].detach(), exact[0]), ROUNDING[dtype]
    )
    torch.autograd.grad(whole, leaves, torch.ones_like(whole))


def _by_document(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grad: torch.Tensor, settings: AttentionSettings
) -> tuple[torch.Tensor, ...]:
    """Output and gradients in float64, as the formula is written."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in (q, k, v)]
    outputs, begin = [], 0
    for length in settings.lengths:
        document = slice(begin, begin + length)
        query, key, value = (leaf[document].transpose(0, 1) for leaf in leaves)
        key, value = (x.repeat_interleave(query.shape[0] // x.shape[0], 0) for x in (key, value))
        scores = query @ key.transpose(1, 2) * settings.scale
        if settings.softcap is not None:
            scores = settings.softcap * torch.tanh(scores / settings.softcap)
        distances = torch.arange(length, device=q.device)[:, None] - torch.arange(length, device=q.device)
        hidden = (distances < 0) | (distances >= (settings.window or length))
        outputs.append((scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value).transpose(0, 1))
        begin += length
    out = torch.cat(outputs)
    return out.detach(), *torch.autograd.grad(out, leaves, grad.double())


def kernels(here: Here) -> None:
    """Each compiled kernel against the plain one, over many numbers of tokens."""
    dtype = torch.float32 if here.small else torch.bfloat16
    began = time.perf_counter()
    sizes = (7, 64, 33) if here.small else (7, 64, 33, 1000, 1024, 4097, 2048, 3001, 129)
    graphs = []
    for tokens in sizes:
        results = {}
        for backend in ("plain", here.kernels):
            with use_backend(backend), torch.no_grad():
                results[backend] = dict(_kernel_results(tokens, dtype, here.device))
        worst = {what: distance(results[here.kernels][what], exact) for what, exact in results["plain"].items()}
        what, most = max(worst.items(), key=lambda item: item[1])
        here.record.prove(f"{tokens} tokens, the furthest of {len(worst)} results: {what}", most, ROUNDING[dtype])
        graphs.append(compiled_graphs())
    here.record.tell("seconds, compiling included", time.perf_counter() - began)
    here.record.prove("graphs compiled after the third number of tokens", graphs[-1] - graphs[min(2, len(graphs) - 1)])
    here.record.tell("graphs", graphs[-1])


def compiled_graphs() -> int:
    """How many torch.compile has made in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def _kernel_results(tokens: int, dtype: torch.dtype, device: str) -> Iterator[tuple[str, torch.Tensor]]:
    """What each kernel gives on the same numbers, by name."""
    generator = torch.Generator().manual_seed(tokens)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    width, middle, heads, size = 128, 176, 4, 32
    x, weight, grad, residual = draw(tokens, width), draw(width), draw(tokens, width), draw(tokens, width)
    run = kernels_for(x)
    for offset in (0.0, 1.0):
        out = torch.empty(tokens, width + 8, device=device, dtype=dtype)[:, :width]
        scale = run.rms_norm(x, weight, 1e-6, offset, out)
        yield f"rms_norm {offset}", out.clone()
        for added in (None, residual):
            dx = torch.empty_like(x)
            run.rms_norm_backward(grad, x, weight, scale, offset, added, dx)
            yield f"rms_norm_backward {offset} {added is not None}", dx
    for activation in (0, 1):
        gate_up, product = draw(tokens, 2 * middle), draw(tokens, middle)
        out = torch.empty(tokens, middle + 8, device=device, dtype=dtype)[:, :middle]
        run.gated(*gate_up.chunk(2, 1), activation, out)
        yield f"gated {activation}", out.clone()
        run.gated_backward_(*gate_up.chunk(2, 1), activation, product)
        yield f"gated_backward_ {activation}", torch.cat([gate_up, product], 1)
    angles = draw(tokens, size)
    qkv = draw(tokens, 3 * heads * size)
    for inverse in (False, True):
        turned = qkv[:, : heads * size].unflatten(1, (heads, size))
        run.rotary_(turned, angles.cos(), angles.sin(), inverse)
        yield f"rotary_ {inverse}", qkv.clone()
    factors = draw(width).float()
    y, through = draw(tokens, width), torch.empty_like(grad)
    yield "scale_columns_backward", run.scale_columns_backward(grad, y, factors, through)
    run.scale_columns_(y, factors)
    yield "scale_columns_", torch.cat([y, through], 1)


def cross_entropy(here: Here) -> None:
    """Loss and gradient, with a last chunk that is not full, a bias, a factor and a softcap."""
    for dtype in dtypes(here):
        for rows, vocabulary, transform in (
            (37, 301, LogitTransform()),
            (200, 1000, LogitTransform(0.5, 5.0)),
            *(() if here.small else ((3001, 32000, LogitTransform()), (500, 262144, LogitTransform()))),
        ):
            _cross_entropy(here, dtype, rows, vocabulary, transform)


def _cross_entropy(here: Here, dtype: torch.dtype, rows: int, vocabulary: int, transform: LogitTransform) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 64, generator=generator).to(here.device, dtype).requires_grad_()
    linear = nn.Linear(64, vocabulary, bias=False).requires_grad_(False).to(here.device, dtype)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(vocabulary, 64, generator=generator) * 0.3)
    targets = torch.randint(vocabulary, (rows,), generator=generator).to(here.device)
    chunk = 2**25 if rows > 1000 else 64 * vocabulary
    with use_backend(here.kernels):
        loss = -chunked_log_probs(hidden, targets, linear, transform, chunk).sum()
        (grad,) = torch.autograd.grad(loss, hidden)
    wide = hidden.detach().double().requires_grad_()
    logits = wide @ linear.weight.double().T * transform.multiplier
    if transform.softcap is not None:
        logits = torch.tanh(logits / transform.softcap) * transform.softcap
    exact = F.cross_entropy(logits, targets, reduction="sum")
    (exact_grad,) = torch.autograd.grad(exact, wide)
    what = f"{name(dtype)}, {rows} rows, {vocabulary} tokens"
    here.record.prove(f"{what}: loss", abs(float(loss) - float(exact)) / float(exact), ROUNDING[dtype])
    here.record.prove(f"{what}: gradient", distance(grad, exact_grad), ROUNDING[dtype])


def dropout(here: Here) -> None:
    """The mask's share, its use in the backward, and that the state of the generator gives it again."""
    device = torch.device(here.device)
    x = torch.ones(257, 333, device=device, dtype=torch.bfloat16)
    with use_backend("plain"):
        drawn = draw_dropout(x, 0.1)
        once, back = drawn.apply(x), torch.zeros_like(x)
        drawn.add_(back, x)
        here.record.prove("elements whose mask differs between forward and backward", int((once != back).sum()))
        share = float((once == 0).float().mean())
        here.record.prove("share of dropped elements, off from 0.1", abs(share - 0.1), 5e-3)
        module = torch.cuda if device.type == "cuda" else torch
        state = module.get_rng_state()
        first = draw_dropout(x, 0.3).apply(x)
        module.set_rng_state(state)
        here.record.prove("elements that differ when drawn again", int((first != draw_dropout(x, 0.3).apply(x)).sum()))
