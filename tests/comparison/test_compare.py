"""`compare`: which candidates there are, which processes run, and what is not run again.

Training is only pretended here; `tests/cli/test_compare.py` trains.
"""

from __future__ import annotations

import itertools
import json
import re
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lamina.comparison import compare as compare_module
from lamina.comparison.candidates import Candidate, build_candidates, split_choices
from lamina.comparison.compare import compare, rung_shares, shortened
from lamina.comparison.measure import Measuring
from lamina.comparison.report import _labels
from lamina.config import load_config
from lamina.errors import ConfigError
from lamina.fleet import pool
from lamina.fleet.task import Ended, Resources, Task
from lamina.runs.summary import Summary

VALUES: dict[str, Any] = {
    "model": "base",
    "data": {"train": "rows.jsonl"},
    "method": {"type": "lora", "r": 8, "lora_alpha": 4},
    "train": {"max_steps": 27},
}


def build(out: Path = Path("out"), **choices: Any) -> list[Candidate]:
    return build_candidates(VALUES, out, **choices)


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("method.r=4", "method.r", ["4"]),
        ("method.r=4, 8,16", "method.r", ["4", "8", "16"]),
        (
            "method.target_modules=all-linear,[q_proj, v_proj]",
            "method.target_modules",
            ["all-linear", "[q_proj, v_proj]"],
        ),
        ("data.train='a,b.jsonl'", "data.train", ["'a,b.jsonl'"]),
        ("method.rank_pattern={a: 1, b: 2}", "method.rank_pattern", ["{a: 1, b: 2}"]),
    ],
)
def test_choices_are_split_at_their_own_commas(text: str, key: str, values: list[str]) -> None:
    assert split_choices(text) == (key, values)


@pytest.mark.parametrize("text", ["method.r", "=4", "method.r=", "method.r=4,,8"])
def test_choices_without_a_key_or_a_value_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        split_choices(text)


def test_a_grid_gives_every_combination_and_its_name() -> None:
    found = build(grid={"method.r": ["4", "8"], "method.target_modules": ["all-linear", "[q_proj, v_proj]"]})
    assert [c.name for c in found] == [
        "lora-r=4-target_modules=all-linear",
        "lora-r=4-target_modules=q_proj+v_proj",
        "lora-r=8-target_modules=all-linear",
        "lora-r=8-target_modules=q_proj+v_proj",
    ]
    dumps = [c.config.method.model_dump() for c in found]
    assert [(m["r"], m["lora_alpha"]) for m in dumps] == [(4, 4), (4, 4), (8, 4), (8, 4)]
    assert dumps[1]["target_modules"] == ["q_proj", "v_proj"]
    assert found[1].config.output_dir == "out/candidates/lora-r=4-target_modules=q_proj+v_proj"
    assert {c.config.seed for c in found} == {0}
    assert len({c.digest() for c in found}) == 4


def test_a_single_value_is_an_override_and_no_part_of_the_name() -> None:
    (only,) = build(grid={"train.max_steps": ["5"]})
    assert (only.name, only.config.train.max_steps) == ("lora", 5)


def test_methods_take_over_what_they_have_and_say_what_they_have_not() -> None:
    found = build(methods=["lora", "peft"], grid={"method.peft_type": ["HRA", "OFT"]})
    assert [c.name for c in found] == ["lora", "peft-peft_type=HRA", "peft-peft_type=OFT"]
    assert found[0].notes == ["lora takes no peft_type"]
    assert found[1].notes == ["peft takes no r", "peft takes no lora_alpha"]
    assert found[1].config.method.model_dump() == {"type": "peft", "peft_type": "HRA"}
    given = build(methods=["peft"], grid={"method.r": ["2", "4"], "method.peft_type": ["HRA"]})
    assert [c.config.method.model_dump()["r"] for c in given] == [2, 4]
    assert given[0].notes == ["peft takes no lora_alpha"]


def test_a_field_that_means_something_else_does_not_go_along() -> None:
    values = {**VALUES, "method": {"type": "lora", "r": 16, "target_modules": "all-linear", "lora_dropout": 0.1}}
    dora, ia3, norms, vera = build_candidates(values, Path("out"), methods=["dora", "ia3", "ln_tuning", "vera"])
    assert dora.notes == []
    assert dora.config.method.model_dump()["lora_dropout"] == 0.1
    assert {c.config.method.model_dump()["target_modules"] for c in (ia3, norms)} == {None}
    assert "ia3 keeps its own target_modules (None)" in ia3.notes
    assert vera.config.method.model_dump()["r"] == 256
    assert "vera keeps its own r (256)" in vera.notes
    (asked,) = build_candidates(values, Path("out"), methods=["vera"], grid={"method.r": ["64"]})
    assert asked.config.method.model_dump()["r"] == 64


def test_learning_rates_are_the_methods_own_unless_given() -> None:
    lora, full = build(methods=["lora", "full"])
    assert lora.config.train.learning_rate == lora.config.method.learning_rate
    assert full.config.train.learning_rate == full.config.method.learning_rate
    assert lora.config.train.learning_rate != full.config.train.learning_rate
    given = build(methods=["lora", "full"], grid={"train.learning_rate": ["0.5"]})
    assert {c.config.train.learning_rate for c in given} == {0.5}


def test_named_candidates_stand_alone_or_beside_others() -> None:
    (alone,) = build(named={"small": ["method.r=1"]})
    assert (alone.name, alone.config.method.model_dump()["r"]) == ("small", 1)
    assert [c.name for c in build(methods=["lora"], named={"small": ["method.r=1"]})] == ["lora", "small"]
    fixed = {"train.max_steps": ["5"], "method.lora_alpha": ["9"]}
    (alone,) = build(named={"small": ["method.r=1"]}, grid=fixed)
    assert (alone.config.train.max_steps, alone.config.method.model_dump()["lora_alpha"]) == (5, 9)
    (other,) = build(named={"hra": ["method.type=peft", "method.peft_type=HRA"]}, grid={"method.r": ["3"]})
    assert other.config.method.model_dump() == {"type": "peft", "peft_type": "HRA", "r": 3}
    assert other.notes == ["peft takes no lora_alpha"]


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"methods": ["lroa"]}, ("--methods", "'lora'")),
        ({"grid": {"method.r": ["0", "-1"]}}, ("2 problems", "lora-r=0: method.r", "lora-r=-1: method.r")),
        ({"grid": {"train.max_stps": ["4"]}}, ("'max_steps'",)),
        ({"named": {"a/b": []}}, ("--candidate", "'a/b'")),
        ({"named": {"a": ["method.type=lroa"]}}, ("a: method.type", "'lora'")),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(choices: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**choices)
    for word in words:
        assert word in str(caught.value)


def test_rungs_are_powers_of_three() -> None:
    assert rung_shares(3) == pytest.approx([1 / 3, 1])
    assert rung_shares(26) == pytest.approx([1 / 9, 1 / 3, 1])
    assert rung_shares(27) == pytest.approx([1 / 27, 1 / 9, 1 / 3, 1])


def test_a_rung_has_its_share_of_steps_or_epochs(tmp_path: Path) -> None:
    steps = load_config(VALUES)
    assert shortened(steps, 1 / 9, tmp_path).train.max_steps == 3
    epochs = load_config({**VALUES, "train": {"num_train_epochs": 2.0}})
    short = shortened(epochs, 1 / 4, tmp_path)
    assert (short.train.max_steps, short.train.num_train_epochs) == (None, 0.5)
    assert load_config(short) == short


def test_a_rung_shortens_what_is_given_in_steps(tmp_path: Path) -> None:
    method = {"type": "adalora", "tinit": 20, "tfinal": 60, "total_step": 270}
    whole = load_config({**VALUES, "method": method, "train": {"max_steps": 270, "warmup_steps": 40}})
    short = shortened(whole, 1 / 9, tmp_path)
    assert (short.train.max_steps, short.train.warmup_steps) == (30, 5)
    assert {"tinit": 2, "tfinal": 6, "total_step": None}.items() <= short.method.model_dump().items()
    assert load_config(short) == short


class Processes:
    """Stands for an executor: a run is its files, its loss the rank over the steps."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.measured: list[str] = []
        self.broken: set[str] = set()

    def share(self, jobs: int) -> int:
        return 1

    def submit(self, task: Task, resources: Resources) -> Done:
        return Done(self._run(task))

    def _run(self, task: Task) -> Ended:
        if task.arguments[1] == "lamina":
            return self._train(Path(task.arguments[3]))
        job = json.loads(task.given)
        self.measured.append("base" if job["base"] else Path(job["run"]).name)
        packed = load_config(Path(job["run"]) / "config.yaml").quantization is not None
        loss = (3.25 if packed else 3.0) if job["base"] else 3.5
        score = {"correct": 2 if job["base"] else 6, "rows": 8}
        return Ended("done", {"score": score, "general_loss": loss})

    def _train(self, path: Path) -> Ended:
        config = load_config(path)
        run = Path(config.output_dir)
        self.trained.append("/".join(run.parts[-2:]))
        if run.name in self.broken:
            return Ended("failed", message="no [luck]")
        rank = config.method.model_dump()["r"]
        summary = Summary(
            run=str(run),
            adapter=str(run / "adapter"),
            adapter_digest=f"sha256:{rank}",
            adapter_step=config.train.max_steps or 0,
            steps=config.train.max_steps or 0,
            skipped_steps=0,
            tokens=100,
            supervised_tokens=50,
            train_loss_first=5.0,
            train_loss_last=1.0,
            eval_loss_first=4.0,
            eval_loss=1.0 + abs(rank - 8) / (config.train.max_steps or 1),
            tokens_per_second=None,
            step_seconds_median=0.5,
            peak_memory_bytes=2**30,
            trainable_parameters=1000 * rank,
            total_parameters=100_000,
        ).as_json()
        (run / "adapter").mkdir(parents=True)
        (run / "adapter" / "adapter_model.safetensors").write_bytes(b"x" * 10)
        (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        (run / "manifest.json").write_text(
            json.dumps({"summary": summary, "base": {"ref": "b", "tensors": "abc", "config": "def"}})
        )
        return Ended("done", summary)


@dataclass
class Done:
    """A task that has ended."""

    ended: Ended

    def poll(self) -> Ended:
        return self.ended

    def stop(self) -> None:
        pass


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    found = Processes()
    monkeypatch.setattr(compare_module, "start_executor", lambda placement, folder: nullcontext(found))
    monkeypatch.setattr(pool, "SECONDS", 0.0)
    return found


def ranks(out: Path, *values: int) -> list[Candidate]:
    return build(out, grid={"method.r": [str(value) for value in values]})


def test_figures_come_from_the_runs_and_nothing_runs_twice(processes: Processes, tmp_path: Path) -> None:
    test, general = tmp_path / "test.jsonl", tmp_path / "general.txt"
    test.write_text("{}")
    general.write_text("text")
    measuring = Measuring(test=str(test), general=str(general))
    first = compare(ranks(tmp_path / "out", 4, 8), tmp_path / "out", measuring)
    assert processes.trained == ["candidates/lora-r=4", "candidates/lora-r=8"]
    assert processes.measured == ["lora-r=4", "base", "lora-r=8"]
    four, eight = first.outcomes
    assert (four.trainable_parameters, four.share, four.adapter_bytes) == (4000, 0.04, 10)
    assert eight.eval_loss == 1.0
    assert eight.score is not None and eight.score.share == 0.75
    (base,) = first.bases
    assert (base.eval_loss, base.general_loss, eight.general_loss) == (4.0, 3.0, 3.5)
    assert four.base == eight.base == base

    again = compare(ranks(tmp_path / "out", 4, 8, 16), tmp_path / "out", measuring)
    assert processes.trained[2:] == ["candidates/lora-r=16"]
    assert processes.measured[3:] == ["lora-r=16"]
    assert again.outcomes[:2] == first.outcomes

    general.write_text("another text")
    compare(ranks(tmp_path / "out", 4, 8), tmp_path / "out", measuring)
    assert len(processes.trained) == 3
    assert processes.measured[4:] == ["lora-r=4", "base", "lora-r=8"]


def test_each_candidate_stands_beside_its_own_base(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "general.txt").write_text("text")
    small = {"nf4": ["quantization.bits=4"], "wide": ["method.r=16"], "int8": ["quantization.bits=8"]}
    found = build_candidates(VALUES, tmp_path / "out", named=small)
    result = compare(found, tmp_path / "out", Measuring(general=str(tmp_path / "general.txt")))
    assert processes.measured == ["nf4", "base", "wide", "base", "int8", "base"]
    assert [o.base.general_loss for o in result.outcomes] == [3.25, 3.0, 3.25]
    assert [base.stored for base in result.bases] == ["4 bits (nf4)", "", "8 bits"]
    page = (tmp_path / "out" / "compare.html").read_text()
    for words in ("Bare base, 4 bits (nf4): ", "Bare base: ", "3.5000 (+0.2500)", "3.5000 (+0.5000)"):
        assert words in page
    data = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [candidate["base"]["general_loss"] for candidate in data["candidates"]] == [3.25, 3.0, 3.25]


def test_other_settings_in_the_same_place_are_refused(processes: Processes, tmp_path: Path) -> None:
    compare(ranks(tmp_path, 4, 8), tmp_path)
    with pytest.raises(ConfigError, match=r"lora-r=4 was trained there with settings other than"):
        build_candidates({**VALUES, "seed": 1}, tmp_path, grid={"method.r": ["4", "8"]})


def test_one_failure_stops_nobody_and_is_tried_again(processes: Processes, tmp_path: Path) -> None:
    processes.broken = {"lora-r=4"}
    found = compare(ranks(tmp_path, 4, 8), tmp_path)
    assert [(o.state, o.error) for o in found.outcomes] == [("failed", "no [luck]"), ("done", None)]
    assert [o.name for o in found.failed] == ["lora-r=4"]
    processes.broken = set()
    assert not compare(ranks(tmp_path, 4, 8), tmp_path).failed
    assert processes.trained[2:] == ["candidates/lora-r=4"]


def test_screening_halves_successively(processes: Processes, tmp_path: Path) -> None:
    values = (1, 2, 4, 6, 8, 16, 32, 64, 128)
    found = compare(ranks(tmp_path, *values), tmp_path, screen=True)
    by_rung = [name.split("/")[0] for name in processes.trained]
    assert by_rung.count("1") == 9
    assert processes.trained[9:] == ["2/lora-r=4", "2/lora-r=6", "2/lora-r=8", "candidates/lora-r=8"]
    shares = {o.name.rpartition("=")[2]: (o.state, round(o.share_of_steps, 3), o.steps) for o in found.outcomes}
    assert shares["8"] == ("done", 1.0, 27)
    assert shares["6"] == ("left out", 0.333, 9)
    assert shares["1"] == ("left out", 0.111, 3)
    compare(ranks(tmp_path, *values), tmp_path, screen=True)
    assert len(processes.trained) == 13


def test_a_failed_candidate_leaves_the_screening(processes: Processes, tmp_path: Path) -> None:
    processes.broken = {"lora-r=8"}
    found = compare(ranks(tmp_path, 4, 8, 32), tmp_path, screen=True)
    assert {o.name: o.state for o in found.outcomes} == {
        "lora-r=4": "done",
        "lora-r=8": "failed",
        "lora-r=32": "left out",
    }


def test_screening_needs_something_to_decide_by(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="eliminates none of 2 candidates"):
        compare(ranks(tmp_path, 4, 8), tmp_path, screen=True)
    values = {**VALUES, "data": {"train": "x", "eval": None}}
    found = build_candidates(values, tmp_path, grid={"method.r": ["1", "2", "3"]})
    with pytest.raises(ConfigError, match=r"data\.eval is null"):
        compare(found, tmp_path, screen=True)


def test_the_page_shows_every_candidate_and_needs_nothing_else(processes: Processes, tmp_path: Path) -> None:
    processes.broken = {"lora-r=4"}
    compare(ranks(tmp_path, 4, 8, 16), tmp_path)
    page = (tmp_path / "compare.html").read_text()
    for words in ("lora-r=4", "lora-r=8", "no [luck]", "<svg", "eval loss by trained parameters", "16.000%"):
        assert words in page
    assert "http" not in page and "<script" not in page
    data = json.loads((tmp_path / "compare.json").read_text())
    assert [candidate["state"] for candidate in data["candidates"]] == ["failed", "done", "done"]
    assert data["candidates"][1]["share"] == 0.08


def test_names_of_points_do_not_hide_each_other() -> None:
    places = [(100.0 + number % 3, 50.0 + number) for number in range(4)]
    labels = _labels(places, ["adalora", "lora & co", "r8", "dora"])
    found = [re.search(r'x="([\d.]+)" y="([\d.]+)"', label) for label in labels]
    corners = [(float(match[1]), float(match[2])) for match in found if match]
    assert "lora &amp; co" in labels[1]
    for one, other in itertools.combinations(corners, 2):
        assert abs(one[1] - other[1]) >= 11 or abs(one[0] - other[0]) > 2 * 6.6
