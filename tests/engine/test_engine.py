"""`Engine`: adapters come, go and are replaced while requests are answered, each by the adapter that it asked for."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lamina
from lamina.adapters import certificate
from lamina.adapters.adapter import adapter_digest
from lamina.chat.message import Message
from lamina.engine.engine import Engine
from lamina.engine.generator import Piece, Request
from lamina.engine.guides import Guide
from lamina.engine.sampling import Sampling
from lamina.errors import AdapterError, CertificateError, ConfigError, DataError, LaminaError
from tests.support.training import settings
from tests.support.waiting import wait_for

METHODS = {
    "lora": {"type": "lora", "r": 3},
    "ia3": {"type": "ia3"},
    "prefix": {"type": "prefix_tuning", "num_virtual_tokens": 3},
}
ASKED = [Message("user", "red green 1")]


@pytest.fixture(scope="module")
def runs(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each method, trained far enough to say something of its own."""
    folder = tmp_path_factory.mktemp("runs")
    train = {"max_steps": 6, "learning_rate": 0.05}
    return {
        name: lamina.train({**settings(folder, model_folder, name, train=train), "method": method}).path
        for name, method in METHODS.items()
    }


@pytest.fixture
def engine(runs: dict[str, Path], model_folder: Path) -> Iterator[Engine]:
    with Engine(model_folder, runs, dtype="float32") as engine:
        yield engine


def ask(adapter: str | None, **sampling: object) -> Request:
    return Request(messages=ASKED, adapter=adapter, sampling=Sampling(**{"max_tokens": 12, **sampling}))  # type: ignore[arg-type]


def test_each_adapter_answers_as_it_does_by_itself(engine: Engine, runs: dict[str, Path]) -> None:
    assert engine.slow_because is None and engine.adapters == list(METHODS)
    drawn = {"temperature": 1.5, "seed": 1}
    pieces = engine.generate([ask(name, **drawn) for name in (*METHODS, None)] * 3)
    for name, piece in zip((*METHODS, None), pieces, strict=False):
        loaded = lamina.load(runs[name or "lora"], dtype="float32")
        alone = lamina.generate(loaded, ["red green 1"], max_new_tokens=12, base=name is None, **drawn)  # type: ignore[arg-type]
        assert [piece.text] == alone
    assert len({piece.text for piece in pieces}) > 1
    assert [piece.text for piece in pieces[:4]] * 3 == [piece.text for piece in pieces]
    digests = {facts.name: facts.digest for facts in engine.loaded()}
    assert [piece.digest for piece in pieces[:4]] == [*(digests[name] for name in METHODS), None]
    certificates = [facts.certificate for facts in engine.loaded()]
    assert all(certificate is not None and certificate.passed for certificate in certificates)


def test_a_stream_is_the_answer_and_closing_it_frees_all(engine: Engine) -> None:
    (whole,) = engine.generate([ask("lora", max_tokens=30)])
    pieces = list(engine.stream(ask("lora", max_tokens=30)))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert pieces[0].prompt is not None and pieces[0].prompt.token_ids
    endless = engine.stream(ask("lora", max_tokens=2000, ignore_stop_tokens=True))
    next(endless)
    endless.close()
    engine.generate([ask(None)])
    wait_for(lambda: engine.stats().running == engine.stats().used_blocks == 0)
    assert [facts.requests for facts in engine.loaded()] == [0, 0, 0]


def test_a_name_that_is_loaded_anew_answers_anew_at_once(engine: Engine, runs: dict[str, Path]) -> None:
    before = {name: engine.generate([ask(name)])[0] for name in METHODS}
    running = engine.stream(ask("lora", max_tokens=12))
    first = next(running)
    engine.load("lora", runs["ia3"])
    (new,) = engine.generate([ask("lora")])
    old = "".join([first.text, *(piece.text for piece in running)])
    assert (old, first.digest) == (before["lora"].text, before["lora"].digest)
    assert (new.text, new.digest) == (before["ia3"].text, before["ia3"].digest)
    assert new.prompt is not None


def test_a_name_that_is_loaded_anew_without_a_lock_renders_as_the_engine_does(
    engine: Engine, runs: dict[str, Path], model_folder: Path, tmp_path: Path
) -> None:
    changes: Any = {"train": {"max_steps": 2}, "data": {"chat_template": "bare"}}
    bare = lamina.train(settings(tmp_path, model_folder, "bare", **changes)).path
    foreign = Path(shutil.copytree(runs["lora"] / "adapter", tmp_path / "foreign"))
    (foreign / "lamina.json").unlink()
    engine.load("lora", bare)
    own = engine.tokenize(ask("lora"))
    assert own != engine.tokenize(ask(None)) and engine.template_of("lora") is not engine.template
    engine.load("lora", foreign)
    assert engine.tokenize(ask("lora")) == engine.tokenize(ask(None)) != own
    assert engine.template_of("lora") is engine.template


def test_unloading_waits_for_what_is_answered(engine: Engine) -> None:
    running = engine.stream(ask("lora", max_tokens=200, ignore_stop_tokens=True))
    next(running)
    done = threading.Event()

    def unload() -> None:
        engine.unload("lora", wait=60)
        done.set()

    thread = threading.Thread(target=unload)
    thread.start()
    with pytest.raises(ConfigError, match="'lora' is not an adapter that is loaded"):
        while True:
            engine.check(ask("lora"))
    assert not done.is_set() or engine.stats().running == 0
    assert sum(len(piece.token_ids) for piece in running) == 199
    thread.join(60)
    assert done.is_set()


def test_adapters_beyond_the_budget_leave_memory_and_come_back(runs: dict[str, Path], model_folder: Path) -> None:
    with Engine(model_folder, runs, dtype="float32", adapter_bytes=1) as engine:
        expected = {name: engine.generate([ask(name)])[0].text for name in METHODS}
        engine.pin("ia3")
        assert engine.generate([ask("ia3")])[0].text == expected["ia3"]
        for name in ("lora", "prefix", "lora"):
            assert engine.generate([ask(name)])[0].text == expected[name]
        held = {facts.name: facts.in_memory for facts in engine.loaded()}
        assert held == {"lora": False, "ia3": True, "prefix": False}


def changed(run: Path, folder: Path, factor: float, honest: bool) -> Path:
    """A copy of an adapter with other tensors; `honest` names their digest."""
    adapter = Path(shutil.copytree(run / "adapter", folder / "changed"))
    file = adapter / "adapter_model.safetensors"
    tensors = {name: tensor * factor for name, tensor in load_file(file).items()}
    save_file(tensors, file)
    about = json.loads((adapter / "lamina.json").read_text())
    if honest:
        about["digest"] = adapter_digest(about["method"], tensors)
        (adapter / "lamina.json").write_text(json.dumps(about))
    return adapter


@pytest.mark.parametrize("factor", [0.0, 3.0])
def test_an_adapter_that_gives_other_logits_never_answers(
    engine: Engine, runs: dict[str, Path], tmp_path: Path, factor: float
) -> None:
    before = engine.generate([ask("lora")])
    with pytest.raises(CertificateError, match="certificate FAILED"):
        engine.load("lora", changed(runs["lora"], tmp_path, factor, honest=True))
    assert engine.generate([ask("lora")]) == before
    with pytest.raises(AdapterError):
        engine.load("other", changed(runs["lora"], tmp_path / "b", factor, honest=False))
    assert "other" not in engine.adapters


def test_an_adapter_changed_on_disk_is_not_read_again_in_silence(
    runs: dict[str, Path], model_folder: Path, tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(runs["lora"] / "adapter", tmp_path / "mine"))
    with Engine(model_folder, {"mine": adapter}, dtype="float32", adapter_bytes=1) as engine:
        engine.generate([ask("mine")])
        shutil.rmtree(adapter)
        shutil.copytree(runs["ia3"] / "adapter", adapter)
        with pytest.raises(AdapterError, match="was changed since it was loaded as 'mine'"):
            engine.generate([ask("mine")])
        engine.load("mine", adapter)
        engine.generate([ask("mine")])


def test_many_threads_are_answered_as_one_would_be(engine: Engine) -> None:
    kinds = [(name, seed) for name in (*METHODS, None) for seed in range(4)]
    expected = {kind: engine.generate([ask(kind[0], temperature=1.5, seed=kind[1])])[0].text for kind in kinds}
    wrong: list[object] = []

    def client(kind: tuple[str | None, int]) -> None:
        for _ in range(3):
            said = "".join(piece.text for piece in engine.stream(ask(kind[0], temperature=1.5, seed=kind[1])))
            if said != expected[kind]:
                wrong.append((kind, said))

    threads = [threading.Thread(target=client, args=(kind,)) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert engine.stats().used_blocks == 0


def test_answers_keep_to_their_guide(engine: Engine) -> None:
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    asked = [
        ask("lora", guide=Guide("json_schema", json.dumps(schema)), max_tokens=60),
        ask(None, guide=Guide("choice", '["yes", "no"]'), temperature=2.0, seed=1),
        ask("ia3", guide=Guide("regex", "[ab]{3}"), temperature=2.0, seed=1),
        ask("lora"),
    ]
    first, second, third, free = engine.generate(asked)
    if first.finish_reason == "stop":
        assert set(json.loads(first.text)) == {"n"}
    assert first.text.lstrip().startswith("{")
    assert second.text in ("yes", "no")
    assert len(third.text) == 3 and set(third.text) <= set("ab")
    assert free == engine.generate([ask("lora")])[0]
    with pytest.raises(ConfigError, match=r"sampling.guide.*json_schema"):
        engine.generate([ask(None, guide=Guide("json_schema", "{no"))])


def test_prompts_and_answers_get_the_log_probabilities_of_the_model(engine: Engine) -> None:
    (piece,) = engine.generate([ask("lora", logprobs=2, prompt_logprobs=1, max_tokens=4, logit_bias={7: 5.0})])
    assert piece.prompt is not None
    ids = [*piece.prompt.token_ids, *piece.token_ids]
    logprobs = engine.logits(ids, range(len(ids)), "lora").log_softmax(-1)
    told = [*piece.prompt.logprobs, *piece.logprobs]
    assert [each.token_id for each in told] == ids[1:]
    expected = [float(logprobs[place, token]) for place, token in enumerate(ids[1:])]
    torch.testing.assert_close([each.logprob for each in told], expected, rtol=0, atol=1e-4)
    assert [len(each.top) for each in told] == [1] * (len(piece.prompt.token_ids) - 1) + [2] * len(piece.token_ids)
    assert all(
        each.top[0][1] == pytest.approx(float(logprobs[place].max()), abs=1e-4) for place, each in enumerate(told)
    )


def test_stop_strings_end_an_answer_before_them(engine: Engine) -> None:
    (whole,) = engine.generate([ask("lora", max_tokens=20, ignore_stop_tokens=True)])
    stop = whole.text[3:5]
    (cut,) = engine.generate([ask("lora", max_tokens=20, ignore_stop_tokens=True, stop=(stop,))])
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert (cut.finish_reason, cut.stopped_by) == ("stop", stop)


def test_an_engine_that_is_closed_says_so(runs: dict[str, Path], model_folder: Path) -> None:
    engine = Engine(model_folder, dtype="float32")
    results: list[Piece | BaseException] = []
    engine.submit(ask(None, max_tokens=4000, ignore_stop_tokens=True), results.append)
    engine.close()
    assert isinstance(results[-1], LaminaError)
    with pytest.raises(LaminaError, match="closed"):
        engine.generate([ask(None)])
    drained = Engine(model_folder, dtype="float32")
    said: list[Piece | BaseException] = []
    drained.submit(ask(None), said.append)
    drained.close(drain=60)
    assert isinstance(said[-1], Piece) and said[-1].finish_reason is not None


def test_what_cannot_be_asked_is_refused_before_anything_is_answered(engine: Engine) -> None:
    for bad, error, words in (
        (ask("sql"), ConfigError, "'sql' is not an adapter"),
        (Request(token_ids=[]), DataError, "no tokens"),
        (Request(prompt="\udcff"), DataError, "UTF-8"),
    ):
        with pytest.raises(error, match=words):
            engine.generate([ask(None), bad])
    assert engine.stats().running == 0


def test_rounding_is_measured_where_what_is_assumed_of_it_does_not_explain_a_difference(
    runs: dict[str, Path], model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "_SPACINGS_ALLOWED", {"bfloat16": 0.0, "float16": 0.0, "float32": 0.0})
    monkeypatch.setattr(certificate, "_NOISE_ALLOWED", 100.0)
    with Engine(model_folder, dtype="float32") as engine:
        found = engine.load("lora", runs["lora"]).certificate
        assert found is not None and found.passed and any("as measured" in note for note in found.notes)
        monkeypatch.setattr(certificate, "_NOISE_ALLOWED", 0.0)
        with pytest.raises(CertificateError, match="a logit differs"):
            engine.load("prefix", runs["prefix"])
