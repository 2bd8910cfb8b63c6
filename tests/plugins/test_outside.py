"""A package adds one of each: method, loss, optimizer, data format, scorer, executor; they work like lamina's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.helpers import install_example, run_lamina, run_python

ROWS = [{"log": f"Q: say {word} {number}\nA: {word}!"} for number, word in enumerate(["red", "green", "blue"] * 8)]
PAIRS = [
    {
        "prompt": f"name {number}",
        "chosen": ("warm " * (1 + number % 4)).strip(),
        "rejected": ("cold " * (1 + number % 3)).strip(),
        "margin": number % 2,
    }
    for number in range(24)
]

# What a user would do, in one process, since importing takes longest. Prints what the tests check.
SCRIPT = """
import json, sys
from pathlib import Path
import torch
import lamina
from lamina.config.methods import METHOD_CONFIGS
from lamina.runs.events import Step

torch.set_num_threads(1)
folder, model = Path(sys.argv[1]), sys.argv[2]
common = {"model": model, "dtype": "float32"}
small = {"max_steps": 6, "per_device_train_batch_size": 2}

run = lamina.train(common | {
    "data": {"train": str(folder / "log.jsonl"), "eval": 0.2, "max_length": 64},
    "method": {"type": "gain"}, "train": small | {"optim": "signs"}, "output_dir": str(folder / "gain"),
})
loaded = lamina.load(run.path)
scored = lamina.evaluate(loaded, score=["first_word"], max_new_tokens=4)
merged = lamina.merge(run.path, folder / "merged")

def pairs(name, data={}, train={}, resume=False):
    return lamina.train(common | {
        "data": {"train": str(folder / "pairs.jsonl"), "eval": 0.25, "max_length": 64} | data,
        "loss": {"type": "pairs", "beta": 0.5}, "train": small | train, "output_dir": str(folder / name),
    }, resume=resume)

def weights(run):
    return {name: tensor.detach() for name, tensor in lamina.load(run.path).injection.tensors().items()}

def distance(a, b):
    return max(float((a[name] - b[name]).norm() / a[name].norm().clamp_min(1e-9)) for name in a)

packed = pairs("packed")
# The same examples in each step, whatever the micro-batches: 4 pairs at once, or one after the other.
still = {"packing": False, "eval": None}
whole = pairs("whole", still, {"per_device_train_batch_size": 4, "optim": "signs"})
parts = pairs("parts", still, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "optim": "signs"})
verified = lamina.verify(packed.path / "config.yaml")
print(json.dumps({
    "methods": sorted(METHOD_CONFIGS),
    "gain": run.summary.as_json(), "merged": merged.certificate.passed,
    "format": json.loads(run.data_report_path.read_text())["files"][0]["format"],
    "scores": {name: vars(value) for name, value in scored.scores.items()},
    "pairs": packed.summary.as_json(), "events": [event.as_json() for event in packed.events()],
    "report": json.loads(packed.data_report_path.read_text()),
    "losses": [[step.loss for step in r.events(Step)] for r in (whole, parts)],
    "verified": [vars(check) | {"measures": None} for check in verified.checks], "passed": verified.passed,
}, default=str))
"""


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> dict[str, Any]:
    """Returns what the script prints."""
    folder = tmp_path_factory.mktemp("outside")
    install_example(folder / "site")
    for name, rows in (("log", ROWS), ("pairs", PAIRS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = run_python(folder / "site", SCRIPT, str(folder), str(model_folder), check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_a_method_an_optimizer_and_a_format(used: dict[str, Any]) -> None:
    assert "gain" in used["methods"]
    assert used["format"] == "chatlog"
    summary = used["gain"]
    assert summary["trainable_parameters"] == 14, "one number for each of the 2 x 7 linear layers"
    assert summary["train_loss_last"] < summary["train_loss_first"]
    assert used["merged"]


def test_a_scorer(used: dict[str, Any]) -> None:
    assert set(used["scores"]) == {"first_word"}
    assert all(0.0 <= value <= 1.0 for value in used["scores"]["first_word"].values())


def test_a_loss_over_pairs_learns(used: dict[str, Any]) -> None:
    summary = used["pairs"]
    assert summary["eval_loss"] < summary["eval_loss_first"]
    steps = [event for event in used["events"] if event["event"] == "step"]
    evaluations = [event for event in used["events"] if event["event"] == "eval"]
    assert all(0.0 <= event["rewards/accuracies"] <= 1.0 for event in (*steps, *evaluations))


def test_both_answers_of_a_pair_stay_together(used: dict[str, Any]) -> None:
    report = used["report"]
    assert report["files"][0]["rows"] == 24
    assert report["files"][0]["train_rows"] + report["files"][0]["eval_rows"] == 24
    assert report["train"]["examples"] == report["files"][0]["train_rows"], "an example is a pair"


def test_micro_batches_change_nothing(used: dict[str, Any]) -> None:
    whole, parts = used["losses"]
    assert whole == pytest.approx(parts, rel=1e-5)


def test_verify_holds_the_loss_to_its_formula(used: dict[str, Any]) -> None:
    assert used["passed"], used["verified"]


def test_an_executor(tmp_path: Path) -> None:
    install_example(tmp_path / "site")
    code = """
import json, sys
from pathlib import Path
from lamina.fleet.executor import Placement, start_executor
from lamina.fleet.task import Task
folder = Path(sys.argv[1])
placement = Placement("in_turn", options=("cpus=3",))
with start_executor(placement, folder) as executor:
    resources = placement.settled(executor, 1).resources
    show = "import os; print('{\\"threads\\": ' + os.environ['OMP_NUM_THREADS'] + '}')"
    print(json.dumps(executor.submit(Task("a", ("-c", show), folder / "log", folder), resources).poll().printed))
"""
    printed = run_python(
        tmp_path / "site", "import os; os.environ.pop('OMP_NUM_THREADS', None)\n" + code, str(tmp_path)
    )
    assert json.loads(printed.stdout) == {"threads": 3}


def test_the_command_line_knows_them(tmp_path: Path) -> None:
    install_example(tmp_path)
    code, listed, _ = run_lamina(tmp_path, "methods")
    assert code == 0
    assert "gain" in json.dumps(listed)
    code, schema, _ = run_lamina(tmp_path, "schema")
    text = json.dumps(schema)
    assert code == 0
    assert all(f'"{name}"' in text for name in ("gain", "pairs", "signs", "chatlog"))
