"""Estimates whether the activations of a micro-batch fit in memory, which decides `gradient_checkpointing: auto`."""

from __future__ import annotations

from typing import Any, Literal

from transformers import PreTrainedConfig, PreTrainedModel

from lamina.compute.fusion import Recompute
from lamina.machine.memory import available_bytes
from lamina.structure.layers import decoder_layers

# What a decoder layer saves for its backward, in units of (hidden width, intermediate width) per token. Counted on
# Llama's layer in transformers (whose norms keep a float32 copy), on fused layers with all possible norms (Gemma 3),
# both rounded up, and on the latter without gate and up.
_WIDTHS = {"unfused": (20, 6), "fused": (10, 2), "selective": (10, 0)}

# The share of available memory for activations; the rest is for the base, the logits of a chunk, and other programs.
_SHARE_FOR_ACTIVATIONS = 0.6


def activation_bytes(model: PreTrainedModel, tokens: int, layers: Literal["unfused", "fused", "selective"]) -> int:
    """Estimates the bytes that the layers save for the backward of one micro-batch.

    Args:
        model: The model.
        tokens: Number of tokens in the micro-batch.
        layers: How the layers run: not fused, fused, or fused with gate and up recomputed.
    """
    config = model.config.get_text_config()
    hidden_widths, intermediate_widths = _WIDTHS[layers]
    widths = hidden_widths * config.hidden_size + intermediate_widths * _intermediate(config, config.hidden_size)
    count = len(decoder_layers(model)) or config.num_hidden_layers
    return int(count * tokens * widths * model.dtype.itemsize)


def _intermediate(config: PreTrainedConfig, hidden: int) -> float:
    """Computes the intermediate width per token, averaged over the layers and summed over a token's experts."""
    # GPT-2 calls it n_inner, which is None if it is four times the hidden width; other families use yet other names.
    dense = _mean(getattr(config, "intermediate_size", None)) or _mean(getattr(config, "n_inner", None)) or 4 * hidden
    experts = any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    chosen = _mean(getattr(config, "num_experts_per_tok", None)) if experts else 0.0
    shared = _mean(getattr(config, "shared_expert_intermediate_size", None))
    return max(dense, chosen * (_mean(getattr(config, "moe_intermediate_size", None)) or dense) + shared)


def _mean(value: Any) -> float:
    """Averages one number, or one per layer; 0 for none."""
    numbers = value if isinstance(value, list | tuple) else [value]
    found = [float(number) for number in numbers if isinstance(number, int | float)]
    return sum(found) / len(found) if found else 0.0


def choose_checkpointing(
    setting: bool | str, model: PreTrainedModel, tokens: int, fused: bool, processes: int = 1
) -> Recompute:
    """Resolves `gradient_checkpointing`: `auto` recomputes only if activations would not fit, and as little as
    possible.

    Args:
        setting: true, false, `selective` or `auto`.
        model: The model with its adapter.
        tokens: Number of tokens in the largest micro-batch.
        fused: Whether every layer is fused; only fused layers support `selective`.
        processes: Number of processes that share this machine's memory; each GPU is one's own.
    """
    if setting == "selective" or isinstance(setting, bool):
        return setting
    sharing = processes if model.device.type == "cpu" else 1
    available = _SHARE_FOR_ACTIVATIONS * available_bytes(model.device) / sharing
    if activation_bytes(model, tokens, "fused" if fused else "unfused") <= available:
        return False
    return "selective" if fused and activation_bytes(model, tokens, "selective") <= available else True
