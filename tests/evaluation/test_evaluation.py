"""Evaluating and generating: the right numbers, the same answers in any batch, the base beside the adapter."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

import lamina
from lamina.adapters.load import Loaded
from lamina.chat.message import Message
from lamina.distributed.world import World
from lamina.engine.fused_runner import FusedRunner
from lamina.engine.generator import ADAPTER
from lamina.engine.local import LocalGenerator
from lamina.engine.sampling import Sampling
from lamina.errors import ConfigError, DataError
from lamina.evaluation import evaluate as evaluate_module
from lamina.evaluation.evaluate import own_questions
from lamina.runs import Run
from lamina.training.step import EvaluationResult
from tests.support.answers import FakeGenerator, answer, stream
from tests.support.ranks import OneOf, run_ranks, values_of
from tests.support.training import settings, write_rows


@pytest.fixture(scope="module")
def run(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("evaluation")
    return lamina.train(
        settings(folder, model_folder, train={"max_steps": 60, "learning_rate": 0.03, "eval_steps": 60})
    )


@pytest.fixture(scope="module")
def loaded(run: Run) -> Loaded:
    return lamina.load(run.path)


def test_losses_are_those_of_training(run: Run, loaded: Loaded) -> None:
    result = lamina.evaluate(loaded)
    assert run.summary is not None
    assert result.loss == pytest.approx(run.summary.eval_loss, rel=1e-5)
    assert result.base_loss == pytest.approx(run.summary.eval_loss_first, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert result.rows == 5
    assert result.exact_match is None


def test_a_loss_whose_perplexity_no_float_holds_is_told(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of an adapter that ran away."""
    result = EvaluationResult(5000.0, {})
    monkeypatch.setattr(evaluate_module, "evaluate_sets", lambda *given: result)
    found = lamina.evaluate(loaded)
    assert (found.loss, math.isfinite(found.perplexity or math.nan)) == (5000.0, True)


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_an_evaluation(size: int, run: Run) -> None:
    """Figures and answers are those of one process, to the bit."""

    def evaluate(world: World) -> lamina.Evaluation:
        return lamina.evaluate(run.path, exact_match=True, general=True, max_new_tokens=8, batch_size=2, world=world)

    alone = run_ranks(1, evaluate)  # with as many threads
    found = values_of(run_ranks(size, evaluate))
    assert found == values_of(alone) * size
    assert len(found[0].predictions) == 5


def test_one_process_answers_where_neighbors_change_an_answer(loaded: Loaded) -> None:
    plain = LocalGenerator(loaded.model, loaded.template, loaded.injection, use_kernels=False)
    fused = LocalGenerator(loaded.model, loaded.template, loaded.injection)
    prompts = ["a", "bb", "ccc"]

    def shares(generator: LocalGenerator) -> list[list[int]]:
        return [own_questions(generator, prompts, ADAPTER, OneOf(rank, 2)) for rank in range(2)]

    assert shares(fused) == [[0, 2], [1]]
    assert shares(plain) == [[0, 1, 2], []]


def test_exact_match_counts_equal_answers(run: Run, loaded: Loaded, tmp_path: Path) -> None:
    """Expected answers are the model's own for half of the rows, and something else for the others."""
    prompts = ["red green 1", "blue old 2", "quick slow 3", "warm new 4"]
    own = lamina.generate(loaded, prompts, max_new_tokens=12)
    rows = [
        {"prompt": p, "completion": a if i % 2 else a + "?"} for i, (p, a) in enumerate(zip(prompts, own, strict=True))
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = lamina.evaluate(loaded, data, exact_match=True, max_new_tokens=12)
    assert result.exact_match == 0.5
    assert result.base_exact_match == 0.0
    assert [p.adapter == p.expected for p in result.predictions] == [False, True, False, True]
    assert result.predictions[0].prompt == prompts[0]


def test_answers_may_come_from_any_generator(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded.model, "generate", None)
    data = write_rows(tmp_path / "rows.jsonl", count=4)
    expected = [json.loads(line) for line in data.read_text().splitlines()]
    answers = iter([*["wrong"] * 4, *(row["completion"] for row in expected[:3]), "wrong"])
    generator, told = FakeGenerator(lambda request: next(answers), loaded.template), list[str]()
    result = lamina.evaluate(
        loaded, data, score=["exact_match"], max_new_tokens=5, generator=generator, notify=told.append
    )
    assert (result.scores["exact_match"].adapter, result.scores["exact_match"].base) == (0.75, 0.0)
    assert [request.adapter for request in generator.asked] == [None] * 4 + [ADAPTER] * 4
    assert all(request.sampling == Sampling(max_tokens=5) for request in generator.asked)
    assert "nothing answers at temperature 0" in told


def test_every_file_that_is_evaluated_is_accounted_for(loaded: Loaded, tmp_path: Path) -> None:
    """Of a folder, rows of the first file count as much as those of the last; what was read and lost is said."""
    rows = [{"prompt": f"red {n}", "completion": " " if n < 3 else "a"} for n in range(8)]
    for name, part in (("a", rows), ("b", rows[3:]), ("train", rows)):
        folder = tmp_path / "ds" / ("train" if name == "train" else "test")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    result = lamina.evaluate(loaded, tmp_path / "ds")
    assert (result.rows, result.dropped) == (10, {"empty_answer": 3})
    lost, read = result.notes
    assert "3 of 13 rows (23%) are dropped" in lost and "read the split test" in read
    assert result.as_json()["notes"] == result.notes


@pytest.mark.parametrize("side", ["share", "file"])
def test_data_that_is_not_what_the_run_had_is_named(model_folder: Path, tmp_path: Path, side: str) -> None:
    """By digest; a file that only training reads may be what it likes where the evaluation rows have their own."""
    data, own = write_rows(tmp_path / "rows.jsonl"), write_rows(tmp_path / "own.jsonl", count=5)
    values = settings(tmp_path, model_folder, train={"max_steps": 1})
    if side == "file":
        values["data"]["eval"] = str(own)
    run = lamina.train(values)
    assert lamina.evaluate(run.path).notes == []
    read = data if side == "share" else own
    text = read.read_text()
    read.write_text(text.replace("red", "rad", 1))
    (note,) = lamina.evaluate(run.path).notes
    assert note.startswith(f"warning: {read} changed since the run was trained")
    read.write_text("".join(text.splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match=f"{re.escape(str(read))}: has .* rows, and had .* --data FILE"):
        lamina.evaluate(run.path)
    assert lamina.evaluate(run.path, read).rows == len(text.splitlines()) - 1  # the way that it names
    read.write_text(text)
    if side == "file":
        write_rows(data, count=20)
    assert lamina.evaluate(run.path).notes == []


def test_files_that_came_or_went_since_are_named(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ds"
    folder.mkdir()
    for name in ("a", "b"):
        write_rows(folder / f"{name}.jsonl")
    values = settings(tmp_path, model_folder, train={"max_steps": 1})
    values["data"]["train"] = str(folder)
    run = lamina.train(values)
    write_rows(folder / "c.jsonl", count=30)
    (note,) = lamina.evaluate(run.path).notes
    assert note.startswith("warning: the run was trained with 2 data files, and there are 3 now")
    for name in ("b", "c"):
        (folder / f"{name}.jsonl").unlink()
    with pytest.raises(DataError, match="2 data files, and there are 1 now, with fewer rows"):
        lamina.evaluate(run.path)


def test_an_adapter_alone_needs_data(run: Run, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in run.adapter.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match="--data"):
        lamina.evaluate(moved)
    data = write_rows(tmp_path / "rows.jsonl", count=6)
    assert lamina.evaluate(moved, data, max_rows=4).rows == 4


def test_batched_answers_are_those_of_one_at_a_time(loaded: Loaded) -> None:
    conversations = [[Message("user", "a" * length)] for length in (1, 30, 4, 17)]
    together = answer(loaded, conversations, max_tokens=10, batch_size=4)
    apart = [answer(loaded, [turns], max_tokens=10)[0] for turns in conversations]
    assert together == apart


def test_streamed_pieces_make_the_answer(loaded: Loaded) -> None:
    turns = [Message("user", "red green 1")]
    assert "".join(stream(loaded, turns, max_tokens=10)) == answer(loaded, [turns], max_tokens=10)[0]


def test_base_and_adapter_answer_differently(loaded: Loaded) -> None:
    prompts = ["red green 1", "blue old 2"]
    assert lamina.generate(loaded, prompts, max_new_tokens=8) != lamina.generate(
        loaded, prompts, max_new_tokens=8, base=True
    )
    assert all(layer.enabled for layer in loaded.injection.layers.values())


def test_the_answer_ends_at_the_stop_token(loaded: Loaded) -> None:
    texts = lamina.generate(loaded, ["red green 1"], max_new_tokens=40)
    assert "<|im_end|>" not in texts[0]
    assert len(texts[0]) < 40


def test_sampling_follows_its_seed(loaded: Loaded) -> None:
    def sample(seed: int) -> list[str]:
        return lamina.generate(loaded, ["red"] * 3, max_new_tokens=8, temperature=3.0, seed=seed)

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_the_head_sees_contiguous_input_and_no_hook_is_left(loaded: Loaded) -> None:
    head = loaded.model.get_output_embeddings()
    seen: list[bool] = []
    handle = head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].is_contiguous()))
    answer(loaded, [[Message("user", text)] for text in ("a", "bcd", "ef")], max_tokens=3)
    handle.remove()
    assert seen
    assert all(seen)
    assert not head._forward_pre_hooks


def test_errors_of_generating_come_through(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> torch.Tensor:
        raise RuntimeError("out of memory, say")

    monkeypatch.setattr(FusedRunner, "run", fail)
    with pytest.raises(RuntimeError, match="out of memory, say"):
        list(stream(loaded, [Message("user", "x")]))
