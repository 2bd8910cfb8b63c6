"""`lamina eval`: one adapter's loss and scores on a file, or several subjects on tasks, with statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from lamina.cli.evaluation_of_tasks import benchmarks_of, evaluate_tasks, print_found, tasks_of
from lamina.cli.output import (
    MAX_SEED,
    DeviceOption,
    JsonFlag,
    MismatchFlag,
    ModelOption,
    advising_column,
    column_mapping,
)
from lamina.cli.processes import Nproc, as_one, start_processes
from lamina.distributed.ranks import is_one_of_several
from lamina.errors import ConfigError, Problem

# Rows that are answered and shown unless more are asked for.
ANSWERS = 5

Subjects = Annotated[
    list[str],
    typer.Argument(
        metavar="SUBJECT...",
        help="Runs, adapters, bases, merged folders, or http://HOST:PORT/v1#MODEL; one or several.",
    ),
]


def evaluate(
    subjects: Subjects,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="NAME|FILE", help="A task's .yaml file, or a built-in task; may be repeated."),
    ] = None,
    benchmarks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            metavar="NAME,...",
            help="Tasks of lm-eval, separated by commas, such as arc_challenge,hellaswag.",
        ),
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(help="Folder of task descriptions for lm-eval, for --tasks.")
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw",
            help="Render prompts with the chat template, or not; by default as in training, and --tasks as plain text.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Data file to evaluate on; by default the task's, or the run's evaluation data."),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", help="FIELD=COLUMN, such as prompt=question; may be repeated."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="SUBJECT", help="The subject that all others are compared with; `base` for the adapters' own base."
        ),
    ] = None,
    few_shot: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Also evaluate the base with N training rows as examples in its prompt."),
    ] = None,
    general: Annotated[
        Path | None,
        typer.Option(
            help="General text (.txt, or .jsonl with text) to measure forgetting on; by default lamina's own."
        ),
    ] = None,
    no_forgetting: Annotated[
        bool, typer.Option("--no-forgetting", help="Do not measure loss and KL on general text.")
    ] = False,
    power: Annotated[
        float | None, typer.Option(metavar="D", help="A difference, such as 0.03: say how many rows would show it.")
    ] = None,
    cluster_by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Rows with the same value of this column count as one draw.")
    ] = None,
    allow_leakage: Annotated[
        bool, typer.Option("--allow-leakage", help="Let rows count whose prompts training saw.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for the result; by default a new one in evaluations/.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the examples of --few-shot.")] = 0,
    exact_match: Annotated[
        bool,
        typer.Option("--exact-match", help="Also generate answers and compare them with the expected answers."),
    ] = False,
    score: Annotated[
        list[str] | None,
        typer.Option("--score", metavar="NAME", help="Score generated answers, such as final_answer; may be repeated."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum length of a generated answer in tokens; by default 256.")
    ] = None,
    max_rows: Annotated[int | None, typer.Option(min=1, help="Use only the first N rows.")] = None,
    answers: Annotated[
        int | None,
        typer.Option(min=0, help="Of one adapter: answer N rows (5), and show base and adapter side by side."),
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--html", help="Of one adapter: write figures and answers to this .html file.")
    ] = None,
    predictions: Annotated[Path | None, typer.Option(help="Write the generated answers to this .jsonl file.")] = None,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    allow_base_mismatch: MismatchFlag = False,
    nproc: Nproc = None,
    as_json: JsonFlag = False,
) -> None:
    """Evaluate adapters and models: loss and scores of one adapter, or several subjects on tasks, paired row by row."""
    mapping, scorers = column_mapping(columns), [*(["exact_match"] if exact_match else []), *(score or [])]
    with_tasks = {
        "--task": task,
        "--tasks": benchmarks,
        "--against": against,
        "--few-shot": few_shot,
        "--general": general,
        "--power": power,
        "--cluster-by": cluster_by,
        "--allow-leakage": allow_leakage,
        "--out": folder,
    }
    given = [name for name, value in with_tasks.items() if value]
    is_one = not given and len(subjects) == 1 and _is_one_adapter(subjects[0], data)
    if nproc is not None or is_one_of_several():
        _share(nproc, is_one)
    everything = [*subjects, *([against] if against else [])]
    if not task and not benchmarks and data is None and _are_stored(everything):
        _pair_stored(everything, given, power, as_json)
        return
    if is_one:
        from lamina.cli.evaluation_of_one import evaluate_one

        with as_one() as group:
            evaluate_one(
                ANSWERS if answers is None else answers,
                page,
                not no_forgetting,
                subjects[0],
                data,
                mapping,
                scorers,
                max_new_tokens,
                max_rows,
                predictions,
                chat,
                model,
                allow_base_mismatch,
                as_json,
                group,
            )
        return
    of_one = {"--predictions": predictions, "--html": page, "--answers": answers}
    _check_for_tasks(given, of_one, power)
    _check_benchmarks(benchmarks, include_path, chat)
    if benchmarks and not task and data is None:
        of_tasks = {"--column": columns, "--score": score, "--exact-match": exact_match}
        _check_needless(of_tasks | {"--max-new-tokens": max_new_tokens, "--cluster-by": cluster_by})
        tasks = []
    else:
        tasks = tasks_of(task or [], data, mapping, scorers, max_new_tokens, max_rows, cluster_by)
    with advising_column() if data is not None else contextlib.nullcontext():
        evaluate_tasks(
            subjects,
            tasks,
            benchmarks_of(benchmarks or "", max_rows, include_path, bool(chat)),
            as_json,
            against=against,
            few_shot=few_shot or 0,
            general=general,
            forgetting=not no_forgetting,
            power=power,
            allow_leakage=allow_leakage,
            seed=seed,
            model=model,
            allow_base_mismatch=allow_base_mismatch,
            out=folder,
        )


def _share(nproc: str | None, is_one: bool) -> None:
    """Starts the processes that are asked for; comes back in one that shares the work, or if one does it all.

    Raises:
        ConfigError: What is evaluated cannot be shared.
    """
    from lamina.distributed.launch import count_processes

    count = 1 if nproc is None else count_processes(nproc)
    if not is_one and (count > 1 or is_one_of_several()):
        message = "shares the evaluation of one adapter on rows, and not that of tasks or of several subjects"
        with as_one():
            raise ConfigError(Problem("--nproc", message, "use one process"))
    if count > 1:
        start_processes(count)


def _are_stored(refs: Sequence[str]) -> bool:
    """Whether all are folders of stored evaluations."""
    return len(refs) > 1 and all(
        (Path(ref) / "result.json").is_file() and (Path(ref) / "rows").is_dir() for ref in refs
    )


def _pair_stored(refs: Sequence[str], given: Sequence[str], power: float | None, as_json: bool) -> None:
    """Compares evaluations that are stored, and prints what was found.

    Args:
        refs: Their folders; the last is what the others are compared with if --against is given.
        given: The options that are given.
        power: A difference, for which the rows that would show it are counted.
        as_json: Print a JSON object.

    Raises:
        ConfigError: An option is given that is for evaluating anew.
    """
    from lamina.evaluation.later import pair_stored
    from lamina.evaluation.store import read_evaluation

    ignored = [name for name in given if name not in ("--against", "--power")]
    if ignored:
        message = "has no effect on evaluations that are stored, which are compared as they are"
        raise ConfigError(Problem(ignored[0], message, "leave it out, or evaluate again"))
    found = pair_stored([read_evaluation(Path(ref)) for ref in refs], against="--against" in given, power=power)
    print_found(found, as_json)


def _is_one_adapter(subject: str, data: str | None) -> bool:
    """Whether a subject is evaluated as it always was: its loss beside the base's, on its own data or a file."""
    if subject.startswith(("http://", "https://")):
        return False
    from lamina.config.aliases import ALIASES
    from lamina.registry.names import is_reference

    if is_reference(subject):
        return True
    path = Path(subject).expanduser()
    names = ("adapter_config.json", "adapter/adapter_config.json", "manifest.json", "config.yaml")
    is_adapter = any((path / name).is_file() for name in names)
    if not is_adapter and (subject in ALIASES or path.suffix == ".gguf" or (path / "config.json").is_file()):
        return False  # a model has no data of its own, and the error asks for some
    # What is neither an adapter nor there is an adapter that is missing, unless there are rows to ask a base.
    return is_adapter or data is None


def _check_for_tasks(given: Sequence[str], of_one: Mapping[str, object], power: float | None) -> None:
    """Refuses what is for one adapter where there are tasks or several subjects, and a power that shows nothing."""
    for option, value in of_one.items():
        if value is not None:
            fix = "leave it out; the folder of the evaluation has every answer, and a page"
            raise ConfigError(Problem(option, f"is for one adapter without {given[0] if given else 'a task'}", fix))
    if power is not None and not 0 < abs(power) < 1e6:
        raise ConfigError(Problem("--power", f"{power} is no difference that can be shown", "give one such as 0.03"))


def _check_benchmarks(benchmarks: str | None, include_path: Path | None, chat: bool | None) -> None:
    """Refuses options that are for lm-eval's tasks where there are none."""
    if (include_path or chat is not None) and not benchmarks:
        option = "--include-path" if include_path else "--chat" if chat else "--raw"
        raise ConfigError(Problem(option, "has no effect without --tasks", "add --tasks NAME,..., or leave it out"))


def _check_needless(options: Mapping[str, object]) -> None:
    """Refuses options that are for tasks of one's own where there are only those of lm-eval."""
    for option, value in options.items():
        if value:
            message = "has no effect on lm-eval's tasks, which say themselves how they are asked and scored"
            raise ConfigError(Problem(option, message, "leave it out, or name a task of yours with --task"))
