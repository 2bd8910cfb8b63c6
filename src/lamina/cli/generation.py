"""`lamina generate` and `lamina chat`: answers to prompts, to a file of them, and in a conversation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lamina.cli.output import (
    MAX_SEED,
    Bars,
    DeviceOption,
    JsonFlag,
    MismatchFlag,
    ModelOption,
    check_target,
    notify,
    out,
    print_json,
)
from lamina.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lamina.engine.sampling import Sampling

Subject = Annotated[
    str, typer.Argument(metavar="RUN|ADAPTER|MODEL", help="A run directory, an adapter folder, or a base model.")
]

ChatFlag = Annotated[
    bool | None,
    typer.Option(
        "--chat/--raw",
        help="Render prompts with the chat template, or give them as they are; by default as in training.",
    ),
]


def generate(
    source: Subject,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A user message; may be repeated.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Answer a .jsonl file instead: a string, or an object with prompt or messages, a line."),
    ] = None,
    target: Annotated[
        Path | None, typer.Option("--out", help="With --prompts: the .jsonl file to write the answers to.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message before each prompt.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum length of an answer in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 decodes greedily.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Draw from the most probable tokens that reach this probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed for sampling.")] = 0,
    schema: Annotated[Path | None, typer.Option(help="A .json file: every answer is JSON of this schema.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Answer with the base model, without the adapter.")] = False,
    as_chat: ChatFlag = None,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    allow_base_mismatch: MismatchFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Answer prompts, given with --prompt, as lines on stdin, or as a file."""
    _check_options(prompt, prompts, target)
    check_target("--out", target)
    asked = [] if prompts is not None else _asked(prompt)
    from lamina.engine.guides import Guide
    from lamina.engine.sampling import Sampling

    guide = None
    if schema is not None:
        from lamina.engine.batch import check_schema

        guide = Guide("json_schema", check_schema(schema))
    sampling = Sampling(temperature, max_new_tokens, seed, top_p=top_p, guide=guide)
    if prompts is not None and target is not None:
        _answer_file(source, prompts, target, sampling, system, base, as_chat, model, allow_base_mismatch, as_json)
        return
    from lamina.cli.chat import print_answers
    from lamina.engine.generate import generate_each, open_generator

    opened = open_generator(source, model=model, allow_base_mismatch=allow_base_mismatch, chat=as_chat, notify=notify)
    generator, adapter = opened.generator, None if base else opened.adapter
    for note in (*opened.notes, *generator.notes(sampling)):
        notify(note)
    answers = generate_each(generator, asked, sampling, system=system, adapter=adapter)
    if not print_answers(asked, answers, as_json):
        raise typer.Exit(1)


def chat(
    source: Subject,
    system: Annotated[str | None, typer.Option(help="A system message at the start of the conversation.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum length of an answer in tokens.")] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 decodes greedily.")] = 0.0,
    seed: Annotated[
        int | None, typer.Option(min=0, max=MAX_SEED, help="Seed for sampling; by default answers differ each time.")
    ] = None,
    as_chat: ChatFlag = None,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    allow_base_mismatch: MismatchFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Chat with an adapter or a model in the terminal; /base and /adapter switch between base model and adapter."""
    from lamina.cli.chat import run_chat
    from lamina.engine.generate import open_generator
    from lamina.engine.sampling import Sampling

    opened = open_generator(source, model=model, allow_base_mismatch=allow_base_mismatch, chat=as_chat, notify=notify)
    generator, sampling = opened.generator, Sampling(temperature, max_new_tokens, seed)
    for note in (*opened.notes, *generator.notes(sampling)):
        notify(note)
    turns = run_chat(generator, sampling, system, quiet=as_json, has_adapter=opened.adapter is not None)
    if as_json:
        print_json({"turns": turns})


def _asked(prompt: list[str] | None) -> list[str]:
    """The prompts of the command line, or of stdin."""
    asked = list(prompt or [])
    if not asked and not sys.stdin.isatty():
        asked = [line.removeprefix("\ufeff").rstrip("\r\n") for line in sys.stdin if line.strip()]
    if not asked:
        raise ConfigError(Problem("--prompt", "is required, or lines on stdin", 'add --prompt "..."'))
    return asked


def _check_options(prompt: list[str] | None, prompts: Path | None, target: Path | None) -> None:
    problems = []
    if prompts is not None and prompt:
        problems.append(Problem("--prompts", "is given beside --prompt", "give one of them"))
    if prompts is not None and target is None:
        problems.append(Problem("--out", "is required with --prompts", "add --out answers.jsonl"))
    if prompts is None and target is not None:
        problems.append(Problem("--out", "has no effect without --prompts", "add --prompts FILE.jsonl, or remove it"))
    if problems:
        raise ConfigError(problems)


def _answer_file(
    source: str,
    prompts: Path,
    target: Path,
    sampling: Sampling,
    system: str | None,
    base: bool,
    as_chat: bool | None,
    model: str | None,
    allow_base_mismatch: bool,
    as_json: bool,
) -> None:
    from lamina.adapters.load import asked_template
    from lamina.engine.admission import template_for
    from lamina.engine.batch import answer_rows, read_prompts
    from lamina.engine.engine import Engine
    from lamina.engine.kept_answers import KeptAnswers
    from lamina.engine.subject import find_subject
    from lamina.files import write_text

    rows = read_prompts(prompts)
    with KeptAnswers(target) as kept, Bars() as bars:
        if len(kept):
            notify(f"{kept.path} has {len(kept)} answers of an interrupted run; those to the same rows are reused.")
        subject = find_subject(source, notify, model)
        adapter = None if subject.adapter is None else subject.adapter[0]
        own = {} if subject.adapter is None else dict([subject.adapter])
        base_model = subject.load(notify=notify)
        template = asked_template(template_for(base_model, own), as_chat)
        with Engine(
            base_model,
            own,
            template=template,
            one_template=as_chat is not None,
            allow_base_mismatch=allow_base_mismatch,
            notify=notify,
        ) as engine:
            if engine.slow_because is not None:
                notify(f"The base runs by transformers' own code, which is slower: {engine.slow_because}")
            for note in engine.notes(sampling):
                notify(note)
            results = answer_rows(
                engine,
                rows,
                sampling,
                adapter=None if base else adapter,
                system=system,
                kept=kept,
                progress=lambda done: bars.update("Answering", done, len(rows)),
            )
        write_text(target, "".join(json.dumps(each.as_json(), ensure_ascii=False) + "\n" for each in results))
    failed = sum(each.error is not None for each in results)
    facts = {"rows": len(results), "failed": failed, "answer_tokens": sum(each.answer_tokens for each in results)}
    if as_json:
        print_json({"out": str(target), **facts})
    else:
        out.print(f"{len(results) - failed} of {len(results)} rows answered; wrote {target}")
    if failed:
        raise typer.Exit(1)
