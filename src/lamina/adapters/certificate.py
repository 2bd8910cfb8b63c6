"""The certificate: whether a model that should carry an adapter gives the logits that its probes recorded.

Rounding and absence are told apart by what each can do. How far rounding carries is assumed from the dtype's spacing
first, and measured on the model itself (`moved.py`) where that is not enough. An effect on the logits that is smaller
than that shows nothing; then the adapter is looked for in the weights, where `export/fold.py` says how much of it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from lamina.adapters.moved import with_rounding_moved
from lamina.adapters.probes import Probe, probe_logits
from lamina.errors import CertificateError

# How far `effect_kept` may be from 1: a missing adapter gives 0, one that is applied twice 2.
EFFECT_MARGIN = 0.5

# Rounding of the compute dtype that the certificate allows for: logits are sums over a deep network of products, each
# rounded, so their error is some multiple of the dtype's spacing at the size of the largest logit.
_SPACING = {"bfloat16": 2.0**-8, "float32": 2.0**-23}
_SPACINGS_ALLOWED = {"bfloat16": 8.0, "float32": 256.0}

# Where it is measured: draws, and how often the largest movement of all of them may be seen. Both sides have their own
# rounding, it happens outside of linear layers too, and merging rounds each weight once more.
_DRAWS = 3
_NOISE_ALLOWED = 4.0


@dataclass(frozen=True)
class Answers:
    """What greedy generation from a written folder alone showed.

    Attributes:
        prompts: Answered by the adapter and by the folder.
        longest: Tokens that an answer might have.
        stopped: Answers that ended by themselves before that, in both at the same token.
        undecided: Answers that went apart at a token where rounding decides.
        differences: Ways in which the folder asks, answers or stops otherwise than the adapter.
    """

    prompts: int
    longest: int
    stopped: int
    undecided: int
    differences: int


@dataclass(frozen=True)
class Certificate:
    """The result of replaying an adapter's probes.

    Attributes:
        passed: Whether the adapter is applied and gives the recorded logits.
        subject: What was tested, such as a merged folder.
        adapter_digest: Of the adapter that the probes belong to.
        modules_expected: Modules that the adapter is on.
        modules_matched: Those found and filled, or folded in.
        probes: How many prompts were replayed.
        max_logit_difference: Largest difference from the adapter's recorded logits.
        mean_logit_difference: Mean of the same.
        tolerance: The largest difference allowed, from the dtypes at training and now; or, if that was not enough, from
            what rounding was measured to do to this model.
        top1_agreement: Share of positions whose highest logit is the recorded one.
        effect: Mean difference between adapter and bare base as recorded: what there is to see.
        effect_kept: How much of the recorded effect is there: the tested model's change from the base, projected on the
            recorded change. 1 is all of it, 0 none; rounding, which has no direction, averages out.
        dtype: What the tested model was held in.
        update_kept: How much of what the adapter adds to the weights is in them, measured on the weights; None where
            that is not known.
        answers: Of a written folder, what generating from it showed.
        notes: Allowed mismatches and the like.
        reasons: Why it did not pass.
    """

    passed: bool
    subject: str
    adapter_digest: str
    modules_expected: int
    modules_matched: int
    probes: int
    max_logit_difference: float
    mean_logit_difference: float
    tolerance: float
    top1_agreement: float
    effect: float
    effect_kept: float
    dtype: str
    update_kept: float | None = None
    answers: Answers | None = None
    notes: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @property
    def is_rounded_away(self) -> bool:
        """Whether the weights hold too little of what the adapter adds to them."""
        return self.update_kept is not None and self.update_kept < 1.0 - EFFECT_MARGIN

    def failed(self, reason: str) -> Certificate:
        """Itself with one more reason why it did not pass."""
        return replace(self, passed=False, reasons=[*self.reasons, reason])

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def line(self) -> str:
        """For people."""
        verdict = "PASSED" if self.passed else "FAILED (" + "; ".join(self.reasons) + ")"
        stops = "" if self.answers is None else f", stops as the adapter does ({_stops(self.answers)})"
        return (
            f"certificate {verdict}: {self.modules_matched}/{self.modules_expected} modules, "
            f"max logit difference {self.max_logit_difference:.3g} (tolerance {self.tolerance:.3g}), "
            f"top-1 agreement {self.top1_agreement:.0%}, effect kept {self.effect_kept:.0%}"
            f"{stops if self.passed else ''}"
        )

    def require(self, fix: str = "") -> Certificate:
        """Itself, if it passed.

        Args:
            fix: What to do if it did not.

        Raises:
            CertificateError: It did not.
        """
        if not self.passed:
            raise CertificateError(f"{self.subject}: {self.line()}." + (f" Fix: {fix}." if fix else ""), self)
        return self


@torch.no_grad()
def replay_probes(
    model: PreTrainedModel,
    probes: Sequence[Probe],
    *,
    subject: str,
    adapter_digest: str,
    modules_expected: int,
    modules_matched: int,
    trained_dtype: str,
    notes: Sequence[str] = (),
    update_kept: float | None = None,
) -> Certificate:
    """Runs the probes through a model that should carry the adapter.

    Args:
        model: The model to test, in evaluation mode.
        probes: From the adapter's `lamina.json`.
        subject: What to call the model in messages.
        adapter_digest: Of the adapter.
        modules_expected: Modules that the adapter is on.
        modules_matched: Those found and filled, or folded in.
        trained_dtype: What the base was held in when the probes were recorded.
        notes: To be kept in the certificate.
        update_kept: How much of the adapter is in the weights; None where that is not known.
    """
    dtype = str(model.dtype).removeprefix("torch.")
    seen = [_Seen.of(model, probe) for probe in probes]
    difference = torch.cat([(one.seen - one.adapter).abs().flatten() for one in seen])
    change = torch.cat([(one.seen - one.base).flatten() for one in seen])
    effects = torch.cat([(one.adapter - one.base).flatten() for one in seen])
    effect = float(effects.abs().mean())
    kept = float(change @ effects / (effects @ effects)) if effect > 0 else 0.0
    is_shown = abs(kept - 1.0) < EFFECT_MARGIN
    is_in_weights = update_kept is not None and abs(update_kept - 1.0) < EFFECT_MARGIN
    largest, notes, reasons = float(difference.max()), list(notes), []
    finite = bool(torch.isfinite(difference).all())

    tolerance = max(_tolerance(trained_dtype, dtype, one.adapter) for one in seen)
    logits_and_weights_agree = update_kept is None or is_shown == is_in_weights
    if finite and (largest > tolerance or not logits_and_weights_agree):
        noise = _measure_noise(model, probes, seen, _coarser(trained_dtype, dtype))
        if largest > tolerance:
            tolerance = max(tolerance, _NOISE_ALLOWED * noise.largest)
            notes.append(f"rounding alone was measured to move this model's logits by up to {noise.largest:.3g}")
        if not logits_and_weights_agree and effect <= _NOISE_ALLOWED * noise.mean:
            is_shown = is_in_weights
            notes.append(
                f"the adapter moves the probes' logits by {effect:.2g}, which rounding can hide, so that its presence "
                "was decided by the weights"
            )

    if modules_matched != modules_expected:
        reasons.append(f"the adapter is on {modules_matched} of its {modules_expected} modules")
    if not finite:
        reasons.append("the logits are not finite")
    if largest > tolerance:
        reasons.append(f"a logit differs from the recorded one by {largest:.3g}")
    if not is_shown:
        reasons.append(_why_not_shown(effect, kept, update_kept, dtype))
    top1 = float(torch.cat([one.agrees(tolerance) for one in seen]).float().mean())
    if top1 < 1.0:
        reasons.append(f"only {top1:.0%} of the clear top-1 tokens agree")
    return Certificate(
        passed=not reasons,
        subject=subject,
        adapter_digest=adapter_digest,
        modules_expected=modules_expected,
        modules_matched=modules_matched,
        probes=len(probes),
        max_logit_difference=largest,
        mean_logit_difference=float(difference.mean()),
        tolerance=tolerance,
        top1_agreement=top1,
        effect=effect,
        effect_kept=kept,
        dtype=dtype,
        update_kept=update_kept,
        notes=notes,
        reasons=reasons,
    )


@dataclass(frozen=True)
class _Seen:
    """A probe's recorded logits, (P, TOP), and the tested model's of the same ids."""

    adapter: torch.Tensor
    base: torch.Tensor
    seen: torch.Tensor
    best: torch.Tensor  # (P,), whether the tested model's highest logit is the recorded one

    @classmethod
    def of(cls, model: PreTrainedModel, probe: Probe) -> _Seen:
        ids = torch.tensor(probe.token_ids, device=model.device)
        logits = probe_logits(model, probe)
        adapter, base = (torch.tensor(part, device=model.device) for part in (probe.adapter_logits, probe.base_logits))
        return cls(adapter, base, logits.gather(1, ids), logits.argmax(-1) == ids[:, 0])

    def agrees(self, tolerance: float) -> torch.Tensor:
        """Where the two best recorded logits lie closer than rounding, either may come first."""
        return self.best | (self.adapter[:, 0] - self.adapter[:, 1] <= tolerance)


@dataclass(frozen=True)
class _Noise:
    """What rounding alone does to the recorded logits."""

    largest: float
    mean: float


def _measure_noise(model: PreTrainedModel, probes: Sequence[Probe], seen: Sequence[_Seen], dtype: str) -> _Noise:
    moves = []
    for draw in range(_DRAWS):
        with with_rounding_moved(model, draw, getattr(torch, dtype)):
            for probe, one in zip(probes, seen, strict=True):
                ids = torch.tensor(probe.token_ids, device=model.device)
                moves.append((probe_logits(model, probe).gather(1, ids) - one.seen).abs().flatten())
    moved = torch.cat(moves)
    return _Noise(float(moved.max()), float(moved.mean()))


def _why_not_shown(effect: float, kept: float, update_kept: float | None, dtype: str) -> str:
    if update_kept is not None and update_kept < 1.0 - EFFECT_MARGIN:
        return f"{update_kept:.0%} of what the adapter adds to the weights is left of it in {dtype}"
    if effect == 0.0:
        return "the adapter changed nothing when it was recorded"
    return f"the output shows {kept:.0%} of the adapter's recorded effect"


def _coarser(first: str, second: str) -> str:
    return max((first, second), key=lambda name: _SPACING[name])


def _tolerance(first: str, second: str, recorded: torch.Tensor) -> float:
    coarser = _coarser(first, second)
    # In another dtype than at training, the base itself gives other logits, by as much again.
    times = 1.0 if first == second else 2.0
    return times * _SPACINGS_ALLOWED[coarser] * _SPACING[coarser] * max(1.0, float(recorded.abs().max()))


def _stops(answers: Answers) -> str:
    return f"{answers.stopped} of {answers.prompts} answers ended within {answers.longest} tokens"
