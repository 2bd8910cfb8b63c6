"""What a model gives at the tokens whose logits the probes recorded, and how far it is from the record.

`certificate.py` decides by these figures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lamina.adapters.logits import Logits, TopLogprobs
from lamina.adapters.probes import Probe
from lamina.errors import AdapterError

# Draws of rounding errors that are measured.
_DRAWS = 3

# Inside the block that it opens, logits are as rounding to a dtype, with a seed, might have made them.
Moved = Callable[[int, torch.dtype], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class Rounding:
    """How far rounding alone moves the recorded logits: at most, and on average."""

    largest: float
    mean: float


@dataclass(frozen=True)
class Comparison:
    """The logits of all probes beside the recorded ones.

    Attributes:
        largest: Difference from the adapter's recorded logits, infinite if none of them is known.
        mean: Mean difference from the same.
        effect: Mean difference between adapter and bare base as recorded.
        kept: How much of that effect is there, from 0 to 1.
        known: Share of the recorded tokens whose value was given.
        is_finite: Whether all known values are finite.
        is_centered: Whether values are log-probabilities, of which each position's mean was subtracted.
        size: The largest recorded logit.
    """

    largest: float
    mean: float
    effect: float
    kept: float
    known: float
    is_finite: bool
    is_centered: bool
    size: float
    _probes: Sequence[Probe]
    _logits: Sequence[_ProbeLogits]

    def top1_agreement(self, tolerance: float) -> float:
        """Returns the share of positions whose highest logit is the recorded one, or lies closer than `tolerance`."""
        return float(torch.cat([one.agrees(tolerance) for one in self._logits]).float().mean())

    def measure_rounding(self, logits: Logits | TopLogprobs, moved: Moved, dtype: str) -> Rounding:
        """Asks again while `moved` moves the model's results as rounding to `dtype` might."""
        moves = []
        for draw in range(_DRAWS):
            with moved(draw, getattr(torch, dtype)):
                for probe, one in zip(self._probes, self._logits, strict=True):
                    other = _ask(logits, probe)
                    moves.append((other.seen - one.seen)[one.known & other.known].abs())
        both = torch.cat(moves)
        return Rounding(float(both.max()), float(both.mean()))


def compare_with_recorded(logits: Logits | TopLogprobs, probes: Sequence[Probe]) -> Comparison:
    """Asks for the probes' logits, and compares them with the recorded ones.

    Raises:
        AdapterError: What `logits` gives has another shape than was asked for.
    """
    asked = [_ask(logits, probe) for probe in probes]
    difference = torch.cat([(one.seen - one.adapter)[one.known].abs() for one in asked])
    change = torch.cat([(one.seen - one.base)[one.known] for one in asked])
    effects = torch.cat([(one.adapter - one.base)[one.known] for one in asked])
    known = len(effects) / sum(one.known.numel() for one in asked)
    if not known:
        difference, change, effects = (torch.tensor([value]) for value in (torch.inf, 0.0, 0.0))
    effect = float(effects.abs().mean())
    return Comparison(
        largest=float(difference.max()),
        mean=float(difference.mean()),
        effect=effect,
        kept=float(change @ effects / (effects @ effects)) if effect > 0 else 0.0,
        known=known,
        is_finite=bool(torch.isfinite(difference).all()) or not known,
        is_centered=isinstance(logits, TopLogprobs),
        size=max(one.size for one in asked),
        _probes=probes,
        _logits=asked,
    )


@dataclass(frozen=True)
class _ProbeLogits:
    """A probe's recorded logits, and the tested model's of the same ids, all on the CPU.

    Attributes:
        adapter, base, seen: (P, TOP), float32. If they are log-probabilities, the mean of each position is subtracted,
            since they are logits up to a constant.
        known: (P, TOP), which of them were given.
        best: (P,), whether the tested model's highest logit is the recorded one.
        gaps: (P,), by how much the best recorded logit lies above the second one.
        size: The largest recorded logit.
    """

    adapter: torch.Tensor
    base: torch.Tensor
    seen: torch.Tensor
    known: torch.Tensor
    best: torch.Tensor
    gaps: torch.Tensor
    size: float

    def agrees(self, tolerance: float) -> torch.Tensor:
        """Where the two best recorded logits lie closer than rounding, either may come first."""
        return self.best | (self.gaps <= tolerance)


def _ask(logits: Logits | TopLogprobs, probe: Probe) -> _ProbeLogits:
    """Asks for a probe's logits.

    Raises:
        AdapterError: They have another shape than was asked for.
    """
    adapter, base = torch.tensor(probe.adapter_logits), torch.tensor(probe.base_logits)
    gaps, size = adapter[:, 0] - adapter[:, 1], float(adapter.abs().max())
    if not isinstance(logits, TopLogprobs):
        seen, best = _gather(logits, probe)
        return _ProbeLogits(adapter, base, seen, torch.ones_like(seen, dtype=torch.bool), best, gaps, size)
    given = logits.ask(probe.input_ids, probe.positions)
    _check_shape(len(given) == len(probe.positions), f"log-probabilities of {len(given)} positions", probe)
    seen = torch.tensor(
        [[row.get(token, torch.nan) for token in ids] for row, ids in zip(given, probe.token_ids, strict=True)]
    )
    known = torch.tensor([[token in row for token in ids] for row, ids in zip(given, probe.token_ids, strict=True)])
    known &= known.sum(1, keepdim=True) > 1  # one alone says nothing
    highest = [max(row, key=row.__getitem__, default=-1) for row in given]
    best = torch.tensor(highest) == torch.tensor(probe.token_ids)[:, 0]
    adapter, base, seen = (_subtract_mean(part, known) for part in (adapter, base, seen))
    return _ProbeLogits(adapter, base, seen, known, best, gaps, size)


def _gather(logits: Logits, probe: Probe) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the logits of a probe's ids, (P, TOP), and where the highest is the recorded one, (P,)."""
    given, ids = logits(probe.input_ids, probe.positions), torch.tensor(probe.token_ids)
    fits = given.ndim == 2 and len(given) == len(ids) and given.shape[1] > int(ids.max())
    _check_shape(fits, f"logits of the shape {tuple(given.shape)}", probe)
    ids = ids.to(given.device)
    return given.gather(1, ids).float().cpu(), (given.argmax(-1) == ids[:, 0]).cpu()


def _check_shape(fits: bool, given: str, probe: Probe) -> None:
    if not fits:
        raise AdapterError(
            f"the probes' logits are asked for at {len(probe.positions)} positions, for tokens up to "
            f"{max(max(ids) for ids in probe.token_ids)}, and what was given are {given}. Fix: give one row for each "
            "position that was asked for, over the base's whole vocabulary."
        )


def _subtract_mean(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Subtracts from each row the mean of what is known of it."""
    own = torch.where(known, values, 0.0)
    return own - own.sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp_min(1)
