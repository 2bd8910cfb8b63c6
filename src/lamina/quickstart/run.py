"""`lamina quickstart`: from data to a merged adapter on the embedded model, with a bundled task.

Generates the data, trains, answers 100 unseen requests with and without the adapter, merges, and lists the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lamina import files
from lamina.adapters.certificate import Certificate
from lamina.adapters.load import load
from lamina.chat.message import Message
from lamina.config import load_config
from lamina.engine.generate import answer, build_generator
from lamina.engine.generator import ADAPTER
from lamina.engine.sampling import Sampling
from lamina.export.merge import merge
from lamina.progress import Notify, Progress
from lamina.quickstart.settings import quickstart_settings, write_rows
from lamina.quickstart.task import Request, build_task, is_valid_record
from lamina.runs import Run
from lamina.runs.events import CheckpointSaved, OnEvent, Started
from lamina.training.loop import train

DEFAULT_FOLDER = "runs/quickstart"
TRAIN_ROWS = 680
EVAL_ROWS = 100

# Enough for a record, which has at most about 45 tokens; the base model's answers may be cut off.
ANSWER_TOKENS = 72


@dataclass(frozen=True)
class Sample:
    """One unseen request with the expected record and both answers."""

    request: str
    expected: str
    base: str
    adapter: str


@dataclass(frozen=True)
class Quickstart:
    """The result of the quickstart.

    Attributes:
        folder: The folder with all files.
        run: The training run.
        merged: The merged model's folder.
        certificate: The certificate of the merged model.
        base_exact_match: Share of the unseen requests that the base model answers exactly.
        exact_match: The same share with the adapter.
        base_valid_json: Share of the base model's answers that are records of the schema.
        valid_json: The same share with the adapter.
        training_seconds: Duration of the training steps, in seconds.
        samples: Three requests with both answers.
    """

    folder: Path
    run: Run
    merged: Path
    certificate: Certificate
    base_exact_match: float
    exact_match: float
    base_valid_json: float
    valid_json: float
    training_seconds: float
    samples: list[Sample]

    def as_json(self) -> dict[str, Any]:
        """Returns the result as plain data."""
        summary = self.run.summary
        assert summary is not None, "the run is finished"
        return {
            "base_exact_match": self.base_exact_match,
            "exact_match": self.exact_match,
            "base_valid_json": self.base_valid_json,
            "valid_json": self.valid_json,
            "training_seconds": self.training_seconds,
            "adapter": str(self.run.adapter),
            "adapter_digest": summary.adapter_digest,
            "run": str(self.run.path),
            "merged": str(self.merged),
            "certificate": self.certificate.as_json(),
            "samples": [vars(sample) for sample in self.samples],
        }


def quickstart(
    folder: str | Path | None = None,
    *,
    model: str = "smollm2-135m",
    seed: int = 0,
    train_rows: int = TRAIN_ROWS,
    eval_rows: int = EVAL_ROWS,
    overrides: tuple[str, ...] = (),
    on_event: OnEvent | None = None,
    notify: Notify = lambda message: None,
    progress: Progress = lambda what, done, total: None,
) -> Quickstart:
    """Runs the quickstart.

    Args:
        folder: Folder for all files; by default `runs/quickstart`, with a number added if it exists.
        model: The base model.
        seed: Seed of the data and the training; the same seed gives the same adapter digest.
        train_rows: Number of training requests.
        eval_rows: Number of unseen requests.
        overrides: More settings, as `key.sub=value`.
        on_event: Called with each training event.
        notify: Called with a message at each stage.
        progress: Called while generating answers.

    Raises:
        LaminaError: As for `train` and `merge`.
    """
    root = Path(folder) if folder else free_name(Path(DEFAULT_FOLDER))
    task = build_task(seed, train_rows, eval_rows)
    notify(f"Writing {train_rows} training and {eval_rows} unseen requests to {root / 'data'}")
    train_file, eval_file = root / "data" / "train.jsonl", root / "data" / "eval.jsonl"
    write_rows(train_file, task.train)
    write_rows(eval_file, task.eval)
    settings = quickstart_settings(model, train_file, root / "run", seed, overrides)
    config = load_config(settings, overrides)
    files.write_text(root / "config.yaml", yaml.safe_dump(settings, sort_keys=False))

    run = train(config, on_event)
    training_seconds = max(e.time for e in run.events(CheckpointSaved)) - next(run.events(Started)).time

    notify("Answering the unseen requests, first with the base model, then with the adapter ...")
    generator = build_generator(load(run.path))
    conversations = [[Message(m["role"], m["content"]) for m in r.messages()[:-1]] for r in task.eval]

    def say(what: str, adapter: str | None) -> list[str]:
        report = lambda done: progress(what, done, len(conversations))  # noqa: E731
        return answer(generator, conversations, Sampling(max_tokens=ANSWER_TOKENS), adapter=adapter, progress=report)

    base_answers = say("base model", None)
    adapter_answers = say("adapter", ADAPTER)
    merged = merge(run.path, root / "merged", notify=notify)
    return Quickstart(
        folder=root,
        run=run,
        merged=merged.path,
        certificate=merged.certificate,
        base_exact_match=_exact(task.eval, base_answers),
        exact_match=_exact(task.eval, adapter_answers),
        base_valid_json=_share([is_valid_record(text) for text in base_answers]),
        valid_json=_share([is_valid_record(text) for text in adapter_answers]),
        training_seconds=training_seconds,
        samples=[
            Sample(request.text, request.answer(), base.strip(), ours.strip())
            for request, base, ours in list(zip(task.eval, base_answers, adapter_answers, strict=True))[:3]
        ],
    )


def free_name(path: Path) -> Path:
    """Returns `path`, or the first of `path-2`, `path-3`, ... that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _exact(requests: list[Request], answers: list[str]) -> float:
    return _share([request.answer() == text.strip() for request, text in zip(requests, answers, strict=True)])


def _share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)
