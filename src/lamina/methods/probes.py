"""Probes: a few prompts with the logits that the adapter gave at the end of training, and that the bare base gave.

Replaying them on any model that claims to carry the adapter (loaded, merged, exported) shows whether it does. The
prompts are lamina's own, so an adapter carries none of its training data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from transformers import PreTrainedModel

from lamina.data.example import Message
from lamina.data.template import ChatTemplate
from lamina.errors import AdapterError, CertificateError, NewerVersionError
from lamina.methods.base import Injection

PROMPTS = (
    "Write one sentence about the sea.",
    "My order has not arrived yet. What should I do?",
    "What is 17 plus 25?",
    "List three things to pack for a weekend in the mountains.",
)
ANSWER_TOKENS = 12
TOP = 8

# How far `effect_kept` may be from 1: a missing adapter gives 0, one that is applied twice 2.
EFFECT_MARGIN = 0.5

# Rounding of the compute dtype that the certificate allows for: logits are sums over a deep network of products, each
# rounded, so their error is some multiple of the dtype's spacing at the size of the largest logit.
_SPACING = {"bfloat16": 2.0**-8, "float32": 2.0**-23}
_SPACINGS_ALLOWED = {"bfloat16": 8.0, "float32": 256.0}


@dataclass(frozen=True)
class Probe:
    """One prompt and what the model said.

    Attributes:
        prompt: The user's turn.
        input_ids: Rendered prompt and the adapter's own greedy answer.
        positions: Where in `input_ids` logits were taken (P of them).
        token_ids: (P, TOP) ids of the adapter's highest logits, in falling order.
        adapter_logits: (P, TOP) the adapter's logits of those ids.
        base_logits: (P, TOP) the bare base's logits of the same ids.
    """

    prompt: str
    input_ids: list[int]
    positions: list[int]
    token_ids: list[list[int]]
    adapter_logits: list[list[float]]
    base_logits: list[list[float]]

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
        unknown = sorted(value.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise NewerVersionError("lamina.json", "", f"its probes have {', '.join(unknown)}, not known here")
        try:
            return cls(**value)
        except TypeError as error:
            raise AdapterError(
                f"lamina.json: a probe is not readable ({error}). Fix: copy the adapter again."
            ) from None


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
        tolerance: The largest difference allowed, from the dtypes at training and now.
        top1_agreement: Share of positions whose highest logit is the recorded one.
        effect: Mean difference between adapter and bare base as recorded: what there is to see.
        effect_kept: How much of the recorded effect is there: the tested model's change from the base, projected on the
            recorded change. 1 is all of it, 0 none; rounding, which has no direction, averages out.
        dtype: What the tested model was held in.
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
    notes: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def line(self) -> str:
        """For people."""
        verdict = "PASSED" if self.passed else "FAILED (" + "; ".join(self.reasons) + ")"
        return (
            f"certificate {verdict}: {self.modules_matched}/{self.modules_expected} modules, "
            f"max logit difference {self.max_logit_difference:.3g} (tolerance {self.tolerance:.3g}), "
            f"top-1 agreement {self.top1_agreement:.0%}, effect kept {self.effect_kept:.0%}"
        )

    def require(self) -> Certificate:
        """Itself, if it passed.

        Raises:
            CertificateError: It did not.
        """
        if not self.passed:
            raise CertificateError(f"{self.subject}: {self.line()}", self)
        return self


@torch.no_grad()
def record_probes(injection: Injection, template: ChatTemplate, prompts: Sequence[str] = PROMPTS) -> list[Probe]:
    """Records what the adapter, and the bare base, say to each prompt. The model must be in evaluation mode."""
    model = injection.model
    texts = [template.render([Message("user", prompt)], add_generation_prompt=True) for prompt in prompts]
    rendered: list[list[int]] = [template.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    probes = []
    for prompt, ids, answer in zip(prompts, rendered, _answers(model, rendered, template.stop_token_id), strict=True):
        positions = list(range(len(ids) - 1, len(answer) - 1))
        adapter = _logits(model, answer, positions)
        top = adapter.topk(min(TOP, adapter.shape[-1]), dim=-1)
        with injection.disabled():
            base = _logits(model, answer, positions).gather(1, top.indices)
        probes.append(Probe(prompt, answer, positions, top.indices.tolist(), top.values.tolist(), base.tolist()))
    return probes


def _answers(model: PreTrainedModel, prompts: Sequence[list[int]], stop: int) -> list[list[int]]:
    """Each prompt with the model's greedy answer, found at once: a quantized base is turned back for every token."""
    longest = max(map(len, prompts))
    padding = [longest - len(ids) for ids in prompts]
    rows = [[stop] * pad + ids for pad, ids in zip(padding, prompts, strict=True)]
    seen = [[0] * pad + [1] * len(ids) for pad, ids in zip(padding, prompts, strict=True)]
    output = model.generate(  # pyright: ignore[reportCallIssue]
        torch.tensor(rows, device=model.device),
        attention_mask=torch.tensor(seen, device=model.device),
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        pad_token_id=stop,
    ).tolist()
    answers = [row[longest:] for row in output]
    ends = [answer.index(stop) + 1 if stop in answer else len(answer) for answer in answers]
    return [ids + answer[:end] for ids, answer, end in zip(prompts, answers, ends, strict=True)]


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
    """
    dtype = str(model.dtype).removeprefix("torch.")
    differences, changes, recorded, agree = [], [], [], []
    for probe in probes:
        ids = torch.tensor(probe.token_ids, device=model.device)
        logits = _logits(model, probe.input_ids, probe.positions)
        adapter = torch.tensor(probe.adapter_logits, device=model.device)
        base = torch.tensor(probe.base_logits, device=model.device)
        seen = logits.gather(1, ids)
        differences.append((seen - adapter).abs().flatten())
        changes.append((seen - base).flatten())
        recorded.append((adapter - base).flatten())
        tolerance = _tolerance(trained_dtype, dtype, float(adapter.abs().max()))
        # Where the two best recorded logits lie closer than rounding, either may come first.
        clear = adapter[:, 0] - adapter[:, 1] > tolerance
        agree.append((logits.argmax(-1) == ids[:, 0]) | ~clear)
    difference, change, effects = torch.cat(differences), torch.cat(changes), torch.cat(recorded)
    largest = max(abs(logit) for probe in probes for row in probe.adapter_logits for logit in row)
    tolerance = _tolerance(trained_dtype, dtype, largest)
    effect = float(effects.abs().mean())
    kept = float(change @ effects / (effects @ effects)) if effect > 0 else 0.0
    top1 = float(torch.cat(agree).float().mean())

    reasons = []
    if modules_matched != modules_expected:
        reasons.append(f"the adapter is on {modules_matched} of its {modules_expected} modules")
    if not bool(torch.isfinite(difference).all()):
        reasons.append("the logits are not finite")
    if float(difference.max()) > tolerance:
        reasons.append(f"a logit differs from the recorded one by {float(difference.max()):.3g}")
    if effect == 0.0:
        reasons.append("the adapter changed nothing when it was recorded")
    elif not abs(kept - 1.0) < EFFECT_MARGIN:
        reasons.append(f"the output shows {kept:.0%} of the adapter's recorded effect")
    if top1 < 1.0:
        reasons.append(f"only {top1:.0%} of the clear top-1 tokens agree")
    return Certificate(
        passed=not reasons,
        subject=subject,
        adapter_digest=adapter_digest,
        modules_expected=modules_expected,
        modules_matched=modules_matched,
        probes=len(probes),
        max_logit_difference=float(difference.max()),
        mean_logit_difference=float(difference.mean()),
        tolerance=tolerance,
        top1_agreement=top1,
        effect=effect,
        effect_kept=kept,
        dtype=dtype,
        notes=list(notes),
        reasons=reasons,
    )


def _logits(model: PreTrainedModel, ids: list[int], positions: list[int]) -> torch.Tensor:
    """float32 logits (positions, vocabulary) of one sequence."""
    logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
    return logits[torch.tensor(positions, device=model.device)].float()


def _tolerance(first: str, second: str, largest: float) -> float:
    coarser = max((first, second), key=lambda name: _SPACING[name])
    # In another dtype than at training, the base itself gives other logits, by as much again.
    times = 1.0 if first == second else 2.0
    return times * _SPACINGS_ALLOWED[coarser] * _SPACING[coarser] * max(1.0, largest)
