"""Names of a mixture's experts: how earlier versions of transformers named what is now stacked in one parameter.

In transformers 4 every expert was a module with linear layers (`experts.0.w1`), and the router one too (`gate`). Since
version 5 they are parameters (`experts.gate_up_proj`, `experts.down_proj`, `gate.weight`). HF peft takes the old names
in `target_modules` for the new parameters, and `all-linear` for all of them, in the families that it knows
(peft/utils/transformers_weight_conversion.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import transformers.conversion_mapping as conversions
from transformers import PreTrainedModel

# Old name of a linear layer -> the parameter that holds it now, by the family whose names others share.
_PARAMETERS: Mapping[str, Mapping[str, str]] = {
    "mixtral": {"w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj", "gate": "gate.weight"},
    "qwen2_moe": {
        "gate_proj": "gate_up_proj",
        "up_proj": "gate_up_proj",
        "down_proj": "down_proj",
        "gate": "gate.weight",
    },
}


def old_names(model: PreTrainedModel) -> Mapping[str, str]:
    """Maps old names of linear layers to the parameters that hold them now; empty where peft knows none."""
    families = {**getattr(conversions, "_MODEL_TO_CONVERSION_PATTERN", {}), "mixtral": "mixtral"}
    return _PARAMETERS.get(families.get(model.config.model_type, ""), {})


def merged_names(model: PreTrainedModel) -> Mapping[str, Sequence[str]]:
    """Maps each parameter that holds several old linear layers of an expert to their names, in the order stored."""
    merged: dict[str, list[str]] = {}
    for old, new in old_names(model).items():
        merged.setdefault(new, []).append(old)
    return {new: names for new, names in merged.items() if len(names) > 1}
