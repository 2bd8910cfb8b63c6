"""`python -m tests.support.zoo_page` writes docs/architectures.md: how each architecture of the zoo is run."""

from __future__ import annotations

import re
from pathlib import Path

from lamina.compute.fusion import FusionReport
from lamina.data.batch import Layout

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"

_COSTS = {
    Layout(together=False, own_attention=False): ("one at a time", "a forward and a backward for each document"),
    Layout(together=True, own_attention=True): (
        "packed, in the model's own attention",
        "attention with a mask over the whole micro-batch",
    ),
    Layout(together=False, own_attention=True): (
        "one at a time, in the model's own attention",
        "a forward and a backward for each document, and its own attention's memory",
    ),
}

_HEAD = """# Architectures

What `lamina train` runs fast is found out on the model itself, before the first step: two short documents go through
the model's own code one at a time, and through the fast path together, and their logits and gradients are compared
(`src/lamina/compute/fusion/exactness.py`). Where they differ, the next way is tried, and the run says which one it
takes, why, and what it costs on this machine. The last way is the model's own code with one document at a time, so
training is exact for every causal language model that transformers can train.

This page is made by `python -m tests.support.zoo_page` from tiny models of {count} architectures (transformers
{version}). A test holds it to what is found, and compares loss and adapter gradients of each with those of the model's
own code.

## Packed and fused

Documents are packed, and decoder layers run as fused layers: {fused}.

## Packed

Documents are packed in lamina's attention; layers run in transformers' code, or part by part: {packed}.

## Not packed

| architecture | documents go | because packed, | which costs |
|---|---|---|---|
{rows}
"""


def row(name: str, report: FusionReport) -> str:
    """The line of an architecture whose documents are not packed in lamina's attention."""
    how, cost = _COSTS[report.layout]
    found = re.search(r"because packed, (.*?)\.(?: On two|$)", report.fallback or "")
    assert found, report.fallback
    reason = re.sub(r" \(here up to \d+ tokens\)", "", found[1])
    reason = re.sub(r"\w+ does not go through", "it does not go through", re.sub(r" for \d+ tokens", "", reason))
    return f"| {name} | {how} | {reason} | {cost} |"


def page(reports: dict[str, FusionReport], version: str) -> str:
    """The whole page."""
    packed = {name: report for name, report in reports.items() if not report.fallback}
    fused = [name for name, report in packed.items() if report.complete]
    return _HEAD.format(
        count=len(reports),
        version=version,
        fused=", ".join(fused),
        packed=", ".join(name for name in packed if name not in fused),
        rows="\n".join(row(name, report) for name, report in reports.items() if report.fallback),
    )


def main() -> None:
    import transformers

    from lamina.compute.fusion import fast_path
    from tests.support.zoo import ARCHITECTURES, LONGEST, build_architecture

    reports = {}
    for name in sorted(ARCHITECTURES):
        with fast_path(build_architecture(name), longest=LONGEST) as report:
            reports[name] = report
    PAGE.write_text(page(reports, transformers.__version__), encoding="utf-8")


if __name__ == "__main__":
    main()
