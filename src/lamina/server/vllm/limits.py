"""What vLLM does not serve of an adapter, said before it is loaded, with the way that works."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamina.adapters.adapter import Adapter
from lamina.errors import AdapterError

# What `vllm serve --max-lora-rank` may be.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

# Methods that change more than weights, so that no merged model does the same.
_NOT_MERGED = {"bottleneck", "p_tuning", "prefix_tuning", "prompt_tuning"}

# Names of `init_lora_weights` whose adapters are plain LoRA once they are trained; others shift the base.
_PLAIN_INITS = {"gaussian", "eva", "orthogonal", "mica", "lora_ga"}


def rank_of(peft_config: Mapping[str, Any]) -> int:
    """The highest rank that an adapter's file names; 0 if it has none."""
    ranks = [peft_config.get("r") or 0, *(peft_config.get("rank_pattern") or {}).values()]
    return max(int(rank) for rank in ranks)


def served_rank(rank: int) -> int:
    """The smallest `--max-lora-rank` that takes a rank; the largest there is if none does."""
    return next((allowed for allowed in RANKS if allowed >= rank), RANKS[-1])


def refusals(adapter: Adapter, most_rank: int | None = None) -> list[str]:
    """Why vLLM does not serve an adapter, in parts of a sentence; empty if nothing speaks against it.

    Args:
        adapter: As read from disk.
        most_rank: The servers' `--max-lora-rank`; None where it is not known.
    """
    stored = adapter.peft_config
    if stored.get("peft_type") != "LORA":
        return [f"it is {adapter.config.title}, and vLLM serves LoRA alone"]
    found = []
    if stored.get("use_dora"):
        found.append("it is DoRA (use_dora)")
    if stored.get("bias", "none") != "none" or stored.get("lora_bias"):
        found.append("it trains biases (bias)")
    if stored.get("modules_to_save"):
        found.append(f"it has modules_to_save ({', '.join(map(str, stored['modules_to_save']))})")
    if stored.get("trainable_token_indices"):
        found.append("it trains rows of the embedding (trainable_token_indices)")
    if stored.get("target_parameters"):
        found.append("it adapts parameters that are no linear layers (target_parameters)")
    init = stored.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        found.append(f"it belongs on a base that init_lora_weights={init!r} shifted")
    for name in ("alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora"):
        if stored.get(name):
            found.append(f"it uses {name}")
    rank = rank_of(stored)
    most = RANKS[-1] if most_rank is None else most_rank
    if rank > most:
        found.append(f"its rank is {rank}, and the servers take {most}")
    return found


def check_limits(adapter: Adapter, most_rank: int | None = None) -> None:
    """Checks that vLLM serves an adapter.

    Raises:
        AdapterError: It does not; the error says why, and what works.
    """
    found = refusals(adapter, most_rank)
    if not found:
        return
    rank = rank_of(adapter.peft_config)
    only_rank = len(found) == 1 and most_rank is not None and most_rank < rank <= RANKS[-1]
    fixes = [f"start vLLM with --vllm-arg=--max-lora-rank={served_rank(rank)}"] if only_rank else []
    if adapter.config.type not in _NOT_MERGED:
        fixes.append(f"merge it (lamina merge {adapter.path} --out FOLDER) and serve the folder as a base of its own")
    fixes.append("serve it with lamina's own engine (--engine lamina)")
    raise AdapterError(f"{adapter.path}: vLLM does not serve it: {'; '.join(found)}. Fix: {', or '.join(fixes)}.")
