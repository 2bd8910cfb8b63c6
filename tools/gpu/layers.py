"""Proofs of whole layers: fused, recomputed, and on packed weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tests.support.hot_path import documents
from tests.support.models_zoo import build_model
from tools.gpu.parts import distance, dtypes, name
from tools.gpu.worker import Here
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.fusion import fast_path
from lamina.compute.kernels import use_backend
from lamina.compute.ops.attention import packed_attention
from lamina.compute.weights.packed import EightBitLinear, FourBitLinear
from lamina.config.methods import METHOD_CONFIGS
from lamina.data.batch import build_batch
from lamina.losses.cross_entropy import cross_entropy
from lamina.machine.seeding import seed_generators
from lamina.methods.shared.base import Injection, inject
from lamina.structure.head import find_head

# Longer than the windows of the tiny models and than the kernels' blocks.
LENGTHS, SMALL_LENGTHS = (131, 5, 300, 64), (31, 5, 70)
FAMILIES = ("llama", "qwen3", "gemma3", "gemma2", "mistral")
# Of the whole gradient (L2, relative), both sides rounded on their own.
ALLOWED = {torch.bfloat16: 3e-2, torch.float16: 5e-3, torch.float32: 1e-4}


def adapted(
    here: Here, family: str, dtype: torch.dtype, rank: int = 5, dropout: float = 0.0, dora: bool = False
) -> Injection:
    """A tiny model on the device, with an adapter of odd rank that has an effect."""
    model: Any = build_model(family, dtype, max_position_embeddings=1024)
    return attach(model.to(here.device), rank, dropout, dora)


def attach(model: PreTrainedModel, rank: int = 5, dropout: float = 0.0, dora: bool = False) -> Injection:
    """An adapter with an effect."""
    config = METHOD_CONFIGS["dora" if dora else "lora"](r=rank, lora_alpha=8, lora_dropout=dropout)
    injection = inject(model, config, seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, tensor in injection.tensors().items():
            if "lora_B" in key:
                tensor.copy_(torch.empty(tensor.shape).normal_(0.0, 0.1, generator=generator))
    return injection


def loss_and_gradients(here: Here, injection: Injection) -> tuple[float, torch.Tensor]:
    """On whatever path the model is: the loss, and all gradients in one float64 vector."""
    tensors, device = injection.tensors(), torch.device(here.device)
    seed_generators(3, device)
    batch = build_batch(documents(SMALL_LENGTHS if here.small else LENGTHS)).to(device)
    loss = cross_entropy(injection.model, find_head(injection.model), batch)
    loss.backward()
    grads = torch.cat([t.grad.double().flatten() for t in tensors.values() if t.grad is not None])
    for tensor in tensors.values():
        tensor.grad = None
    return float(loss.detach()), grads


@contextmanager
def plain(model: PreTrainedModel) -> Iterator[None]:
    """transformers' own layers, in lamina's attention."""
    with packed_attention(model), use_backend("plain"):
        yield


def fused(here: Here) -> None:
    """Loss and gradients of fused layers beside those of transformers' own."""
    for dtype in dtypes(here):
        for family in FAMILIES[:1] if here.small else FAMILIES:
            for dora in (False,) if here.small else (False, True):
                _fused(here, family, dtype, dora)


def _fused(here: Here, family: str, dtype: torch.dtype, dora: bool) -> None:
    injection = adapted(here, family, dtype, dora=dora)
    with plain(injection.model):
        loss, grads = loss_and_gradients(here, injection)
    for backend in (here.kernels,) if here.small else (here.kernels, "plain"):
        what = f"{family}{' with DoRA' if dora else ''}, {name(dtype)}, kernels {backend}"
        with fast_path(injection.model, kernels=backend) as report:
            fused_loss, fused_grads = loss_and_gradients(here, injection)
        here.record.prove(f"{what}: layers that are not fused", report.layers - report.fused)
        if report.reasons or report.fallback:
            here.record.tell(f"{what}: because", "; ".join([*report.reasons, report.fallback or ""]))
        here.record.prove(f"{what}: loss", abs(fused_loss - loss) / loss, ALLOWED[dtype])
        here.record.prove(f"{what}: gradients", distance(fused_grads, grads), ALLOWED[dtype])


def checkpointing(here: Here) -> None:
    """Recomputed layers must give the same bits, dropout's draws included."""
    dtype = torch.float32 if here.small else torch.bfloat16
    for family in FAMILIES[:1] if here.small else FAMILIES[:3]:
        injection = adapted(here, family, dtype, dropout=0.2)
        injection.model.train()
        with fast_path(injection.model, kernels=here.kernels):
            loss, kept = loss_and_gradients(here, injection)
        for recompute in (True, "selective"):
            with fast_path(injection.model, recompute, kernels=here.kernels):
                again, recomputed = loss_and_gradients(here, injection)
            what = f"{family}, {recompute}"
            here.record.prove(f"{what}: loss", abs(again - loss))
            here.record.prove(f"{what}: gradients", float((recomputed - kept).abs().max()))


def packed(here: Here) -> None:
    """The device's numbers are the CPU's, and training on them is training on the same weights unpacked."""
    dtype = torch.float32 if here.small else torch.bfloat16
    torch.manual_seed(0)
    linear = nn.Linear(192, 160, bias=False).to(torch.bfloat16).requires_grad_(False)
    kinds: dict[str, Any] = {
        "nf4": lambda m: FourBitLinear.pack(m),
        "fp4, scales not packed": lambda m: FourBitLinear.pack(m, quant_type="fp4", double_quant=False),
        "int8": lambda m: EightBitLinear.pack(m),
    }
    for kind, pack in kinds.items():
        there = pack(linear.to(here.device))
        ours = pack(linear.to("cpu"))
        # A weight halfway between two numbers may go either way; what counts is that the bytes are read alike.
        here.record.tell(f"{kind}: stored bytes that differ", int((there.packed.cpu() != ours.packed).sum()))
        same = ours.to(here.device)
        here.record.prove(f"{kind}: weights from the same bytes", distance(same.dense().cpu(), ours.to("cpu").dense()))
        model: Any = build_model("llama", dtype, max_position_embeddings=1024)
        model.to(here.device)
        for key, module in list(model.named_modules()):
            if type(module) is nn.Linear and "layers" in key:
                model.set_submodule(key, pack(module))
        injection = attach(model)
        with plain(model):
            loss, grads = loss_and_gradients(here, injection)
        with fast_path(model, kernels=here.kernels) as report:
            fused_loss, fused_grads = loss_and_gradients(here, injection)
        here.record.prove(f"{kind}: layers that are not fused", report.layers - report.fused)
        here.record.prove(f"{kind}: loss", abs(fused_loss - loss) / loss, ALLOWED[dtype])
        here.record.prove(f"{kind}: gradients", distance(fused_grads, grads), ALLOWED[dtype])
