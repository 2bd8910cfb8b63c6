"""Probes: a few prompts with the logits that the adapter gave at the end of training, and that the bare base gave.

Replaying them on any model that claims to carry the adapter (loaded, merged, exported) shows whether it does
(`certificate.py`). `engine/probes.py` records them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from lamina.adapters.logits import Logits, bare_logits, model_logits
from lamina.errors import AdapterError, NewerVersionError
from lamina.methods.shared.base import Injection


@dataclass(frozen=True)
class LayerRecord:
    """What an adapter gives along a probe, whole and with one decoder layer's part of it left out.

    Attributes:
        positions: Where logits were taken (Q of them): along the prompt too, since many are needed.
        token_ids: (Q, TOP) ids of the adapter's highest logits, in falling order.
        whole: (Q, TOP) the adapter's logits of those ids.
        without: By the name of the layer that is left out, (Q, TOP) the logits of the same ids.
    """

    positions: list[int]
    token_ids: list[list[int]]
    whole: list[list[float]]
    without: dict[str, list[list[float]]]

    def __post_init__(self) -> None:
        rows = [list(map(len, part)) for part in (self.token_ids, self.whole, *self.without.values())]
        if not self.positions or any(each != rows[0] or len(each) != len(self.positions) for each in rows):
            raise ValueError("its layers' logits do not fit its positions and tokens")


@dataclass(frozen=True)
class Probe:
    """One prompt and what the model said.

    Attributes:
        prompt: The user's turn; empty for a probe that is no rendered prompt.
        input_ids: Rendered prompt and the adapter's own greedy answer.
        positions: Where in `input_ids` logits were taken (P of them).
        token_ids: (P, TOP) ids of the adapter's highest logits, in falling order. Where the adapter changes none of
            them, after the first two those that it changes the most.
        adapter_logits: (P, TOP) the adapter's logits of those ids.
        base_logits: (P, TOP) the bare base's logits of the same ids.
        layers: The adapter's parts; None if it has none by layers, or was saved before there was this field.
    """

    prompt: str
    input_ids: list[int]
    positions: list[int]
    token_ids: list[list[int]]
    adapter_logits: list[list[float]]
    base_logits: list[list[float]]
    layers: LayerRecord | None = None

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Probe:
        """Reads what `as_json` gave.

        Raises:
            AdapterError: A field is missing.
            NewerVersionError: A field is not known here.
        """
        layers = value.get("layers")
        unknown = sorted(value.keys() - {each.name for each in fields(cls)})
        if isinstance(layers, dict):
            unknown += sorted(f"layers.{key}" for key in layers.keys() - {each.name for each in fields(LayerRecord)})
        if unknown:
            raise NewerVersionError("lamina.json", "", f"its probes have {', '.join(unknown)}, not known here")
        try:
            return cls(**{**value, "layers": None if layers is None else LayerRecord(**layers)})
        except (TypeError, ValueError, AttributeError) as error:
            raise AdapterError(
                f"lamina.json: a probe is not readable ({error}). Fix: copy the adapter again."
            ) from None


def record_again(injection: Injection, probes: Sequence[Probe]) -> list[Probe]:
    """The same probes with the logits that adapter and base give as they are held now, in another dtype perhaps."""
    adapter, base = model_logits(injection.model), bare_logits(injection)
    return [with_logits(probe, adapter, base) for probe in probes]


def with_logits(probe: Probe, adapter: Logits, base: Logits) -> Probe:
    """A probe of the same tokens with the logits that these give."""

    def taken(logits: Logits) -> list[list[float]]:
        given = logits(probe.input_ids, probe.positions)
        return given.gather(1, torch.tensor(probe.token_ids, device=given.device)).tolist()

    return replace(probe, adapter_logits=taken(adapter), base_logits=taken(base))
