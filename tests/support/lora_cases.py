"""What the tests of LoRA's parts share: peft as the oracle, with our tensors in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from transformers import PreTrainedModel

from lamina.adapters.adapter import save_adapter
from lamina.adapters.lock import build_lock
from lamina.chat.template import build_template
from lamina.config.methods.lora import LoraConfig
from lamina.methods.shared.base import Injection, inject
from lamina.models.load import Base, load_base
from tests.support.models_zoo import build_model, build_tokenizer

IDS = torch.tensor([[5, 9, 17, 33, 4, 101, 7, 7, 60, 21]])


def attached(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any) -> Injection:
    """A fresh adapter of rank 4 on a small model."""
    config = LoraConfig.model_validate({"r": 4, "lora_alpha": 6, **settings})
    return inject(build_model(family, dtype, vocab_size=259), config, seed)


def disturb(injection: Injection, seed: int = 3) -> Injection:
    """Moves every trained tensor away from where it began."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in injection.tensors().values():
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    return injection


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float()


def on_disk(family: str, folder: Path) -> Base:
    build_model(family, vocab_size=259).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return load_base(str(folder), "float32")


def save(injection: Injection, base: Base, path: Path) -> None:
    save_adapter(path, injection, base, build_lock(base, build_template(base.tokenizer), []), [])


def in_peft(family: str, **settings: Any) -> peft.PeftModel:
    """peft's adapter on the same model, in training mode."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 6, **settings})
    return peft.get_peft_model(build_model(family, vocab_size=259), config)


def trained_by(theirs: peft.PeftModel) -> dict[str, torch.nn.Parameter]:
    """peft's trained tensors by the names that they are saved under."""
    named = {}
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            saved = name.replace(".modules_to_save.default.", ".").replace(".default", "")
            named[saved.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")] = parameter
    return named


def bare(family: str) -> PreTrainedModel:
    return build_model(family, vocab_size=259)
