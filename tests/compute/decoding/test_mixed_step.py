"""One step with many adapters: each row's logits are those that it has alone, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from lamina.compute.decoding import AdapterForms, Decoder, build_decoder
from lamina.compute.decoding.decoder import Rows
from lamina.config import METHOD_CONFIGS
from lamina.config.quantization import QuantizationConfig
from lamina.methods.shared.base import inject
from lamina.models.quantized.quantizers import converted_modules
from lamina.quantization.pack import pack_weight
from tests.support.models_zoo import build_model

# Scaled inputs are those of one linear layer of a phase, or of several by different adapters.
ADAPTERS: list[dict[str, Any]] = [
    {"type": "lora", "r": 5, "target_modules": "all-linear"},
    {"type": "ia3", "target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    {"type": "lora", "r": 67, "target_modules": ["q_proj", "o_proj", "up_proj"]},
    {"type": "ia3", "target_modules": ["q_proj"], "feedforward_modules": ["q_proj"]},
    {"type": "dora", "r": 3, "target_modules": "all-linear"},
    {"type": "ia3", "target_modules": ["v_proj", "o_proj"], "feedforward_modules": ["v_proj", "o_proj"]},
    {"type": "lora", "r": 2, "target_modules": ["k_proj"], "modules_to_save": ["down_proj", "lm_head"]},
]


# Sizes of the model and bits of its weights. Packed layers need whole blocks of 64 inputs, and at least two of them.
BASES: dict[str, tuple[dict[str, int], int | None]] = {
    "narrow": ({"hidden_size": 45, "intermediate_size": 77, "head_dim": 10}, None),
    "wide": ({"hidden_size": 192, "intermediate_size": 1100, "head_dim": 10}, None),
    "8 bits": ({"hidden_size": 192, "intermediate_size": 704, "head_dim": 64}, 8),
    "4 bits": ({"hidden_size": 192, "intermediate_size": 704, "head_dim": 64}, 4),
}


def build_base(name: str) -> PreTrainedModel:
    sizes, bits = BASES[name]
    model = build_model("llama", **sizes, num_attention_heads=3, num_key_value_heads=1, vocab_size=197)
    if bits is not None:
        config = QuantizationConfig(bits=bits)
        for path, linear in converted_modules(model, config).items():
            model.set_submodule(path, pack_weight(linear.weight, config))
    return model


@pytest.fixture(scope="module", params=list(BASES))
def mixed(request: pytest.FixtureRequest) -> tuple[Decoder, list[AdapterForms | None]]:
    """A decoder and adapters for it, of which the first is none."""
    decoder = build_decoder(build_base(request.param))
    assert isinstance(decoder, Decoder), decoder
    decoder.allocate(80)
    forms: list[AdapterForms | None] = [None]
    for number, settings in enumerate(ADAPTERS):
        if BASES[request.param][1] is not None and "modules_to_save" in settings:
            settings = {**settings, "modules_to_save": ["lm_head"]}  # packed layers cannot be trained
        config = METHOD_CONFIGS[settings["type"]].model_validate(settings)
        injection = inject(build_base(request.param), config, 0)
        with torch.no_grad():
            for tensor in injection.tensors().values():
                tensor += 0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number))
        forms.append(decoder.forms(injection.row_forms()))
    return decoder, forms


def step(decoder: Decoder, adapters: list[AdapterForms | None], prompts: list[list[int]]) -> torch.Tensor:
    """The logits of all tokens of short prompts, each of a sequence of its own."""
    segments: list[tuple[int, int, AdapterForms | None]] = []
    begin = 0
    for adapter, prompt in zip(adapters, prompts, strict=True):
        end = begin + len(prompt)
        if segments and segments[-1][2] is adapter:
            segments[-1] = (segments[-1][0], end, adapter)
        else:
            segments.append((begin, end, adapter))
        begin = end
    counts = [len(prompt) for prompt in prompts]
    rows = Rows(
        decoder.embed(torch.tensor([token for prompt in prompts for token in prompt])).contiguous(),
        np.concatenate([np.arange(count, dtype=np.int64) for count in counts]),
        np.repeat(np.arange(len(prompts), dtype=np.int64), counts),
        np.arange(len(prompts), dtype=np.int32)[:, None],
        segments,
        np.arange(begin, dtype=np.int64),
    )
    return decoder.step(rows)


@pytest.mark.parametrize("kinds", [range(8), (0, 1), (0, 2), (1, 3, 0), (4, 6), (2,), (7, 2)], ids=str)
@pytest.mark.parametrize("count", [1, 3, 9, 20, 37])
def test_rows_of_one_step_are_what_they_are_alone(
    mixed: tuple[Decoder, list[AdapterForms | None]], kinds: range | tuple[int, ...], count: int
) -> None:
    decoder, forms = mixed
    draw = np.random.default_rng(count)
    adapters = [forms[int(kind)] for kind in draw.choice(list(kinds), count)]
    prompts = [draw.integers(3, 190, int(draw.integers(1, 4))).tolist() for _ in range(count)]
    alone = [step(decoder, [adapter], [prompt]) for adapter, prompt in zip(adapters, prompts, strict=True)]
    assert torch.equal(step(decoder, adapters, prompts), torch.cat(alone))


def test_every_adapter_changes_the_logits(mixed: tuple[Decoder, list[AdapterForms | None]]) -> None:
    decoder, forms = mixed
    found = [step(decoder, [adapter], [[50, 60, 70]]) for adapter in forms]
    assert all(not torch.equal(found[0], other) for other in found[1:])
