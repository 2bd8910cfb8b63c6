"""`evaluate`: loss, perplexity and scores of an adapter's answers, with the bare base beside it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lamina.adapters.load import Loaded, load
from lamina.compute.fusion import fast_path
from lamina.config import DataConfig
from lamina.config.losses.cross_entropy import CrossEntropyConfig
from lamina.data.dataset import Dataset, build_dataset, build_evaluation
from lamina.data.example import Example, Kind
from lamina.engine.generate import build_generator, complete
from lamina.engine.generator import ADAPTER, Generator
from lamina.engine.sampling import DEFAULT_MAX_TOKENS, Sampling
from lamina.errors import ConfigError, DataError, Problem
from lamina.evaluation.forgetting import general_losses
from lamina.evaluation.judgement import explain
from lamina.evaluation.preference import Share, preference_accuracy
from lamina.evaluation.preference import complete as complete_rows
from lamina.evaluation.scorers import Case, Given, Scorer, build_scorer, find_scorers
from lamina.losses.base import Loss, build_loss
from lamina.models.vocabulary import check_side
from lamina.progress import Notify, Progress
from lamina.runs import Run, run_of
from lamina.structure.head import find_head
from lamina.training.step import EvaluationResult, evaluate_loss

# What free text is scored by: equal, alike by letters, and alike by words.
QUICK_SCORERS = ("exact_match", "chrf", "token_f1")
REASONING_GIVEN = (
    "data.thinking is unsupervised: a row's own reasoning is given as part of its prompt, and exact match compares "
    "what comes after it"
)
# Of a run's own data that is not what it was.
_OTHER_DATA = "Fix: put it back as it was, or name what to evaluate on with --data FILE."
_MIXED_UP = "rows that it learned may be among those that it is evaluated on"


@dataclass(frozen=True)
class Prediction:
    """What was asked, what was expected, and what adapter and base said.

    Attributes:
        row: Of the data file, counted from 1.
        prompt: The last user turn.
        expected: The row's answer.
        adapter: The adapter's answer.
        base: The bare base's.
        scores: By scorer, of the adapter's answer and of the base's.
    """

    row: int
    prompt: str
    expected: str
    adapter: str
    base: str
    scores: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Scores:
    """Means of a scorer over all rows.

    Attributes:
        adapter: Of the adapter's answers.
        base: Of the bare base's.
    """

    adapter: float
    base: float


@dataclass(frozen=True)
class Evaluation:
    """How an adapter does on some data.

    Attributes:
        loss: Of the adapter: the run's own loss, by default the mean cross entropy over supervised tokens.
        perplexity: exp(loss); None where the loss is no mean of -log p.
        base_loss: The same of the bare base.
        base_perplexity: exp(base_loss).
        exact_match: Share of rows whose greedy answer equals the expected one, white space at the ends apart; None if
            not asked for.
        base_exact_match: The same of the bare base.
        rows: Rows evaluated.
        dropped: Rows to evaluate on that could not be used, by reason.
        notes: What a user should know of the data (that was named, or that is not what the run was trained with), and
            of how answers were compared.
        predictions: The generated answers, if asked for.
        scores: Of the answers, by scorer.
        metrics: The loss's own figures, of the adapter.
        base_metrics: The same of the bare base.
        preference_accuracy: Share of pairs whose chosen answer has the higher reward; None without pairs.
        margin: Mean difference between the rewards of chosen and rejected answers; None without a loss over answers.
        general_loss: Loss of the adapter on general text, which shows what it forgot; None if it was not measured.
        base_general_loss: The same of the bare base.
        sampled: Whether only some of the rows were answered.
        judgement: What the figures mean, in sentences; the last one is the judgement.
    """

    loss: float
    perplexity: float | None
    base_loss: float
    base_perplexity: float | None
    exact_match: float | None
    base_exact_match: float | None
    rows: int
    dropped: dict[str, int]
    notes: list[str]
    predictions: list[Prediction]
    scores: dict[str, Scores]
    metrics: dict[str, float]
    base_metrics: dict[str, float]
    preference_accuracy: Share | None = None
    margin: float | None = None
    general_loss: float | None = None
    base_general_loss: float | None = None
    sampled: bool = False
    judgement: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """As plain data, without the predictions."""
        return {key: value for key, value in asdict(self).items() if key != "predictions"}


def evaluate(
    source: str | Path | Loaded,
    data: str | Path | None = None,
    *,
    columns: dict[str, str] | None = None,
    max_rows: int | None = None,
    exact_match: bool = False,
    score: Sequence[Given] = (),
    answers: int = 0,
    general: bool = False,
    max_new_tokens: int = DEFAULT_MAX_TOKENS,
    batch_size: int = 8,
    model: str | Path | None = None,
    allow_base_mismatch: bool = False,
    generator: Generator | None = None,
    progress: Progress = lambda what, done, total: None,
    notify: Notify = lambda message: None,
) -> Evaluation:
    """Evaluates an adapter and its bare base on the same rows.

    Args:
        source: A run directory, an adapter folder, or what `load` gave.
        data: A data file; by default the run's own evaluation data.
        columns: Column mapping for `data`; by default the run's.
        max_rows: Only so many rows from the start.
        exact_match: Also generate answers and compare them with the expected ones, as `exact_match` in `score`.
        score: Scorers that compare generated answers with the expected ones: their names, descriptions as in a task's
            `scorers`, or functions of (answer, expected).
        answers: Without scorers: answer so many rows, to be looked at, and score them by `QUICK_SCORERS`.
        general: Also measure the loss on general text.
        max_new_tokens: Longest answer.
        batch_size: Examples in a batch of the loss.
        model: The base; by default the one that the adapter names.
        allow_base_mismatch: Go on although the lock does not fit.
        generator: What answers; by default the loaded model.
        progress: Called with what is being done, how much of it is done, and how much there is.
        notify: Called with a sentence on what a user should know of the adapter and of its answers.

    Raises:
        ConfigError: There is no data to evaluate on, or no scorer of a name.
        DataError: It cannot be used, or the run's own lost rows since it was trained.
        AdapterError: The adapter cannot be loaded.
    """
    loaded = (
        source
        if isinstance(source, Loaded)
        else load(source, model=model, allow_base_mismatch=allow_base_mismatch, notify=notify)
    )
    scorers = find_scorers([*(["exact_match"] if exact_match else []), *score])
    generator, sampling = generator or build_generator(loaded), Sampling(max_tokens=max_new_tokens)
    for note in [*loaded.notes, *(generator.notes(sampling) if scorers or answers else [])]:
        notify(note)
    run = run_of(loaded.adapter.path)
    loss = build_loss(run.config.loss if run else CrossEntropyConfig())
    dataset, rows, notes = _eval_data(loaded, run, data, columns, max_rows, loss)
    check_side(dataset.eval, [file.path for file in dataset.report.files], loaded.model, loaded.tokenizer)
    encoded = complete_rows(dataset.eval[rows], loss, loaded, run, notify)
    examples = _conversations(dataset)[rows] if scorers else []
    sampled = bool(answers) and not scorers
    if sampled:
        examples = [row for row in dataset.eval_examples()[rows] if row.kind is not Kind.TEXT][:answers]
        scorers = quick_scorers() if examples else []

    def measure(what: str) -> EvaluationResult:
        report = lambda done: progress(what, done, len(encoded))  # noqa: E731
        with fast_path(loaded.model, longest=encoded.longest) as path:
            return evaluate_loss(loaded.model, head, loss, encoded, batch_size, progress=report, layout=path.layout)

    with loaded.injection.disabled():
        head = find_head(loaded.model)
        base = measure("loss of the base")
    adapter = measure("loss of the adapter")
    predictions = _predict(generator, examples, sampling, scorers, progress) if scorers else []
    scores = {scorer.name: _means(predictions, scorer.name) for scorer in scorers}
    exact = None if sampled else scores.get("exact_match")
    texts = (
        general_losses(loaded, batch_size, lambda done, total: progress("general text", done, total))
        if general
        else (None, None)
    )
    if scorers and loaded.template.thinking == "unsupervised":
        notes.append(REASONING_GIVEN)
    found = Evaluation(
        loss=adapter.loss,
        perplexity=math.exp(adapter.loss) if loss.is_likelihood else None,
        base_loss=base.loss,
        base_perplexity=math.exp(base.loss) if loss.is_likelihood else None,
        exact_match=exact.adapter if exact else None,
        base_exact_match=exact.base if exact else None,
        rows=len(encoded),
        dropped=dataset.eval_dropped,
        notes=notes,
        predictions=predictions,
        scores=scores,
        metrics=adapter.metrics,
        base_metrics=base.metrics,
        preference_accuracy=preference_accuracy(adapter.metrics, len(encoded)),
        margin=adapter.metrics.get("rewards/margins"),
        base_general_loss=texts[0],
        general_loss=texts[1],
        sampled=sampled and bool(scorers),
    )
    gains = {
        each.name: (scores[each.name].base, scores[each.name].adapter) for each in scorers if each.larger_is_better
    }
    return replace(found, judgement=explain(found, gains))


def quick_scorers() -> list[Scorer]:
    """The scorers that answers are looked at with: those of `QUICK_SCORERS` whose packages are installed."""
    found = []
    for name in QUICK_SCORERS:
        with contextlib.suppress(ConfigError):
            found.append(build_scorer(name))
    return found


def _predict(
    generator: Generator, examples: list[Example], sampling: Sampling, scorers: Sequence[Scorer], progress: Progress
) -> list[Prediction]:
    questions = [generator.template.question(row.messages, row.tools, row.template_kwargs) for row in examples]

    def say(what: str, adapter: str | None) -> list[str]:
        report = lambda done: progress(what, done, len(questions))  # noqa: E731
        prompts = [question.prompt for question in questions]
        written = complete(generator, prompts, sampling, adapter=adapter, progress=report)
        return [question.voice.read(text).strip() for question, text in zip(questions, written, strict=True)]

    base = say("answers of the base", None)
    adapter = say("answers of the adapter", ADAPTER)
    predictions = []
    for example, question, ours, theirs in zip(examples, questions, adapter, base, strict=True):
        expected = question.answer.strip()
        cases = [Case(said, expected, number=example.row) for said in (ours, theirs)]
        scores = {each.name: (each.score(cases[0]), each.score(cases[1])) for each in scorers}
        predictions.append(Prediction(example.row, example.prompt[-1].content, expected, ours, theirs, scores))
    return predictions


def _eval_data(
    loaded: Loaded,
    run: Run | None,
    data: str | Path | None,
    columns: dict[str, str] | None,
    max_rows: int | None,
    loss: Loss,
) -> tuple[Dataset, slice, list[str]]:
    """The data to evaluate on, which of its evaluation examples, and what a user should know of it."""
    if data is None:
        if run is None or run.config.data.eval is None:
            raise ConfigError(
                Problem("--data", "is required: there is no run with evaluation data here.", "give a data file")
            )
        config = run.config
        batch_size = config.train.per_device_train_batch_size
        dataset = build_dataset(
            config.data, loaded.template, batch_size, config.seed, notify=None, sequences=loss.sequences
        )
        if not len(dataset.eval):
            raise DataError(f"{run.path}: the run has no evaluation rows. Fix: give a file with --data.")
        return dataset, slice(max_rows), _changes_since(run, dataset)
    changes = {"train": str(data), "columns": columns, "format": "auto", "eval": None, "replay": None}
    changes |= {"stratify_by": None, "group_by": None}
    settings = run.config.data if run else DataConfig(train=str(data))
    if run and columns is None:
        changes["columns"] = settings.columns
    settings = settings.model_copy(update=changes)
    dataset = build_evaluation(settings, str(data), "--data", max_rows, loaded.template, loss.sequences)
    return dataset, slice(None), [*dataset.report.warnings, *dataset.report.notes]


def _changes_since(run: Run, dataset: Dataset) -> list[str]:
    """What the files that a run's evaluation rows come from are no more, by the digests in its manifest.

    Raises:
        DataError: They have fewer rows than when the run was trained.
    """
    then, now = run.manifest.data or [], dataset.report.files
    if len(then) != len(now):
        message = f"the run was trained with {len(then)} data files, and there are {len(now)} now"
        if sum(file.rows for file in then) > sum(file.rows for file in now):
            raise DataError(f"{run.path}: {message}, with fewer rows. {_OTHER_DATA}")
        return [f"warning: {message}; {_MIXED_UP}"]
    side = "eval" if isinstance(run.config.data.eval, str) else "train"  # a share is held out of what is trained on
    changed = [
        (file, was) for was, file in zip(then, now, strict=True) if file.role == side and file.sha256 != was.sha256
    ]
    for file, was in changed:
        if file.rows < was.rows:
            raise DataError(
                f"{file.path}: has {file.rows} rows, and had {was.rows} when {run.path} was trained. {_OTHER_DATA}"
            )
    what = _MIXED_UP if side == "train" else "these are not the rows that the run was evaluated on"
    return [f"warning: {file.path} changed since the run was trained; {what}" for file, _ in changed]


def _conversations(dataset: Dataset) -> list[Example]:
    examples = dataset.eval_examples()
    if any(example.kind is Kind.TEXT for example in examples):
        raise DataError("plain text has no answers to compare with. Fix: leave --exact-match out.")
    return examples


def _means(predictions: Sequence[Prediction], scorer: str) -> Scores:
    pairs = [prediction.scores[scorer] for prediction in predictions] or [(0.0, 0.0)]
    adapter, base = zip(*pairs, strict=True)
    return Scores(math.fsum(adapter) / len(pairs), math.fsum(base) / len(pairs))
