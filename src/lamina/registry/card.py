"""The model card of a version: what its record says, for people and for the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from lamina.registry.evidence import GateRecord
from lamina.registry.facts import Change, Version, when
from lamina.registry.manifest import Manifest


def build_card(version: Version, manifest: Manifest, records: Sequence[GateRecord], history: Sequence[Change]) -> str:
    """Builds a model card: Markdown with the hub's metadata before it.

    Args:
        version: The version.
        manifest: Its manifest.
        records: Gate records about it, the newest first.
        history: The changes that touched it, the newest first.
    """
    parts = [
        _metadata(manifest),
        f"# {version.name}, version {version.number}",
        "An adapter trained with lamina. What follows is made from its record.",
        _table("What it is", _facts(version, manifest)),
        _usage(version, manifest),
        _training(manifest),
        *(_gate(record) for record in records[:3]),
        _history(history),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(manifest: Manifest) -> str:
    lines = ["library_name: peft", "tags: [lamina, " + json.dumps(manifest.method) + "]"]
    ref = str(manifest.base.get("ref") or "")
    if ref.count("/") == 1 and not ref.startswith((".", "/", "~")):
        lines.append(f"base_model: {json.dumps(ref)}")
    if manifest.license:
        lines.append(f"license: {json.dumps(manifest.license)}")
    return "\n".join(["---", *lines, "---"])


def _facts(version: Version, manifest: Manifest) -> Iterator[tuple[str, Any]]:
    yield "method", manifest.method
    yield "base", manifest.base.get("ref")
    yield "base's tensors", manifest.base.get("tensors")
    yield "base's tokenizer", manifest.base.get("tokenizer")
    yield "chat template", manifest.base.get("chat_template")
    yield "adapter's digest", manifest.adapter_digest
    yield "version's digest", version.digest
    yield "added", f"{when(version.created)} by {version.who}"
    yield "license", manifest.license
    yield "certificate", manifest.probes and f"{manifest.probes['count']} probes, replayed wherever it is loaded"
    yield "trained with", ", ".join(f"{name} {value}" for name, value in manifest.versions.items())
    yield "came from", ", ".join(manifest.parents)


def _usage(version: Version, manifest: Manifest) -> str:
    if manifest.lock is None:
        return ""
    return (
        "## How to use it\n\n```\nlamina registry pull OWNER/NAME --name "
        f"{version.name}\nlamina chat {version.name}:1\n```\n\nlamina checks that the base is the one that it was "
        "trained on, by the digests above, and replays the probes. peft loads it as well, without these checks."
    )


def _training(manifest: Manifest) -> str:
    rows = [
        (str(data.get("file") or data.get("path")), f"{data.get('rows')} rows, sha256 {data.get('sha256')}")
        for data in manifest.data
    ]
    summary = (manifest.run or {}).get("summary") or {}
    names = ("steps", "tokens", "train_loss_last", "eval_loss_first", "eval_loss", "trainable_parameters")
    rows += [(name.replace("_", " "), summary[name]) for name in names if summary.get(name) is not None]
    return _table("Training", rows)


def _gate(record: GateRecord) -> str:
    lines = [f"## Gate: {record.verdict.replace('_', ' ')} ({record.pair}, {record.created})", ""]
    lines += ["| check | passed | value | interval | limit |", "|---|---|---|---|---|"]
    for check in record.checks:
        passed = {True: "yes", False: "no", None: "not enough rows"}[check.passed]
        interval = "" if check.low is None or check.high is None else f"{check.low:.4g} to {check.high:.4g}"
        value, limit = ("" if number is None else f"{number:.4g}" for number in (check.value, check.limit))
        lines.append(f"| {_cell(check.name)} | {passed} | {value} | {interval} | {limit} |")
    return "\n".join(lines)


def _history(history: Sequence[Change]) -> str:
    forced = [change for change in history if change.override]
    if not forced:
        return ""
    lines = [
        f"* {when(change.at)}: {change.alias} was moved by {change.who} without evidence: {change.override}"
        for change in forced
    ]
    return "\n".join(["## Overrides", "", *lines])


def _table(title: str, rows: Any) -> str:
    kept = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows if value not in (None, "")]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *kept]) if kept else ""


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
