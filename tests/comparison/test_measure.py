"""What is measured beside the evaluation loss: the score of answers, and the loss on general text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import lamina
from lamina.comparison import measure as measure_module
from lamina.comparison.measure import Job, Measured, Measuring, measure
from lamina.engine.generator import Request
from lamina.engine.sampling import Sampling
from lamina.errors import ConfigError, DataError
from lamina.evaluation.forgetting import general_loss, general_pieces
from lamina.evaluation.score import Score
from lamina.runs import Run
from tests.support.answers import FakeGenerator
from tests.support.models_zoo import build_tokenizer

ROWS = [{"prompt": f"say {i}", "completion": f"{i}!" * (1 + i % 3)} for i in range(20)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Run:
    folder = tmp_path_factory.mktemp("measured")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return lamina.train(
        {
            "model": str(model_folder),
            "data": {"train": str(folder / "rows.jsonl"), "eval": 0.2, "max_length": 64},
            "method": {"type": "lora", "r": 4},
            "train": {"max_steps": 4, "learning_rate": 5e-2, "compile": False},
            "dtype": "float32",
            "output_dir": str(folder / "run"),
        }
    )


def test_text_is_cut_into_whole_pieces(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a" * 70 + "\n\n" + "b" * 32 + "\nshort\n", encoding="utf-8")
    pieces = general_pieces(path, build_tokenizer(), 32, 10)
    assert [(piece.row, len(piece)) for piece in pieces] == [(1, 32), (1, 32), (2, 32)]
    assert all(piece.supervised_tokens == len(piece) - 1 for piece in pieces)
    assert len(general_pieces(path, build_tokenizer(), 32, 2)) == 2
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "a" * 40}) + "\n")
    (piece,) = general_pieces(tmp_path / "text.jsonl", build_tokenizer(), 64, 5)
    np.testing.assert_array_equal(piece.input_ids, build_tokenizer()("a" * 40).input_ids)


def test_text_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--general: .* does not exist"):
        general_pieces(tmp_path / "nope.txt", build_tokenizer(), 32, 2)
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(DataError, match="holds no text"):
        general_pieces(tmp_path / "short.txt", build_tokenizer(), 32, 2)
    (tmp_path / "rows.jsonl").write_text('{"content": "x"}')
    with pytest.raises(DataError, match="needs a `text`"):
        general_pieces(tmp_path / "rows.jsonl", build_tokenizer(), 32, 2)


def test_general_loss_is_that_of_every_token(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog.\nAnother line of words, to be read.\n")
    loaded = lamina.load(run.path, dtype="float32")
    pieces = general_pieces(path, loaded.tokenizer, 64, 8)
    total = tokens = 0.0
    for piece in pieces:
        ids = torch.from_numpy(piece.input_ids.astype(np.int64))[None]
        with torch.no_grad():
            total += float(loaded.model(input_ids=ids, labels=ids).loss) * (len(piece) - 1)
        tokens += len(piece) - 1
    adapter, base = general_loss(loaded, pieces, 2), general_loss(loaded, pieces, 2, base=True)
    assert adapter == pytest.approx(total / tokens, rel=1e-4)
    with loaded.injection.disabled():
        assert base == pytest.approx(general_loss(loaded, pieces, 8), rel=1e-4)
    assert abs(adapter - base) > 1e-3


def test_answers_are_scored(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(request: Request) -> str:
        assert request.sampling == Sampling(max_tokens=8) and request.prompt is not None
        return request.prompt.split("user\n")[-1].split("<|im_end|>")[0] if request.adapter else "nothing"

    monkeypatch.setattr(measure_module, "build_generator", lambda loaded: FakeGenerator(write, loaded.template))
    rows = [{"prompt": "one", "completion": "One."}, {"prompt": "two", "completion": "three"}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    measuring = Measuring(test=str(tmp_path / "test.jsonl"), max_new_tokens=8)
    assert measuring.anything and not Measuring().anything
    job = Job(str(run.path), False, measuring)
    assert Job.from_json(json.loads(json.dumps(job.as_json()))) == job
    found = measure(job)
    assert found == Measured(Score(1, 2), None)
    assert Measured.from_json(json.loads(json.dumps(found.as_json()))) == found
    assert measure(Job(str(run.path), True, measuring)) == Measured(Score(0, 2), None)
