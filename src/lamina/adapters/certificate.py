"""The certificate: whether a model that should carry an adapter gives the logits that its probes recorded.

Rounding and absence are told apart by what each can do. How far rounding carries is assumed from the dtype's spacing
first, and measured on the model itself (`moved.py`) where that is not enough. An effect on the logits that is smaller
than that shows nothing; then the adapter is looked for in the weights, where `export/fold.py` says how much of it is.

Who computes the logits does not matter (`logits.py`); rounding can be measured on a model in memory alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from lamina.adapters.logits import Logits, TopLogprobs, model_logits
from lamina.adapters.moved import with_rounding_moved
from lamina.adapters.probe_logits import Comparison, Moved, Rounding, compare_with_recorded
from lamina.adapters.probes import Probe
from lamina.errors import AdapterError, CertificateError

# How far `effect_kept` may be from 1: a missing adapter gives 0, one that is applied twice 2.
EFFECT_MARGIN = 0.5

# Rounding of the compute dtype that the certificate allows for: logits are sums over a deep network of products, each
# rounded, so their error is some multiple of the dtype's spacing at the size of the largest logit.
_SPACING = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-23}
_SPACINGS_ALLOWED = {"bfloat16": 8.0, "float16": 8.0, "float32": 256.0}

# How often the movement that was measured may be seen. Both sides have their own rounding, it happens outside of linear
# layers too, and merging rounds each weight once more.
_NOISE_ALLOWED = 4.0

# Of a server's few log-probabilities: the share of the recorded tokens that must be among them.
_LEAST_KNOWN = 0.5


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


def replay_on_model(
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
    """Runs the probes through a model in memory, in evaluation mode, on which rounding can be measured.

    As `replay_probes` for everything else.
    """
    return replay_probes(
        model_logits(model),
        probes,
        subject=subject,
        adapter_digest=adapter_digest,
        modules_expected=modules_expected,
        modules_matched=modules_matched,
        trained_dtype=trained_dtype,
        dtype=str(model.dtype).removeprefix("torch."),
        moved=partial(with_rounding_moved, model),
        notes=notes,
        update_kept=update_kept,
    )


@torch.no_grad()
def replay_probes(
    logits: Logits | TopLogprobs,
    probes: Sequence[Probe],
    *,
    subject: str,
    adapter_digest: str,
    modules_expected: int,
    modules_matched: int,
    trained_dtype: str,
    dtype: str,
    moved: Moved | None = None,
    notes: Sequence[str] = (),
    update_kept: float | None = None,
) -> Certificate:
    """Asks for the logits of the probes where the adapter should be.

    Args:
        logits: Gives the tested model's logits, or the few log-probabilities of a server.
        probes: From the adapter's `lamina.json`.
        subject: What to call the model in messages.
        adapter_digest: Of the adapter.
        modules_expected: Modules that the adapter is on.
        modules_matched: Those found and filled, or folded in.
        trained_dtype: What the base was held in when the probes were recorded.
        dtype: What the tested model is held in.
        moved: Lets rounding be measured; None where that is not possible, so that it is assumed from the dtypes.
        notes: To be kept in the certificate.
        update_kept: How much of the adapter is in the weights; None where that is not known.

    Raises:
        AdapterError: There are no probes, what `logits` gives has another shape, or rounding to a dtype is not known.
    """
    _check_replayable(subject, probes, (trained_dtype, dtype))
    found = compare_with_recorded(logits, probes)
    measure = None if moved is None else partial(found.measure_rounding, logits, moved, _coarser(trained_dtype, dtype))
    allowance = _allow_for_rounding(found, _tolerance(trained_dtype, dtype, found), update_kept, measure)
    reasons = _modules_missing(modules_matched, modules_expected) + _why_failed(found, allowance, update_kept, dtype)
    return Certificate(
        passed=not reasons,
        subject=subject,
        adapter_digest=adapter_digest,
        modules_expected=modules_expected,
        modules_matched=modules_matched,
        probes=len(probes),
        max_logit_difference=found.largest,
        mean_logit_difference=found.mean,
        tolerance=allowance.tolerance,
        top1_agreement=found.top1_agreement(allowance.tolerance),
        effect=found.effect,
        effect_kept=found.kept,
        dtype=dtype,
        update_kept=update_kept,
        notes=[*notes, *allowance.notes],
        reasons=reasons,
    )


def _check_replayable(subject: str, probes: Sequence[Probe], dtypes: Sequence[str]) -> None:
    if not probes:
        raise AdapterError(f"{subject}: there are no probes to replay.")
    for dtype in dtypes:
        if dtype not in _SPACING:
            raise AdapterError(f"the dtype {dtype!r} has no tolerance; those that have one are {', '.join(_SPACING)}.")


@dataclass(frozen=True)
class _Allowance:
    """What is put down to rounding.

    Attributes:
        tolerance: The largest difference of a logit that is.
        shows_adapter: Whether the adapter's effect is in the logits or, where rounding can hide it, in the weights.
        notes: What was measured, and what it decided.
    """

    tolerance: float
    shows_adapter: bool
    notes: list[str] = field(default_factory=list)


def _allow_for_rounding(
    found: Comparison, tolerance: float, update_kept: float | None, measure: Callable[[], Rounding] | None
) -> _Allowance:
    """Returns what rounding explains: as assumed, unless that is not enough and it can be measured."""
    in_logits = abs(found.kept - 1.0) < EFFECT_MARGIN
    in_weights = update_kept is not None and abs(update_kept - 1.0) < EFFECT_MARGIN
    is_contradicted = update_kept is not None and in_logits != in_weights
    if measure is None or not found.is_finite or not (found.largest > tolerance or is_contradicted):
        return _Allowance(tolerance, in_logits)
    rounding, notes = measure(), []
    if found.largest > tolerance:
        tolerance = max(tolerance, _NOISE_ALLOWED * rounding.largest)
        notes.append(f"rounding alone was measured to move this model's logits by up to {rounding.largest:.3g}")
    if not is_contradicted or found.effect > _NOISE_ALLOWED * rounding.mean:
        return _Allowance(tolerance, in_logits, notes)
    notes.append(
        f"the adapter moves the probes' logits by {found.effect:.2g}, which rounding can hide, so that its presence "
        "was decided by the weights"
    )
    return _Allowance(tolerance, in_weights, notes)


def _modules_missing(matched: int, expected: int) -> list[str]:
    return [f"the adapter is on {matched} of its {expected} modules"] if matched != expected else []


def _why_failed(found: Comparison, allowance: _Allowance, update_kept: float | None, dtype: str) -> list[str]:
    """Returns why the logits are not the adapter's; nothing if they are."""
    top1 = found.top1_agreement(allowance.tolerance)
    faults = {
        f"log-probabilities of only {found.known:.0%} of the recorded tokens are given": found.known < _LEAST_KNOWN,
        "the logits are not finite": not found.is_finite,
        f"a logit differs from the recorded one by {found.largest:.3g}": found.largest > allowance.tolerance,
        _why_not_shown(found, update_kept, dtype): not allowance.shows_adapter,
        f"only {top1:.0%} of the clear top-1 tokens agree": top1 < 1.0,
    }
    return [reason for reason, is_found in faults.items() if is_found]


def _why_not_shown(found: Comparison, update_kept: float | None, dtype: str) -> str:
    if update_kept is not None and update_kept < 1.0 - EFFECT_MARGIN:
        return f"{update_kept:.0%} of what the adapter adds to the weights is left of it in {dtype}"
    if found.effect == 0.0:
        return "the adapter changed nothing when it was recorded"
    return f"the output shows {found.kept:.0%} of the adapter's recorded effect"


def _coarser(first: str, second: str) -> str:
    return max((first, second), key=lambda name: _SPACING[name])


def _tolerance(first: str, second: str, found: Comparison) -> float:
    coarser = _coarser(first, second)
    # In another dtype than at training, the base itself gives other logits, by as much again.
    times = 1.0 if first == second else 2.0
    if found.is_centered:
        times *= 2.0  # the mean that is subtracted has an error of its own
    return times * _SPACINGS_ALLOWED[coarser] * _SPACING[coarser] * max(1.0, found.size)


def _stops(answers: Answers) -> str:
    return f"{answers.stopped} of {answers.prompts} answers ended within {answers.longest} tokens"
