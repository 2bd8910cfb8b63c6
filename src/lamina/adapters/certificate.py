"""The certificate: whether a model that should carry an adapter gives the logits that its probes recorded.

Rounding and absence are told apart by what each can do. How far rounding carries is assumed from the dtype's spacing
first, and measured on the model itself (`moved.py`) where that is not enough. An effect on the logits that is smaller
than that shows nothing; then the adapter is looked for in the weights, where `export/fold.py` says how much of it is.

Who computes the logits does not matter (`logits.py`); rounding can be measured on a model in memory alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from lamina.adapters.logits import Logits, TopLogprobs, model_logits
from lamina.adapters.moved import with_rounding_moved
from lamina.adapters.probes import Probe
from lamina.errors import AdapterError, CertificateError

# How far `effect_kept` may be from 1: a missing adapter gives 0, one that is applied twice 2.
EFFECT_MARGIN = 0.5

# Rounding of the compute dtype that the certificate allows for: logits are sums over a deep network of products, each
# rounded, so their error is some multiple of the dtype's spacing at the size of the largest logit.
_SPACING = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-23}
_SPACINGS_ALLOWED = {"bfloat16": 8.0, "float16": 8.0, "float32": 256.0}

# Where it is measured: draws, and how often the largest movement of all of them may be seen. Both sides have their own
# rounding, it happens outside of linear layers too, and merging rounds each weight once more.
_DRAWS = 3
_NOISE_ALLOWED = 4.0

# Of a server's few log-probabilities: the share of the recorded tokens that must be among them.
_LEAST_KNOWN = 0.5

# Inside what it gives, logits are as rounding to a dtype, with a seed, might have made them.
Moved = Callable[[int, torch.dtype], contextlib.AbstractContextManager[None]]


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
    if not probes:
        raise AdapterError(f"{subject}: there are no probes to replay.")
    for each in (trained_dtype, dtype):
        if each not in _SPACING:
            raise AdapterError(f"the dtype {each!r} has no tolerance; those that have one are {', '.join(_SPACING)}.")
    seen = [_see(logits, probe) for probe in probes]
    difference = torch.cat([(one.seen - one.adapter)[one.known].abs() for one in seen])
    change = torch.cat([(one.seen - one.base)[one.known] for one in seen])
    effects = torch.cat([(one.adapter - one.base)[one.known] for one in seen])
    known = len(effects) / sum(one.known.numel() for one in seen)
    if not known:
        difference, change, effects = (torch.tensor([value]) for value in (torch.inf, 0.0, 0.0))
    effect = float(effects.abs().mean())
    kept = float(change @ effects / (effects @ effects)) if effect > 0 else 0.0
    is_shown = abs(kept - 1.0) < EFFECT_MARGIN
    is_in_weights = update_kept is not None and abs(update_kept - 1.0) < EFFECT_MARGIN
    largest, notes, reasons = float(difference.max()), list(notes), []
    finite = bool(torch.isfinite(difference).all()) or not known

    tolerance = _tolerance(trained_dtype, dtype, max(one.size for one in seen))
    if isinstance(logits, TopLogprobs):
        tolerance *= 2.0  # what is taken off as the mean has an error of its own
    logits_and_weights_agree = update_kept is None or is_shown == is_in_weights
    if finite and moved is not None and (largest > tolerance or not logits_and_weights_agree):
        noise = _measure_noise(logits, moved, probes, seen, _coarser(trained_dtype, dtype))
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
    if known < _LEAST_KNOWN:
        reasons.append(f"log-probabilities of only {known:.0%} of the recorded tokens are given")
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
    """A probe's recorded logits, and the tested model's of the same ids, all on the CPU.

    Attributes:
        adapter, base, seen: (P, TOP), float32. Of log-probabilities, each position's less their mean: what is left of
            logits that are known up to a number.
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


def _see(logits: Logits | TopLogprobs, probe: Probe) -> _Seen:
    """Asks for a probe's logits.

    Raises:
        AdapterError: They have another shape than was asked for.
    """
    adapter, base = torch.tensor(probe.adapter_logits), torch.tensor(probe.base_logits)
    gaps, size = adapter[:, 0] - adapter[:, 1], float(adapter.abs().max())
    if not isinstance(logits, TopLogprobs):
        seen, best = _taken(logits, probe)
        return _Seen(adapter, base, seen, torch.ones_like(seen, dtype=torch.bool), best, gaps, size)
    given = logits.ask(probe.input_ids, probe.positions)
    _check_shape(len(given) == len(probe.positions), f"log-probabilities of {len(given)} positions", probe)
    seen = torch.tensor(
        [[row.get(token, torch.nan) for token in ids] for row, ids in zip(given, probe.token_ids, strict=True)]
    )
    known = torch.tensor([[token in row for token in ids] for row, ids in zip(given, probe.token_ids, strict=True)])
    known &= known.sum(1, keepdim=True) > 1  # one alone says nothing
    highest = [max(row, key=row.__getitem__, default=-1) for row in given]
    best = torch.tensor(highest) == torch.tensor(probe.token_ids)[:, 0]
    adapter, base, seen = (_less_mean(part, known) for part in (adapter, base, seen))
    return _Seen(adapter, base, seen, known, best, gaps, size)


def _taken(logits: Logits, probe: Probe) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of a probe's ids, (P, TOP), and where the highest is the recorded one, (P,)."""
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


def _less_mean(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Each row less the mean of what is known of it."""
    own = torch.where(known, values, 0.0)
    return own - own.sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp_min(1)


@dataclass(frozen=True)
class _Noise:
    """What rounding alone does to the recorded logits."""

    largest: float
    mean: float


def _measure_noise(
    logits: Logits | TopLogprobs, moved: Moved, probes: Sequence[Probe], seen: Sequence[_Seen], dtype: str
) -> _Noise:
    moves = []
    for draw in range(_DRAWS):
        with moved(draw, getattr(torch, dtype)):
            for probe, one in zip(probes, seen, strict=True):
                other = _see(logits, probe)
                moves.append((other.seen - one.seen)[one.known & other.known].abs())
    both = torch.cat(moves)
    return _Noise(float(both.max()), float(both.mean()))


def _why_not_shown(effect: float, kept: float, update_kept: float | None, dtype: str) -> str:
    if update_kept is not None and update_kept < 1.0 - EFFECT_MARGIN:
        return f"{update_kept:.0%} of what the adapter adds to the weights is left of it in {dtype}"
    if effect == 0.0:
        return "the adapter changed nothing when it was recorded"
    return f"the output shows {kept:.0%} of the adapter's recorded effect"


def _coarser(first: str, second: str) -> str:
    return max((first, second), key=lambda name: _SPACING[name])


def _tolerance(first: str, second: str, size: float) -> float:
    coarser = _coarser(first, second)
    # In another dtype than at training, the base itself gives other logits, by as much again.
    times = 1.0 if first == second else 2.0
    return times * _SPACINGS_ALLOWED[coarser] * _SPACING[coarser] * max(1.0, size)


def _stops(answers: Answers) -> str:
    return f"{answers.stopped} of {answers.prompts} answers ended within {answers.longest} tokens"
