"""`python -m lamina.comparison.measure`: measures one trained candidate of a comparison in a separate process.

Reads a `Job` as JSON from stdin, and writes `Measured` as JSON to the last line of stdout.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lamina.adapters.load import load
from lamina.data.dataset import load_examples
from lamina.engine.generate import build_generator, complete
from lamina.engine.generator import ADAPTER, Generator
from lamina.engine.sampling import DEFAULT_MAX_TOKENS, Sampling
from lamina.errors import DataError, LaminaError
from lamina.evaluation.forgetting import general_loss, general_pieces
from lamina.evaluation.score import Score, score
from lamina.runs import open_run


@dataclass(frozen=True)
class Measuring:
    """What to measure in addition to the evaluation loss.

    Attributes:
        test: A file of rows whose answers are generated and scored; None for no score.
        max_test_rows: Maximum number of rows, from the start of the file.
        max_new_tokens: Maximum length of an answer.
        general: A file of text unrelated to the task, to measure forgetting; None for none.
        general_pieces: Number of pieces of that text, each of at most `data.max_length` tokens.
    """

    test: str | None = None
    max_test_rows: int | None = None
    max_new_tokens: int = DEFAULT_MAX_TOKENS
    general: str | None = None
    general_pieces: int = 64

    @property
    def anything(self) -> bool:
        """Whether there is anything to measure."""
        return self.test is not None or self.general is not None


@dataclass(frozen=True)
class Job:
    """One candidate to measure.

    Attributes:
        run: The candidate's run directory.
        base: Whether to measure the bare base instead.
        measuring: What to measure.
    """

    run: str
    base: bool
    measuring: Measuring

    def as_json(self) -> dict[str, Any]:
        """Converts to plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Job:
        """Converts from the result of `as_json`."""
        return cls(value["run"], value["base"], Measuring(**value["measuring"]))


@dataclass(frozen=True)
class Measured:
    """Measured results.

    Attributes:
        score: Score of the answers; None if not measured.
        general_loss: Mean loss on the general text; None if not measured.
    """

    score: Score | None
    general_loss: float | None

    def as_json(self) -> dict[str, Any]:
        """Converts to plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Measured:
        """Converts from the result of `as_json`."""
        return cls(Score(**value["score"]) if value["score"] else None, value["general_loss"])


def measure(job: Job) -> Measured:
    """Loads a run's adapter and measures it, or its bare base.

    Raises:
        LaminaError: The adapter or the data cannot be used.
    """
    run = open_run(job.run)
    loaded = load(run.path, dtype=run.config.dtype)
    general, wanted = None, job.measuring
    if wanted.general is not None:
        length = run.config.data.max_length
        pieces = general_pieces(Path(wanted.general), loaded.tokenizer, length, wanted.general_pieces)
        general = general_loss(loaded, pieces, run.config.train.per_device_eval_batch_size, base=job.base)
    return Measured(None if wanted.test is None else _score(build_generator(loaded), job), general)


def _score(generator: Generator, job: Job) -> Score:
    wanted = job.measuring
    assert wanted.test is not None
    data = open_run(job.run).config.data.model_copy(update={"format": "auto"})
    examples = load_examples(data, wanted.test, "--test", wanted.max_test_rows)
    if not examples:
        raise DataError(f"{wanted.test}: no row can be used. Fix: check the file with the run's data.columns.")
    questions = [generator.template.question(row.messages, row.tools, row.template_kwargs) for row in examples]
    prompts, sampling = [question.prompt for question in questions], Sampling(max_tokens=wanted.max_new_tokens)
    written = complete(generator, prompts, sampling, adapter=None if job.base else ADAPTER)
    answers = [question.voice.read(text) for question, text in zip(questions, written, strict=True)]
    return score(answers, [question.answer for question in questions])


def main() -> None:
    """Reads the job, measures, and writes the results; an error is written to stderr as one line."""
    try:
        measured = measure(Job.from_json(json.load(sys.stdin)))
    except LaminaError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
    sys.stdout.write(json.dumps(measured.as_json()) + "\n")


if __name__ == "__main__":
    main()
