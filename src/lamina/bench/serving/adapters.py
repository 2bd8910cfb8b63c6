"""Makes adapters by seed, without training: real folders in peft's form, each with a small random effect.

They hold no probes and no lock, so what is measured of loading is reading and laying out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lamina import files
from lamina.adapters.hf_peft import peft_content, write_peft
from lamina.bench.serving.job import AdapterFacts
from lamina.config import METHOD_CONFIGS
from lamina.methods.shared.base import Injection, find_method, inject
from lamina.models.copies import shared_copy
from lamina.models.load import Base

METHODS = ("lora", "dora", "ia3", "prefix_tuning")

# Numbers 1, 2, ... are of these kinds in turn; a single one is LoRA as training peers have it.
_KINDS: tuple[dict[str, Any], ...] = (
    {"type": "lora", "r": 16, "lora_alpha": 32.0},
    {"type": "dora", "r": 8, "lora_alpha": 16.0},
    {"type": "lora", "r": 4, "lora_alpha": 8.0},
    {"type": "ia3"},
    {"type": "lora", "r": 64, "lora_alpha": 128.0},
    {"type": "prefix_tuning", "num_virtual_tokens": 8},
    {"type": "lora", "r": 8, "lora_alpha": 16.0},
    {"type": "lora", "r": 32, "lora_alpha": 64.0},
)

# Deviation of what is added to every trained number.
_EFFECT = 0.02


@dataclass
class AdapterMaker:
    """Makes adapters for one base.

    Attributes:
        base: The base; it stays as it is.
        folder: Where they are written.
        methods: Some of `METHODS`.
        seed: Of their numbers.
    """

    base: Base
    folder: Path
    methods: Sequence[str] = METHODS
    seed: int = 0
    _made: list[AdapterFacts] = field(default_factory=list)
    _attached: dict[int, Injection] = field(default_factory=dict)

    def first(self, count: int) -> list[AdapterFacts]:
        """The first `count` adapters, those that were made before among them."""
        while len(self._made) < count:
            self._made.append(self._make(len(self._made)))
        return self._made[:count]

    @torch.no_grad()
    def _make(self, number: int) -> AdapterFacts:
        kinds = [kind for kind in _KINDS if kind["type"] in self.methods]
        kind = dict(kinds[number % len(kinds)])
        if "r" in kind:  # no layer of a small model may be too narrow for it
            kind["r"] = min(kind["r"], self.base.model.config.get_text_config().hidden_size)
        injection = self._attached.get(number % len(kinds))
        if injection is None:
            config = METHOD_CONFIGS[kind["type"]].model_validate(kind)
            injection = inject(shared_copy(self.base.model), config, self.seed)
            self._attached[number % len(kinds)] = injection
        generator = torch.Generator().manual_seed(self.seed + number)
        before = {name: tensor.detach().clone() for name, tensor in injection.tensors().items()}
        for tensor in injection.tensors().values():
            tensor.add_(_EFFECT * torch.randn(tensor.shape, generator=generator))
        saved = find_method(kind["type"]).saved(injection)
        path = self.folder / f"{number:03d}-{kind['type']}"
        content = peft_content(injection, saved.config, self.base.source.public_name)
        with files.new_folder(path) as aside:
            write_peft(aside, content, saved.tensors)
        for name, tensor in injection.tensors().items():
            tensor.copy_(before[name])
        virtual = kind.get("num_virtual_tokens", 0)
        parameters = 0 if virtual else sum(tensor.numel() for tensor in saved.tensors.values())
        return AdapterFacts(path.name, str(path), kind["type"], kind.get("r", 0), parameters, virtual)
