"""The certificate: checks that a model with an adapter gives the logits that the adapter's probes recorded.

It tells rounding from a missing adapter. The effect of rounding is first assumed from the dtype's spacing, and measured
on the model (`moved.py`) if that is not enough. If the adapter changes the logits by less than rounding does, the
weights decide: `export/fold.py` measures how much of the adapter they contain.

The logits may come from anywhere (`logits.py`); rounding can be measured only on a model in memory.
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

# Allowed multiple of the measured effect of rounding: both sides round, other parts than linear layers round too, and
# merging rounds each weight once more.
_NOISE_ALLOWED = 4.0

# Share of the recorded tokens for which a server must return log-probabilities.
_LEAST_KNOWN = 0.5


@dataclass(frozen=True)
class Answers:
    """The result of greedy generation from a written folder, with its own files only.

    Attributes:
        prompts: Number of prompts that the adapter and the folder answered.
        longest: Maximum number of tokens of an answer.
        stopped: Number of answers that ended earlier, in both at the same token.
        undecided: Number of answers that differ from a token on where rounding decides.
        differences: Number of ways in which the folder's prompts, answers or stops differ from the adapter's.
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
        modules_expected: Number of modules that the adapter is on.
        modules_matched: Number of those that were found and filled, or merged.
        probes: Number of prompts that were replayed.
        max_logit_difference: Largest difference from the adapter's recorded logits.
        mean_logit_difference: Mean of the same.
        tolerance: The largest difference allowed, from the dtypes at training and now; or, if that was not enough, from
            what rounding was measured to do to this model.
        top1_agreement: Share of positions whose highest logit is the recorded one.
        effect: Mean difference between the recorded logits of the adapter and of the bare base.
        effect_kept: Share of the recorded effect that is present: the tested model's change from the base, projected on
            the recorded change. 1 is all of it, 0 none; rounding has no direction and averages out.
        dtype: Dtype of the tested model.
        update_kept: Share of the adapter's weight update that the weights contain; None if it was not measured.
        answers: The result of generating from a written folder; None if that was not done.
        notes: Allowed mismatches and other messages.
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
        """Whether rounding removed too much of the adapter's weight update."""
        return self.update_kept is not None and self.update_kept < 1.0 - EFFECT_MARGIN

    def failed(self, reason: str) -> Certificate:
        """Returns a copy that did not pass, with one more reason."""
        return replace(self, passed=False, reasons=[*self.reasons, reason])

    def as_json(self) -> dict[str, Any]:
        """Converts to plain data."""
        return asdict(self)

    def line(self) -> str:
        """Formats one line for the terminal."""
        verdict = "PASSED" if self.passed else "FAILED (" + "; ".join(self.reasons) + ")"
        stops = "" if self.answers is None else f", stops as the adapter does ({_stops(self.answers)})"
        return (
            f"certificate {verdict}: {self.modules_matched}/{self.modules_expected} modules, "
            f"max logit difference {self.max_logit_difference:.3g} (tolerance {self.tolerance:.3g}), "
            f"top-1 agreement {self.top1_agreement:.0%}, effect kept {self.effect_kept:.0%}"
            f"{stops if self.passed else ''}"
        )

    def require(self, fix: str = "") -> Certificate:
        """Returns the certificate if it passed.

        Args:
            fix: What to do if it did not pass.

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
    """Replays the probes on a model in memory, in evaluation mode, on which rounding can be measured.

    Otherwise like `replay_probes`.
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
    """Compares the logits of a model that should have the adapter with the recorded ones.

    Args:
        logits: Returns the tested model's logits, or some log-probabilities of a server.
        probes: The probes in the adapter's `lamina.json`.
        subject: Name of the tested model in messages.
        adapter_digest: Digest of the adapter.
        modules_expected: Number of modules that the adapter is on.
        modules_matched: Number of those that were found and filled, or merged.
        trained_dtype: Dtype of the base when the probes were recorded.
        dtype: Dtype of the tested model.
        moved: Perturbs the model to measure rounding; None if that is not possible.
        notes: Notes for the certificate.
        update_kept: Share of the adapter's weight update that the weights contain; None if it was not measured.

    Raises:
        AdapterError: There are no probes, the logits have a wrong shape, or there is no tolerance for a dtype.
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
            raise AdapterError(f"there is no tolerance for the dtype {dtype!r}, only for {', '.join(_SPACING)}.")


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
        notes.append(f"rounding alone changes this model's logits by up to {rounding.largest:.3g}, as measured")
    if not is_contradicted or found.effect > _NOISE_ALLOWED * rounding.mean:
        return _Allowance(tolerance, in_logits, notes)
    notes.append(
        f"the adapter changes the probes' logits by {found.effect:.2g}, which rounding can hide, so the weights "
        "decided whether it is there"
    )
    return _Allowance(tolerance, in_weights, notes)


def _modules_missing(matched: int, expected: int) -> list[str]:
    return [f"the adapter is on {matched} of its {expected} modules"] if matched != expected else []


def _why_failed(found: Comparison, allowance: _Allowance, update_kept: float | None, dtype: str) -> list[str]:
    """Returns why the logits are not the adapter's; nothing if they are."""
    top1 = found.top1_agreement(allowance.tolerance)
    faults = {
        f"the server returned log-probabilities for only {found.known:.0%} of the recorded tokens": found.known
        < _LEAST_KNOWN,
        "the logits are not finite": not found.is_finite,
        f"a logit differs from the recorded one by {found.largest:.3g}": found.largest > allowance.tolerance,
        _why_not_shown(found, update_kept, dtype): not allowance.shows_adapter,
        f"only {top1:.0%} of the top-1 tokens agree where rounding does not decide": top1 < 1.0,
    }
    return [reason for reason, is_found in faults.items() if is_found]


def _why_not_shown(found: Comparison, update_kept: float | None, dtype: str) -> str:
    if update_kept is not None and update_kept < 1.0 - EFFECT_MARGIN:
        return f"only {update_kept:.0%} of the adapter's weight update is left after rounding to {dtype}"
    if found.effect == 0.0:
        return "the adapter did not change the logits when they were recorded"
    return f"the logits show {found.kept:.0%} of the adapter's recorded effect"


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
