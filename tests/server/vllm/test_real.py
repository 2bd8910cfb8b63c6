"""Real vLLM on the CPU: it answers right, its faults are caught before traffic, and a killed replica loses nothing.

    LAMINA_VLLM_PYTHON=.venv-vllm/bin/python python -m pytest -m slow tests/server/vllm/test_real.py

`tools/vllm_env.sh` makes the environment.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lamina
from lamina.chat.message import Message
from lamina.engine.engine import Engine
from lamina.engine.generator import Piece, Request
from lamina.engine.guides import Guide
from lamina.engine.sampling import Sampling
from lamina.errors import CertificateError
from lamina.server.vllm.client import VllmClient
from lamina.server.vllm.engine import VllmEngine
from lamina.server.vllm.open import open_vllm_engine
from lamina.server.vllm.process import PYTHON_VARIABLE
from lamina.server.vllm.staging import Staging
from tests.support.waiting import wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON_VARIABLE not in os.environ, reason=f"{PYTHON_VARIABLE} names no environment with vLLM"),
    pytest.mark.timeout(900),
]
BASE = "smollm2-135m"
ARGUMENTS = ("--enforce-eager", "--max-model-len", "1024", "--max-loras", "4")
COLORS = ("red", "blue", "green", "black", "white", "gold", "pink", "grey", "tan", "teal", "plum", "lime")
PROMPTS = (
    "What is the color of item 3?",
    "What is the color of item 9?",
    "Write one sentence about the sea.",
    "What is 17 plus 25?",
    "Name three fruits.",
    "Who wrote Hamlet?",
    "What is the capital of France?",
    "Say hello in Spanish.",
)


def asked(adapter: str | None, **sampling: Any) -> list[Request]:
    drawn = Sampling(**{"max_tokens": 20, **sampling})
    return [Request(messages=[Message("user", text)], adapter=adapter, sampling=drawn) for text in PROMPTS]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two short runs on the embedded model, in float32."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [
        {"prompt": f"What is the color of item {number}?", "completion": f"Item {number} is {color}."}
        for number, color in enumerate(COLORS)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def train(name: str, seed: int, **method: Any) -> Path:
        config = {
            "model": BASE,
            "data": {"train": str(folder / "rows.jsonl"), "max_length": 256},
            "method": {"type": "lora", "r": 8, **method},
            "train": {"max_steps": 8},
            "seed": seed,
            "dtype": "float32",
            "output_dir": str(folder / name),
        }
        return lamina.train(config).path

    return {"one": train("one", 4), "two": train("two", 6, use_rslora=True, lora_alpha=12)}


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("VLLM_CPU_KVCACHE_SPACE", "1"),
            ("OMP_NUM_THREADS", "1"),
            ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
        ):
            patch.setenv(name, value)
        yield


def test_a_killed_replica_loses_nothing_that_had_not_begun(environment: None, runs: dict[str, Path]) -> None:
    with open_vllm_engine(
        BASE, {"one": runs["one"]}, replicas=2, dtype="float32", arguments=ARGUMENTS, check_seconds=0.5
    ) as engine:
        (expected,) = engine.generate(asked("one")[:1])
        got: dict[int, list[Piece | BaseException]] = {number: [] for number in range(24)}
        done = threading.Semaphore(0)

        def deliver(number: int) -> Callable[[Piece | BaseException], None]:
            def take(piece: Piece | BaseException) -> None:
                got[number].append(piece)
                if isinstance(piece, BaseException) or piece.finish_reason is not None:
                    done.release()

            return take

        for number in got:
            engine.submit(asked("one")[0], deliver(number))
        wait_for(lambda: any(got.values()), 120.0)
        begun = {number for number, pieces in got.items() if pieces}
        victim = next(replica for replica in engine._replicas.all if replica.running)
        index = engine._replicas.all.index(victim)
        os.killpg(engine._servers.processes[index].pid, signal.SIGKILL)
        for _ in got:
            assert done.acquire(timeout=120)
        lost = {number for number, pieces in got.items() if isinstance(pieces[-1], BaseException)}
        print(f"\n{len(got)} requests, {len(begun)} had begun, {len(lost)} lost")
        assert lost <= begun
        whole = ["".join(p.text for p in got[n] if isinstance(p, Piece)) for n in got.keys() - lost]
        assert set(whole) == {expected.text} and len(got) - len(lost) >= 12


@pytest.fixture(scope="module")
def engine(environment: None, runs: dict[str, Path]) -> Iterator[VllmEngine]:
    with open_vllm_engine(BASE, runs, dtype="float32", arguments=ARGUMENTS) as engine:
        yield engine


def test_adapters_answer_as_in_lamina_s_engine(engine: VllmEngine, runs: dict[str, Path]) -> None:
    requests = [request for name in (*runs, None) for request in asked(name)]
    found = engine.generate(requests)
    with Engine(BASE, runs, dtype="float32") as own:
        expected = own.generate(requests)
    same = [mine.token_ids == theirs.token_ids for mine, theirs in zip(expected, found, strict=True)]
    print(f"\n{sum(same)} of {len(same)} answers have the same tokens")
    assert sum(same) >= 0.8 * len(same)
    assert all(mine.text == theirs.text for mine, theirs, is_same in zip(expected, found, same, strict=True) if is_same)
    for facts in engine.loaded():
        assert facts.certificate is not None and facts.certificate.passed
        print(facts.certificate.line())


def test_what_requests_may_ask(engine: VllmEngine) -> None:
    guide = Sampling(max_tokens=20, guide=Guide("choice", '["red", "blue"]'))
    request = Request(messages=[Message("user", PROMPTS[0])], adapter="one", sampling=guide)
    (chosen,) = engine.generate([request])
    assert chosen.text in ("red", "blue")
    drawn = asked("one", temperature=1.2, top_k=50, top_p=0.9, min_p=0.01, seed=3, repetition_penalty=1.1)[:2]
    assert [piece.token_ids for piece in engine.generate(drawn)] == [
        piece.token_ids for piece in engine.generate(drawn)
    ]
    (told,) = engine.generate(asked("one", logprobs=3, prompt_logprobs=2, min_tokens=4)[:1])
    assert told.prompt is not None and len(told.prompt.logprobs) == len(told.prompt.token_ids) - 1
    assert len(told.logprobs) == len(told.token_ids) and len(told.logprobs[0].top) == 3
    (cut,) = engine.generate(asked("one", stop=("is",), logit_bias={5: -100.0})[:1])
    assert cut.finish_reason == "length" or (cut.stopped_by == "is" and "is" not in cut.text)
    pieces = list(engine.stream(asked("one")[0]))
    (whole,) = engine.generate(asked("one")[:1])
    assert "".join(piece.text for piece in pieces) == whole.text


def off_by_the_square_root(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    config["lora_alpha"] *= math.sqrt(config["r"])


def one_layer_zeroed(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if ".layers.7." in name:
            tensor.zero_()


@pytest.mark.parametrize("fault", [off_by_the_square_root, one_layer_zeroed])
def test_faults_are_caught_before_traffic(
    engine: VllmEngine, runs: dict[str, Path], fault: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Staging.copy

    def tampered(self: Staging, adapter: Any) -> Path:
        folder = copy(self, adapter)
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
        fault(config, tensors)
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        return folder

    monkeypatch.setattr(Staging, "copy", tampered)
    with pytest.raises(CertificateError, match="certificate FAILED") as caught:
        engine.load("faulty", runs["one"])
    print(f"\n{caught.value}")
    assert engine.adapters == ["one", "two"]


def test_a_stale_reload_is_caught_before_traffic(
    engine: VllmEngine, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (old,) = [facts for facts in engine.loaded() if facts.name == "one"]
    load = VllmClient.load
    first: list[str] = []

    def stale(self: VllmClient, name: str, path: str) -> None:
        first.append(path)
        load(self, name, first[0])

    monkeypatch.setattr(VllmClient, "load", stale)
    engine.load("one", runs["one"])
    with pytest.raises(CertificateError, match="certificate FAILED") as caught:
        engine.load("one", runs["two"])
    print(f"\n{caught.value}")
    (kept,) = [facts for facts in engine.loaded() if facts.name == "one"]
    assert kept.digest == old.digest
