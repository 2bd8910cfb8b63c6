"""What is run on pretended CUDA tensors (`fake_cuda.py`), by name, in a process of its own.

`python -m tests.support.fake_cuda_cases FOLDER` prints one JSON object a line: the case, what went wrong or null, and
the autograd functions that ran.
"""

from __future__ import annotations

import functools
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from transformers import PreTrainedModel
from transformers.models.auto import AutoModelForCausalLM

from lamina.compute.fusion import Recompute
from lamina.compute.fusion.switch import fused_layers
from lamina.compute.kernels import use_backend
from lamina.compute.ops.attention import packed_attention
from lamina.compute.weights.packed import EightBitLinear, FourBitLinear
from lamina.config import TrainConfig
from lamina.config.methods import METHOD_CONFIGS
from lamina.config.methods.lora import LoraConfig
from lamina.config.optimizers import OPTIMIZERS
from lamina.config.quantization import QuantizationConfig
from lamina.data.batch import build_batch
from lamina.losses.cross_entropy import cross_entropy
from lamina.machine.seeding import kept_generators
from lamina.methods.shared.base import find_method, inject
from lamina.models.quantized import quantizers
from lamina.optim import BlockAdamW, build_optimizer
from lamina.structure.head import Head, LogitTransform
from lamina.structure.layers import text_decoder
from tests.support.fake_cuda import DEVICE, Seen, fake_cuda, pretend
from tests.support.hot_path import documents
from tests.support.models_zoo import FAMILIES

_LORA = {"r": 5, "lora_dropout": 0.1}
_SETTINGS: dict[str, dict[str, Any]] = {
    "lora": _LORA,
    "dora": _LORA,
}
_FAMILIES = {
    torch.bfloat16: ("llama", "qwen3", "gemma2", "gemma3", "phi"),
    torch.float16: ("qwen3",),
    torch.float32: ("gemma3", "gpt2"),
}
PACKED: dict[str, Callable[[torch.nn.Linear], torch.nn.Module]] = {
    "nf4": FourBitLinear.pack,
    "nf4-once": functools.partial(FourBitLinear.pack, double_quant=False),
    "fp4": functools.partial(FourBitLinear.pack, quant_type="fp4"),
    "int8": EightBitLinear.pack,
}


def build(family: str, dtype: torch.dtype, packed: str | None = None) -> PreTrainedModel:
    """A model of the zoo, on the device."""
    with DEVICE:
        model = AutoModelForCausalLM.from_config(FAMILIES[family](), dtype=dtype).eval().requires_grad_(False)
        for name, module in list(model.named_modules()):
            if packed and type(module) is torch.nn.Linear and "layers" in name:
                model.set_submodule(name, PACKED[packed](module))
    return model


def train(model: PreTrainedModel, recompute: Recompute = False) -> int:
    """A micro-batch forward and backward.

    Returns:
        How many layers were fused.
    """
    linear = model.get_output_embeddings()
    assert linear is not None
    head = Head(text_decoder(model), linear, LogitTransform(), False)
    with packed_attention(model), fused_layers(model, recompute) as report:
        loss = cross_entropy(model, head, build_batch(documents()).to(DEVICE))
    assert (loss.device, loss.dtype) == (DEVICE, torch.float32)
    return report.fused


def _family(seen: Seen, family: str, dtype: torch.dtype, fused: int) -> None:
    model = build(family, dtype)
    inject(model, LoraConfig(**_LORA), seed=0)
    model.train()
    assert train(model) == fused
    assert ("flash" in seen.functions) == (dtype != torch.float32 and family != "gemma2"), seen.functions


def _recomputed(seen: Seen, recompute: Recompute) -> None:
    model = build("llama", torch.bfloat16)
    inject(model, LoraConfig(**_LORA), seed=0)
    model.train()
    assert train(model, recompute) == 2


def _packed(seen: Seen, kind: str) -> None:
    model = build("qwen3", torch.bfloat16, kind)
    inject(model, LoraConfig(**_LORA), seed=0)
    assert train(model) == 2
    with packed_attention(model):
        model(input_ids=torch.ones(1, 9, dtype=torch.int64, device=DEVICE), use_cache=False)
    assert "_PackedMatmul" in seen.functions


def _method(seen: Seen, name: str) -> None:
    model = build("gpt2" if find_method(name).needs_biases else "llama", torch.bfloat16)
    inject(model, METHOD_CONFIGS[name](**_SETTINGS.get(name, {})), seed=0)
    model.train()
    train(model)


def _optimizer(seen: Seen, name: str) -> None:
    weight = torch.nn.Parameter(torch.empty(128, 72, device=DEVICE))
    settings = {"optim": name, "learning_rate": 1e-3, "max_grad_norm": 0.0}
    if name.startswith("galore"):
        settings["galore"] = {"rank": 8}
    if name.startswith("apollo"):
        settings["apollo"] = {"rank": 8}
    optimizer = build_optimizer(TrainConfig.model_validate(settings), {"layers.0.w": weight})
    if isinstance(optimizer, BlockAdamW):
        optimizer.choose()
    weight.grad = torch.empty_like(weight)
    optimizer.step()
    state = optimizer.state[weight]
    assert all(value.device == DEVICE for value in state.values() if isinstance(value, torch.Tensor) and value.ndim)


def _chosen(seen: Seen) -> None:
    """4-bit weights that were chosen before take the place of those that rounding gives, also on the device."""
    chosen = torch.empty(64 * 64 // 2, 1, dtype=torch.uint8)
    quantizer: Any = object.__new__(quantizers._FourBits)
    quantizer.quantization_config = SimpleNamespace(lamina=QuantizationConfig(bits=4).model_dump(), chosen="folder")
    weight = torch.empty(64, 64, dtype=torch.bfloat16, device=DEVICE)
    with (
        mock.patch.object(Path, "exists", return_value=True),
        mock.patch.object(quantizers, "load_file", return_value={"packed": chosen}) as read,
    ):
        parameter = quantizer._pack("layer", weight, SimpleNamespace(), _Parameter())
    assert read.called
    assert parameter.values[0].device == parameter.made["quant_state"].absmax.device == DEVICE


class _Parameter:
    """Stands for the parameter of bitsandbytes; an empty one has no attributes."""

    def __init__(self, *values: torch.Tensor, **made: Any) -> None:
        if values:
            self.values, self.made = values, made


def _generators(seen: Seen) -> None:
    with kept_generators(DEVICE):
        torch.empty(3, device=DEVICE).uniform_()


def cases() -> Iterator[tuple[str, Callable[[Seen], None]]]:
    """Names and functions."""
    for dtype, families in _FAMILIES.items():
        for family in families:
            fused = 0 if family in ("gpt2", "phi") else 2
            name = f"family-{family}-{str(dtype).removeprefix('torch.')}"
            yield name, functools.partial(_family, family=family, dtype=dtype, fused=fused)
    for recompute in (True, "selective"):
        yield f"recompute-{recompute}", functools.partial(_recomputed, recompute=recompute)
    for kind in PACKED:
        yield f"packed-{kind}", functools.partial(_packed, kind=kind)
    for name in sorted(METHOD_CONFIGS.keys() - {"peft"}):  # which asks for the device itself
        yield f"method-{name}", functools.partial(_method, name=name)
    for name in (name for name, facts in OPTIMIZERS.items() if facts.unpaged is None):
        yield f"optimizer-{name}", functools.partial(_optimizer, name=name)
    yield "chosen", _chosen
    yield "generators", _generators


def run(case: Callable[[Seen], None]) -> dict[str, Any]:
    """What came of a case."""
    seen, problem = Seen(), None
    try:
        with fake_cuda() as seen, use_backend("plain"):
            case(seen)
    except Exception as error:
        ours = [f for f in traceback.extract_tb(error.__traceback__) if "/lamina/" in f.filename]
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}: " if ours else ""
        problem = f"{place}{type(error).__name__}: {str(error)[:300]}"
    return {"problem": problem, "functions": seen.functions}


def main() -> None:
    """See the file's top."""
    pretend(Path(sys.argv[1]))
    wanted = sys.argv[2:]
    for name, case in cases():
        if not wanted or any(name.startswith(prefix) for prefix in wanted):
            print(json.dumps({"case": name, **run(case)}), flush=True)


if __name__ == "__main__":
    main()
