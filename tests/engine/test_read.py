"""`read`: each adapter reads texts as its own logits say, with virtual tokens, beside answers, and short of memory."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

import lamina
from lamina.engine.engine import Engine
from lamina.engine.generator import Piece, Reading, Request, TokenLogprobs
from lamina.engine.sampling import Sampling
from tests.support.training import settings

METHODS = {
    "lora": {"type": "lora", "r": 3},
    "prefix": {"type": "prefix_tuning", "num_virtual_tokens": 5},
    "prompt": {"type": "prompt_tuning", "num_virtual_tokens": 4},
}


@pytest.fixture(scope="module")
def runs(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each method, trained far enough to say something of its own."""
    folder = tmp_path_factory.mktemp("runs")
    train = {"max_steps": 4, "learning_rate": 0.05}
    return {
        name: lamina.train({**settings(folder, model_folder, name, train=train), "method": method}).path
        for name, method in METHODS.items()
    }


def readings(rows: int, adapters: list[str | None], length: int = 70) -> list[Reading]:
    generator = torch.Generator().manual_seed(3)
    shared = torch.randint(5, 200, (length,), generator=generator).tolist()
    made = []
    for row in range(rows):
        begin = int(torch.randint(2, length, (1,), generator=generator))
        own = torch.randint(5, 200, (1 + row % 90,), generator=generator).tolist()
        made.append(Reading(shared[:begin] + own, max(1, begin - row % 7), adapters[row % len(adapters)]))
    return made


def check(engine: Engine, asked: list[Reading], found: list[tuple[TokenLogprobs, ...]]) -> None:
    for reading, each in zip(asked, found, strict=True):
        ids = list(reading.token_ids)
        logits = engine.logits(ids[:-1], range(reading.start - 1, len(ids) - 1), reading.adapter)
        wanted = logits.double().log_softmax(-1).gather(1, torch.tensor(ids[reading.start :])[:, None])[:, 0]
        assert [token.token_id for token in each] == ids[reading.start :]
        assert [token.logprob for token in each] == pytest.approx(wanted.tolist(), abs=1e-4)
        assert [token.top[0][0] for token in each] == logits.argmax(-1).tolist()


@pytest.mark.parametrize("use_kernels", [True, False])
def test_each_adapter_reads_as_its_logits_say(runs: dict[str, Path], model_folder: Path, use_kernels: bool) -> None:
    with Engine(model_folder, runs, dtype="float32", use_kernels=use_kernels) as engine:
        asked = readings(32, [None, *METHODS])
        found = engine.read(asked)
        check(engine, asked, found)
        assert engine.read(asked) == found or not use_kernels  # with what was kept, to the bit
        assert len({engine.read([Reading([9, 8, 7, 6], 1, name)])[0][0].logprob for name in (None, *METHODS)}) == 4
        assert engine.stats().running == engine.stats().used_blocks == 0
        assert all(facts.requests == 0 for facts in engine.loaded())


def test_beside_answers_and_short_of_memory(model_folder: Path) -> None:
    """The cache holds about two texts, so readings wait and are put back; an answer goes on beside them."""
    with Engine(model_folder, dtype="float32") as plenty:
        if plenty.slow_because is not None:
            pytest.skip(plenty.slow_because)
        per_block = plenty._runners.fused.decoder.block_bytes()  # type: ignore[union-attr]
        asked = readings(24, [None])
        wanted = plenty.read(asked)
    with Engine(model_folder, dtype="float32", cache_bytes=24 * per_block) as engine:
        pieces: list[Piece] = []
        request = Request(token_ids=[5, 6, 7], sampling=Sampling(max_tokens=150, ignore_stop_tokens=True))
        thread = threading.Thread(target=lambda: pieces.extend(engine.generate([request])))
        thread.start()
        assert engine.read(asked) == wanted
        thread.join()
        assert len(pieces[0].token_ids) == 150
        assert engine.stats().used_blocks == 0
