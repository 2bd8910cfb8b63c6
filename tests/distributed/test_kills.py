"""Kill any process at any time, go on with any number of them: the adapter is that of the unbroken run."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path

import pytest

import lamina
from lamina.distributed.group import Group
from lamina.runs import Run
from tests.support.ranks import run_ranks
from tests.support.training import settings

KILLS = int(os.environ.get("LAMINA_KILLS", "100"))

# A process lives this long at most before it is killed; a whole run takes longer.
SECONDS = 4.0


@pytest.mark.slow
@pytest.mark.timeout(60 * KILLS)
def test_random_kills_and_random_numbers_of_processes(model_folder: Path, tmp_path: Path) -> None:
    rng = random.Random(KILLS)
    train = {"gradient_accumulation_steps": 4, "max_steps": 20, "save_steps": 1, "eval_steps": 5}
    whole = lamina.train(settings(tmp_path, model_folder, "whole", train=train))
    config, left, number = settings(tmp_path, model_folder, "cut", train=train), KILLS, 0
    digests = []
    while left > 0 or not digests:
        number += 1
        config["output_dir"] = str(tmp_path / f"cut{number}")
        done = False
        while not done:
            size, victim, after = rng.randint(1, 4), rng.randrange(4), rng.uniform(0.2, SECONDS)

            def work(world: Group, victim: int = victim, after: float = after, left: int = left) -> str:
                if world.rank == victim and left > 0:
                    kill = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
                    timer = threading.Timer(after, kill)
                    timer.daemon = True
                    timer.start()
                begun = Run(Path(config["output_dir"])).begun
                return str(lamina.train(config, world=world, resume=begun).path)

            outcomes = run_ranks(size, work)
            killed = [outcome.error for outcome in outcomes].count("killed")
            left -= killed
            done = not any(outcome.error for outcome in outcomes)
            for outcome in outcomes:  # nothing but the lost process is told, by who noticed or by who heard of it
                told = outcome.error in ("LostRankError", "PeerError") and "is gone (killed" in outcome.message
                assert told or outcome.error in ("", "killed", "Silenced"), outcomes
        summary = Run(Path(config["output_dir"])).summary
        assert summary is not None
        digests.append(summary.adapter_digest)
    assert whole.summary is not None
    assert set(digests) == {whole.summary.adapter_digest}
