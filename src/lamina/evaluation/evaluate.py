"""`evaluate`: loss, perplexity and scores of an adapter's answers, with the bare base beside it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lamina.adapters.load import Loaded, load
from lamina.compute.fusion import fast_path
from lamina.config.losses.cross_entropy import CrossEntropyConfig
from lamina.data.dataset import Dataset
from lamina.data.example import Example, Kind
from lamina.data.recognize import question_of
from lamina.data.side import Side
from lamina.distributed.world import ALONE, World
from lamina.engine.generate import build_generator, complete
from lamina.engine.generator import ADAPTER, Generator
from lamina.engine.local import LocalGenerator
from lamina.engine.sampling import DEFAULT_MAX_TOKENS, Sampling
from lamina.errors import ConfigError, Problem
from lamina.evaluation.classification import ClassificationScores, class_probabilities, class_scores
from lamina.evaluation.evaluated import Evaluation, Prediction, Scores, SetLoss
from lamina.evaluation.forgetting import general_losses
from lamina.evaluation.judgement import explain
from lamina.evaluation.preference import changes_beside_data, preference_accuracy
from lamina.evaluation.preference import complete as complete_rows
from lamina.evaluation.rows import conversations, evaluation_rows
from lamina.evaluation.scorers import Case, Given, Scorer, build_scorer, find_scorers
from lamina.evaluation.scorers.perplexity import perplexity_of
from lamina.losses.base import Loss, build_loss
from lamina.losses.classification import Classification
from lamina.methods.shared.score import score_head
from lamina.models.vocabulary import check_side
from lamina.progress import Notify, Progress
from lamina.runs import Run, run_of
from lamina.runs.summary import LOSS_OF_SET, losses_of_sets
from lamina.structure.head import find_head
from lamina.training.eval_sets import best_set, evaluate_sets
from lamina.training.step import EvaluationResult, evaluate_loss

# What free text is scored by: equal, alike by letters, and alike by words.
QUICK_SCORERS = ("exact_match", "chrf", "token_f1")
REASONING_GIVEN = (
    "data.thinking is unsupervised: a row's own reasoning is given as part of its prompt, and exact match compares "
    "what comes after it"
)


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
    chat: bool | None = None,
    generator: Generator | None = None,
    progress: Progress = lambda what, done, total: None,
    notify: Notify = lambda message: None,
    world: World = ALONE,
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
        chat: Whether to render prompts with the chat template; by default as in training.
        generator: What answers; by default the loaded model.
        progress: Called with what is being done, how much of it is done, and how much there is.
        notify: Called with a sentence on what a user should know of the adapter and of its answers.
        world: The processes that share the work; the figures are those of one process, to the bit.

    Raises:
        ConfigError: There is no data to evaluate on, or no scorer of a name.
        DataError: It cannot be used, or the run's own lost rows since it was trained.
        AdapterError: The adapter cannot be loaded.
    """
    loaded = (
        source
        if isinstance(source, Loaded)
        else load(source, model=model, allow_base_mismatch=allow_base_mismatch, chat=chat, notify=notify)
    )
    scorers = find_scorers([*(["exact_match"] if exact_match else []), *score])
    generator, sampling = generator or build_generator(loaded), Sampling(max_tokens=max_new_tokens)
    for note in [*loaded.notes, *(generator.notes(sampling) if scorers or answers else [])]:
        notify(note)
    run = run_of(loaded.adapter.path)
    loss = _loss_of(loaded, run)
    if scorers and loss.trains_score:
        message = "compares generated answers, and an adapter that was trained to score has none"
        raise ConfigError(Problem("--score", message, "leave it out: how well it scores is always there"))
    rows = _read_rows(loaded, run, loss, data, columns, max_rows, notify, world)
    chosen, scorers, sampled = _to_answer(rows, loaded, scorers, 0 if loss.trains_score else answers)
    best = best_set(rows.sets, run.config.train.best_eval if run else None)
    losses = _measure_losses(loaded, loss, rows, best, batch_size, progress, world)
    predictions = _predict(generator, chosen, sampling, scorers, progress, world) if scorers else []
    texts: tuple[float | None, float | None] = (None, None)
    if general and not loss.trains_score:
        texts = general_losses(loaded, batch_size, lambda done, total: progress("general text", done, total), world)
    if scorers and loaded.template.thinking == "unsupervised":
        rows.notes.append(REASONING_GIVEN)
    found = _evaluation(rows, loss, best, losses, predictions, scorers, texts, sampled)
    gains = {
        each.name: (found.scores[each.name].base, found.scores[each.name].adapter)
        for each in scorers
        if each.larger_is_better
    }
    before, after = (loss.standing(each.loss, each.metrics) for each in (losses.base, losses.adapter))
    return replace(found, judgement=explain(found, gains, (before, after)))


@dataclass(frozen=True)
class _Rows:
    """The rows of an evaluation: the data they are of, encoded, by evaluation set, and what to know of them."""

    dataset: Dataset
    encoded: Side
    sets: dict[str, slice]
    taken: slice
    notes: list[str]


@dataclass(frozen=True)
class _Losses:
    """What the base and the adapter give on the rows, and the classes that a classifier chose."""

    base: EvaluationResult
    adapter: EvaluationResult
    classified: ClassificationScores | None


def _read_rows(
    loaded: Loaded,
    run: Run | None,
    loss: Loss,
    data: str | Path | None,
    columns: dict[str, str] | None,
    max_rows: int | None,
    notify: Notify,
    world: World,
) -> _Rows:
    """Reads and encodes the rows, with what the loss needs beside them."""
    given = (loaded, run, data, columns, max_rows, loss)
    dataset, rows, notes = world.first_here(lambda: evaluation_rows(*given), "encoding the rows")
    check_side(dataset.eval, [file.path for file in dataset.report.files], loaded.model, loaded.tokenizer)
    encoded = complete_rows(dataset.eval[rows], list(dataset.eval_sets.values()), loss, loaded, run, notify)
    notes += changes_beside_data(loss, run)
    sets = {name: slice(s.start, min(s.stop, s.start + (max_rows or s.stop))) for name, s in dataset.eval_sets.items()}
    return _Rows(dataset, encoded, sets, rows, notes)


def _to_answer(
    rows: _Rows, loaded: Loaded, scorers: list[Scorer], answers: int
) -> tuple[list[Example], list[Scorer], bool]:
    """Chooses the rows to answer, what scores the answers, and says whether these rows are a sample."""
    if scorers:
        examples = conversations(rows.dataset, loaded.template)
        return [row for each in rows.sets.values() or [rows.taken] for row in examples[each]], scorers, False
    if not answers:
        return [], [], False
    examples = rows.dataset.eval_examples(loaded.template)[rows.taken]
    sample = [row for row in examples if row.kind is not Kind.TEXT][:answers]
    scorers = quick_scorers() if sample else []
    return sample, scorers, bool(scorers)


def _measure_losses(
    loaded: Loaded, loss: Loss, rows: _Rows, best: str, batch_size: int, progress: Progress, world: World
) -> _Losses:
    """Measures the loss of the base and of the adapter, and what a classifier chooses."""
    encoded = rows.encoded

    def measure(what: str) -> EvaluationResult:
        def on(side: Side, where: str) -> EvaluationResult:
            report = lambda done: progress(what + where, done, len(side))  # noqa: E731
            parts = (loaded.model, head, loss, side, batch_size)
            return evaluate_loss(*parts, progress=report, layout=path.layout, world=world)

        with fast_path(loaded.model, longest=encoded.longest) as path:
            return evaluate_sets(on, encoded, rows.sets, best)

    with loaded.injection.disabled():
        head = find_head(loaded.model)
        base = measure("loss of the base")
    adapter = measure("loss of the adapter")
    classified = None
    if isinstance(loss, Classification):
        with fast_path(loaded.model, longest=encoded.longest) as path:
            found = class_probabilities(loaded.model, head, encoded, batch_size, path.layout, world=world)
        classified = class_scores(found.argmax(1), loss.targets(encoded).numpy(), loss.classes)
    return _Losses(base, adapter, classified)


def _evaluation(
    rows: _Rows,
    loss: Loss,
    best: str,
    measured: _Losses,
    predictions: list[Prediction],
    scorers: Sequence[Scorer],
    texts: tuple[float | None, float | None],
    sampled: bool,
) -> Evaluation:
    """Puts together what was found; `texts` are the losses of base and adapter on general text."""
    adapter, base, encoded, sets = measured.adapter, measured.base, rows.encoded, rows.sets
    scores = {scorer.name: _means(predictions, scorer.name) for scorer in scorers}
    exact = None if sampled else scores.get("exact_match")
    losses, base_losses = losses_of_sets(adapter.metrics), losses_of_sets(base.metrics)
    return Evaluation(
        loss=adapter.loss,
        perplexity=perplexity_of(adapter.loss) if loss.is_likelihood else None,
        base_loss=base.loss,
        base_perplexity=perplexity_of(base.loss) if loss.is_likelihood else None,
        exact_match=exact.adapter if exact else None,
        base_exact_match=exact.base if exact else None,
        rows=sum(len(encoded[each]) for each in sets.values()) if sets else len(encoded),
        dropped=rows.dataset.eval_dropped,
        notes=rows.notes,
        predictions=predictions,
        scores=scores,
        metrics=_own_metrics(adapter.metrics),
        base_metrics=_own_metrics(base.metrics),
        preference_accuracy=preference_accuracy(adapter.metrics, encoded[sets[best]] if sets else encoded),
        margin=adapter.metrics.get("rewards/margins"),
        base_general_loss=texts[0],
        general_loss=texts[1],
        sampled=sampled,
        classification=measured.classified,
        sets={name: SetLoss(losses[name], base_losses[name], len(encoded[each])) for name, each in sets.items()},
        best_set=best,
    )


def quick_scorers() -> list[Scorer]:
    """The scorers that answers are looked at with: those of `QUICK_SCORERS` whose packages are installed."""
    found = []
    for name in QUICK_SCORERS:
        with contextlib.suppress(ConfigError):
            found.append(build_scorer(name))
    return found


def _loss_of(loaded: Loaded, run: Run | None) -> Loss:
    """The loss of the run; of an adapter by itself, what its head says."""
    head = score_head(loaded.model)
    if run is None and head is not None and len(head.weight) > 1:
        return Classification(head.classes or [str(number) for number in range(len(head.weight))])
    return build_loss(run.config.loss if run else CrossEntropyConfig())


def _own_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith(LOSS_OF_SET)}


def own_questions(generator: Generator, prompts: Sequence[str], adapter: str | None, world: World) -> list[int]:
    """Returns the places of the prompts that this process answers: its share, where that cannot change an answer."""
    if world.size == 1 or (isinstance(generator, LocalGenerator) and generator.is_exact(adapter)):
        return sorted(world.mine([float(len(prompt)) for prompt in prompts]))
    return list(range(len(prompts))) if world.is_first else []


def _predict(
    generator: Generator,
    examples: list[Example],
    sampling: Sampling,
    scorers: Sequence[Scorer],
    progress: Progress,
    world: World,
) -> list[Prediction]:
    questions = [question_of(row, generator.template) for row in examples]

    def say(what: str, adapter: str | None) -> list[str]:
        mine = own_questions(generator, [question.prompt for question in questions], adapter, world)
        report = lambda done: progress(what, done, len(mine))  # noqa: E731
        prompts = [questions[place].prompt for place in mine]
        answered = complete(generator, prompts, sampling, adapter=adapter, progress=report) if mine else []
        written = world.collect(dict(zip(mine, answered, strict=True)), what)
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


def _means(predictions: Sequence[Prediction], scorer: str) -> Scores:
    pairs = [prediction.scores[scorer] for prediction in predictions] or [(0.0, 0.0)]
    adapter, base = zip(*pairs, strict=True)
    return Scores(math.fsum(adapter) / len(pairs), math.fsum(base) / len(pairs))
