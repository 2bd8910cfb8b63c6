"""The manifest and the summary: as they are written, read, and kept where a newer version wrote them."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from lamina.errors import RunError
from lamina.runs import Run
from lamina.runs.manifest import BaseFacts, BaseWeights, DataFile, Hardware, LeftOut, Manifest, PackedWeights
from lamina.runs.summary import Summary
from tests.support.runs import SUMMARY

MANIFEST = Manifest(
    lamina="0.1.0",
    status="finished",
    base=BaseFacts("base", "sha256:1", "sha256:2"),
    data=[DataFile("rows.jsonl", "3", 16)],
    threads=1,
    weights=BaseWeights(9, 6, LeftOut({"experts": 3}, ["router"], {}), PackedWeights(9, 5, {"experts": 4})),
    versions={"torch": "2.13"},
    hardware=Hardware("x86_64", "a", None, 5, None),
    summary=SUMMARY,
)


def test_what_is_written_is_read() -> None:
    assert Summary.from_json(json.loads(json.dumps(SUMMARY.as_json()))) == SUMMARY
    assert Manifest.from_json(json.loads(json.dumps(MANIFEST.as_json()))) == MANIFEST
    assert Manifest.from_json({}) == Manifest() and Manifest().as_json() == {}


def test_figures_of_the_method_stand_beside_the_others() -> None:
    assert SUMMARY.as_json()["ranks_kept"] == 28
    names = [field.name for field in fields(Summary) if field.name != "figures"]
    assert list(SUMMARY.as_json()) == [*names, "ranks_kept"]


def test_what_is_not_known_is_null_and_what_an_earlier_version_did_not_write_is_not_there() -> None:
    later = ("adapted_weights_share", "packed_weights_share", "loss_type", "reference")
    later = (*later, "eval_metrics_first", "eval_metrics", "world_size", "strategy", "communication_seconds")
    later = (*later, "peak_memory_by_rank")
    old = replace(SUMMARY, eval_loss=None, figures={}, **dict.fromkeys(later))
    assert old.as_json()["eval_loss"] is None
    assert not {*later, "figures"} & old.as_json().keys()
    assert Summary.from_json(old.as_json()) == old
    assert MANIFEST.as_json()["hardware"] == {
        "machine": "x86_64",
        "cpu": "a",
        "cores": None,
        "memory_bytes": 5,
        "gpu": None,
    }


@pytest.mark.parametrize("name", [field.name for field in fields(Summary)][:17])
def test_a_figure_that_every_version_writes_must_be_there(name: str) -> None:
    content = SUMMARY.as_json()
    del content[name]
    with pytest.raises(ValueError, match=f"^{name}: "):
        Summary.from_json(content)


def test_a_run_reads_and_records(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert (run.manifest, run.summary, run.begun, run.status) == (Manifest(), None, False, None)
    run.manifest_path.write_text(json.dumps({"format": 1, "novelty": {"a": 1}, **MANIFEST.as_json()}))
    assert run.manifest == MANIFEST
    assert run.begun
    assert run.summary == replace(SUMMARY, run=str(run.path), adapter=str(run.adapter)), "it knows where it is"
    run.record(status="interrupted", summary=None)
    assert run.manifest == replace(MANIFEST, status="interrupted", summary=None)
    assert json.loads(run.manifest_path.read_text())["novelty"] == {"a": 1}, "a newer version's stays"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base": {"ref": "a"}}, "base.tensors: "),
        ({"data": [{"file": "a", "sha256": "b", "rows": "many"}]}, "data.0.rows: "),
        ({"summary": {"steps": 3}}, "run: "),
        ({"status": 5}, "status: "),
    ],
)
def test_a_damaged_one_names_the_field(change: dict[str, object], words: str, tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.manifest_path.write_text(json.dumps({**MANIFEST.as_json(), **change}))
    with pytest.raises(RunError, match=rf"manifest\.json: is not readable \({words}.*Fix: put back a copy"):
        run.manifest  # noqa: B018
