"""Adapters that peft trained and saved, on small models of several families."""

from __future__ import annotations

import copy
import dataclasses
import functools
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3MoeConfig,
)

from tests.support.models_zoo import build_tokenizer

VOCABULARY = 259
IDS = torch.tensor([[5, 9, 17, 33, 4, 101, 7, 60], [12, 3, 44, 2, 98, 31, 8, 70]])

_COMMON: dict[str, Any] = {"vocab_size": VOCABULARY, "num_hidden_layers": 2, "num_attention_heads": 6}
_COMMON |= {"hidden_size": 48, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 2}
_LLAMA = _COMMON | {"intermediate_size": 80, "num_key_value_heads": 2, "head_dim": 8}
_MOE = _LLAMA | {"num_experts_per_tok": 2, "tie_word_embeddings": False}


@dataclasses.dataclass(frozen=True)
class Family:
    """A small model and its modules' names: two linear layers, the embedding, the head, a norm."""

    config: PreTrainedConfig
    linear: str
    other: str
    embedding: str = "embed_tokens"
    head: str = "lm_head"
    norm: str = "input_layernorm"


FAMILIES = {
    "llama": Family(LlamaConfig(**_LLAMA, tie_word_embeddings=False), "q_proj", "down_proj"),
    "tied": Family(LlamaConfig(**_LLAMA, tie_word_embeddings=True), "q_proj", "down_proj"),
    "qwen2": Family(Qwen2Config(**_LLAMA, tie_word_embeddings=False), "q_proj", "down_proj"),
    "phi3": Family(
        Phi3Config(**_LLAMA | {"num_key_value_heads": 6}, tie_word_embeddings=False, resid_pdrop=0.0),
        "qkv_proj",
        "down_proj",
    ),
    "opt": Family(
        OPTConfig(**_COMMON, ffn_dim=80, word_embed_proj_dim=48, dropout=0.0),
        "q_proj",
        "fc2",
        norm="self_attn_layer_norm",
    ),
    "gpt2": Family(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=48, n_layer=2, n_head=6, n_positions=256, bos_token_id=0, eos_token_id=2
        ),
        "c_attn",
        "c_fc",
        embedding="wte",
        norm="ln_1",
    ),
    "qwen3_moe": Family(Qwen3MoeConfig(**_MOE, num_experts=4, moe_intermediate_size=32), "q_proj", "o_proj"),
    "mamba": Family(
        MambaConfig(vocab_size=VOCABULARY, hidden_size=48, num_hidden_layers=2, state_size=4, use_mambapy=False),
        "x_proj",
        "in_proj",
        embedding="embeddings",
        norm="norm",
    ),
    "mixtral": Family(MixtralConfig(**_MOE, num_local_experts=4), "q_proj", "o_proj"),
}


def build(family: str) -> PreTrainedModel:
    """The family's model, frozen and in evaluation mode, with weights large enough for logits that differ."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[family].config), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.3 if "emb" in name or "wte" in name or "head" in name else 0.12)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.05)
    return model.eval().requires_grad_(False)


@functools.cache
def _folder(family: str, parent: Path) -> Path:
    path = parent / family
    build(family).save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    return path


def base_folder(family: str, parent: Path) -> Path:
    """The family's model and a tokenizer in a folder below `parent`."""
    return _folder(family, parent)


@torch.no_grad()
def disturb(model: torch.nn.Module, seed: int = 3) -> None:
    """Moves whatever is trained."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def train_with_peft(model: PreTrainedModel, config: Any, path: Path, **how: Any) -> Any:
    """A model of peft's with an adapter that does something, saved at `path`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained = peft.get_peft_model(model, config)
        disturb(trained)
        trained.save_pretrained(path, **how)
    return trained.eval()


def peft_logits(model: PreTrainedModel, path: Path) -> torch.Tensor:
    """What peft makes of an adapter that it loads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return logits(peft.PeftModel.from_pretrained(model, path).eval())


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    """Of two short sequences; what stands before them is cut off."""
    return model(input_ids=IDS).logits[:, -IDS.shape[1] :].float()


def check_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal to a few roundings of float32, and not both nothing."""
    assert theirs.isfinite().all()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
