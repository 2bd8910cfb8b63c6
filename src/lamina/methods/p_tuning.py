"""P-tuning: n embeddings before every sequence, P = f(E) with trained E and a trained network f; the model is frozen.

Liu et al. 2021, "GPT Understands, Too", arXiv:2103.10385. f is an MLP, or a bidirectional LSTM followed by an MLP. Only
P
is saved: an adapter needs no more, and peft saves no more. `methods/shared/virtual_tokens.py` inserts the rows into a
    call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.config.methods.p_tuning import PTuningConfig
from lamina.errors import ConfigError, Problem
from lamina.machine.seeding import seeded
from lamina.methods.shared.base import Injection, Method, Saved
from lamina.methods.shared.soft_prompt import (
    SoftPrompt,
    TrainedRows,
    embedding_width,
    prompt_config,
    read_count,
    refuse_unknown,
)
from lamina.methods.shared.virtual_tokens import SAVED_NAME


class EncodedRows(SoftPrompt):
    """Embeddings that a network computes. Its tensors, all float32, have peft's names.

    Attributes:
        embedding: E, (n, D).
        lstm_head: The LSTM, (n, D) -> (n, 2 H), or None.
        mlp_head: The MLP, whose output is (n, D).
    """

    def __init__(self, model: PreTrainedModel, config: PTuningConfig, seed: int) -> None:
        super().__init__(model, config.num_virtual_tokens)
        width = embedding_width(model)
        hidden = config.encoder_hidden_size or width
        # Drawn on the CPU, so that a seed gives the same adapter for every device.
        with seeded(seed):
            self.embedding = nn.Embedding(config.num_virtual_tokens, width)
            self.lstm_head: nn.LSTM | None = None
            if config.encoder_reparameterization_type == "LSTM":
                self.lstm_head = nn.LSTM(
                    width,
                    hidden,
                    num_layers=config.encoder_num_layers,
                    dropout=config.encoder_dropout,
                    bidirectional=True,
                    batch_first=True,
                )
                layers = [nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width)]
            else:
                layers = [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
                layers.append(nn.Linear(hidden, width))
            self.mlp_head = nn.Sequential(*layers)
        self.to(model.device)

    def rows(self) -> torch.Tensor:
        rows = self.embedding.weight
        if self.lstm_head is not None:
            rows = self.lstm_head(rows[None])[0][0]
        return self.mlp_head(rows)

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())


class PTuning(Method):
    """Embeddings before every sequence, computed by a trained network."""

    starts_as_base: ClassVar[bool] = False

    def attach(self, model: PreTrainedModel, config: PTuningConfig, seed: int) -> Injection:
        if config.inference_mode:
            prompt = TrainedRows(model, torch.zeros(config.num_virtual_tokens, embedding_width(model)))
        else:
            prompt = EncodedRows(model, config, seed)
        prompt.hook_into(model)
        return Injection(model, config, {"": prompt})

    def prepare(self, injection: Injection, documents: Sequence[torch.Tensor]) -> Injection:
        assert isinstance(injection.config, PTuningConfig)
        if injection.config.inference_mode:
            raise ConfigError(
                Problem(
                    "method.inference_mode",
                    "true is for a trained adapter, which has no network to train.",
                    "remove it; to train the embeddings themselves, use type: prompt_tuning",
                )
            )
        return injection

    def saved(self, injection: Injection) -> Saved:
        prompt, config = injection.layers[""], injection.config
        if not isinstance(prompt, EncodedRows):
            return super().saved(injection)
        rows = prompt.final_rows()
        return Saved(config.model_copy(update={"inference_mode": True}), {SAVED_NAME: rows})

    def peft_config(self, config: PTuningConfig, target_modules: list[str], base_ref: str) -> dict[str, Any]:
        return {
            **prompt_config("P_TUNING", config.num_virtual_tokens, base_ref),
            **{name: getattr(config, name) for name in _ENCODER_FIELDS},
        }

    def reads_peft(self, peft_config: Mapping[str, Any]) -> bool:
        return peft_config.get("peft_type") == "P_TUNING"

    def from_peft(self, peft_config: Mapping[str, Any]) -> PTuningConfig:
        refuse_unknown(peft_config, set(_ENCODER_FIELDS), "P-tuning")
        # peft's fields of the discarded network have no effect, and may be invalid here.
        return PTuningConfig(num_virtual_tokens=read_count(peft_config), inference_mode=True)


METHOD = PTuning()

_ENCODER_FIELDS = ("encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout")
