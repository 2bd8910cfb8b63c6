"""A soft prompt: embeddings before every sequence, which are trained directly or computed by a network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops import row_forms
from lamina.errors import AdapterError
from lamina.methods.shared.virtual_tokens import (
    SAVED_NAME,
    Finish,
    VirtualTokens,
    find_decoder,
    insert_rows,
    pack_rows,
)


class SoftPrompt(VirtualTokens):
    """Embeddings before every sequence."""

    @abstractmethod
    def rows(self) -> torch.Tensor:
        """Computes the embeddings, (n, D), float32."""

    def row_forms(self) -> tuple[row_forms.RowForm, ...]:
        return (row_forms.SoftPrompt(self.final_rows()),)

    @torch.no_grad()
    def final_rows(self) -> torch.Tensor:
        """The rows as they are used once trained: without dropout."""
        training = self.training
        self.eval()
        rows = self.rows()
        self.train(training)
        return rows

    def pack(self, decoder: PreTrainedModel, call: dict[str, Any], lengths: list[int]) -> Finish:
        return pack_rows(decoder, call, lengths, self.rows())

    def begin(self, decoder: PreTrainedModel, call: dict[str, Any]) -> Finish:
        return insert_rows(decoder, call, self.rows())[1]


class TrainedRows(SoftPrompt):
    """Embeddings that are trained directly.

    Attributes:
        prompt_embeddings: The embeddings, (n, D), float32.
    """

    def __init__(self, model: PreTrainedModel, rows: torch.Tensor) -> None:
        super().__init__(model, rows.shape[0])
        self.prompt_embeddings = nn.Parameter(rows.to(model.device, torch.float32))

    def rows(self) -> torch.Tensor:
        return self.prompt_embeddings

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return {SAVED_NAME: self.prompt_embeddings}


def embedding_width(model: PreTrainedModel) -> int:
    """Returns the width of an embedding."""
    embeddings = find_decoder(model).get_input_embeddings()
    with torch.no_grad():
        return embeddings(torch.zeros(1, dtype=torch.long, device=model.device)).shape[-1]


def prompt_config(peft_type: str, count: int, base_ref: str) -> dict[str, Any]:
    """Builds the common content of `adapter_config.json` for the methods with virtual tokens.

    The model's sizes are left empty; peft reads them from the base.
    """
    return {
        "peft_type": peft_type,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_ref,
        "num_virtual_tokens": count,
        "token_dim": None,
        "num_attention_heads": None,
        "num_layers": None,
        "num_transformer_submodules": 1,
        "modules_to_save": None,
        "inference_mode": True,
    }


def read_count(peft_config: Mapping[str, Any]) -> int:
    """Reads the number of virtual tokens from a peft configuration.

    Raises:
        AdapterError: The configuration has no such field.
    """
    if peft_config.get("num_virtual_tokens") is None:
        raise AdapterError("its adapter_config.json lacks num_virtual_tokens. Fix: copy the adapter again.")
    return peft_config["num_virtual_tokens"]


def refuse_unknown(peft_config: Mapping[str, Any], known: set[str], title: str) -> None:
    """Checks that a peft configuration sets no unsupported field that would change the output.

    Raises:
        AdapterError: It does; the message names the field.
    """
    submodules = peft_config.get("num_transformer_submodules")
    unknown = sorted(
        key
        for key, value in peft_config.items()
        if key not in known | _COMMON_FIELDS and value not in (None, False, {}, [])
    )
    if submodules not in (None, 1):
        unknown.append("num_transformer_submodules")
    if unknown:
        settings = ", ".join(f"{key}={peft_config[key]!r}" for key in unknown)
        raise AdapterError(
            f"the adapter has settings of peft that lamina's {title} does not have: {settings}. Without them its "
            "output could differ. Fix: use it with peft."
        )


# Fields of peft's configurations that describe an adapter's origin, or repeat the tensors' shapes.
_COMMON_FIELDS = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "num_attention_heads",
    "num_layers",
    "num_transformer_submodules",
    "num_virtual_tokens",
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
    "token_dim",
}
