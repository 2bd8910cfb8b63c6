"""Runs `lamina train` in this process, and says what it prints before and after."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from lamina.cli.failures import tracebacks_in
from lamina.cli.output import err, notify, print_json, print_text
from lamina.cli.processes import as_one
from lamina.config import Config, load_config
from lamina.config.load import config_values
from lamina.config.named import names_data, values_of_sheet
from lamina.config.places import check_files
from lamina.distributed.ranks import is_one_of_several, restarts
from lamina.distributed.words import was_said
from lamina.errors import Interrupted

if TYPE_CHECKING:
    from lamina.runs.summary import Summary

_GIB = 2**30
# Figures of losses whose value says little, shown below it.
_TELLING = ("nll_loss", "probability")


def train_here(config: str, overrides: list[str], resume: bool, as_json: bool) -> None:
    """Trains in this process, which may be one of several that a launcher has started."""
    with as_one() as world:
        checked = check(config, overrides, resume, show=world is None or world.is_first)
        from lamina.api.terminal import TrainingView
        from lamina.training.loop import train as train_run

        try:
            with TrainingView(err) as view, tracebacks_in(Path(checked.output_dir)):
                run = train_run(checked, view, resume=resume, world=world)
        except KeyboardInterrupt:
            raise stopped_at_once(checked) from None
    if (world is not None and not world.is_first) or was_said():
        return
    summary = run.summary
    assert summary is not None, "a run that is finished has one"
    if as_json:
        print_json(summary.as_json())
        return
    print_summary(summary)
    command = "classify" if checked.loss.type == "classification" else "chat"
    err.print(f"  next    lamina {command} {escape(str(run.path))}")


def check(config: str, overrides: list[str], resume: bool, show: bool = True) -> Config:
    """Reads a configuration, and checks that the run can start and its files are there.

    Args:
        config: A file, of lamina or of another library.
        overrides: `key=value` strings.
        resume: Whether the run is to go on.
        show: Show what became of another library's settings.

    Raises:
        ConfigError, RunError: It cannot.
    """
    checked = load_config(values_of_sheet(config) or _translated(config, overrides, show), overrides)
    if names_data(config):
        checked = _with_labels(config, checked, overrides, show)
    from lamina.runs import Run, check_start  # after the configuration, whose errors are told sooner without it

    if not is_one_of_several():  # of several processes, the first one checks it for all
        check_start(checked, resume or (restarts() > 0 and Run(Path(checked.output_dir)).begun))
    check_files(checked.model_dump(mode="json"))
    return checked


def _with_labels(path: str, config: Config, overrides: Sequence[str], show: bool) -> Config:
    """Returns the configuration for a data file alone, whose labels are learned if it has texts and labels."""
    check_files(config.model_dump(mode="json"))
    from lamina.data.labels import read_labels

    reading = read_labels(config)
    if reading is None:
        return config
    if show:
        notify(reading.line)
    return load_config(reading.put_into(values_of_sheet(path) or config_values(path)), overrides)


def _translated(config: str, overrides: Sequence[str], show: bool) -> str | dict[str, object]:
    """Returns a configuration of another library as one of lamina, and may show what became of it."""
    from lamina.migration.foreign import is_foreign

    if not is_foreign(Path(config)):
        return config
    from lamina.cli.migration import check as check_translation
    from lamina.cli.migration import print_translation
    from lamina.migration.translate import translate

    translation = translate(config)
    if show:
        print_translation(translation)
    check_translation(translation, f"lamina import {shlex.quote(config)} --out run.yaml --lenient", overrides)
    return translation.values


def print_plan(config: Config, as_json: bool, processes: int = 1) -> None:
    """Prints a resolved configuration and the plan of its run in so many processes."""
    import yaml

    from lamina.training.inputs import plan_run

    plan = plan_run(config, notify)
    if as_json:
        print_json({"config": config.model_dump(mode="json"), "plan": plan.as_json()})
        return
    print_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True).rstrip())
    for line in plan.data_report:
        err.print(f"  {line}", markup=False)
    err.print(f"plan: {plan.line()}", markup=False)
    err.print(f"plan: {plan.step_line(processes)}", markup=False)


def stopped_at_once(config: Config) -> Interrupted:
    """Returns the error for a second Ctrl-C, or for one before the first step."""
    from lamina.runs import Run

    run = Run(Path(config.output_dir))
    if not run.begun:
        return Interrupted("stopped before the run started. Go on with: the same command again")
    command = run.resume_command
    message = f"stopped immediately. Go on from the last checkpoint with: {command}"
    return Interrupted(message, run=str(run.path), resume=command)


def _change(before: float, after: float) -> str:
    """The change of a loss as a share, in parentheses; empty where it was 0, as with certain tokens in EAFT."""
    return f" ({after / before - 1:+.1%})" if before else ""


def print_summary(summary: Summary) -> None:
    """Prints the summary of a finished run."""
    from lamina.runs.summary import losses_of_sets

    s = summary
    err.print("[bold green]Done[/bold green]")
    if s.eval_loss is not None and s.eval_loss_first is not None:
        change = _change(s.eval_loss_first, s.eval_loss)
        err.print(f"  eval loss {s.eval_loss_first:.4f} (bare base) -> {s.eval_loss:.4f}{change}")
        first = losses_of_sets(s.eval_metrics_first)
        for name, loss in losses_of_sets(s.eval_metrics).items():
            if name in first:
                err.print(f"    {escape(name)} {first[name]:.4f} -> {loss:.4f}{_change(first[name], loss)}")
        before, after = s.eval_metrics_first or {}, s.eval_metrics or {}
        for name in _TELLING:
            if name in before and name in after:
                err.print(f"    {name} {before[name]:.4f} -> {after[name]:.4f}")
    err.print(f"  train loss {s.train_loss_first:.4f} -> {s.train_loss_last:.4f} in {s.steps} steps")
    ranks = [s.figures.get(f"ranks_{which}") for which in ("at_start", "kept", "target")]
    if None not in ranks:
        err.print("  ranks {:,} -> {:,} (budget {:,})".format(*ranks))
    speed = f"{s.tokens_per_second:,.0f} tokens/s, " if s.tokens_per_second else ""
    err.print(f"  {s.tokens:,} tokens, {speed}peak memory {s.peak_memory_bytes / _GIB:.1f} GiB")
    err.print(f"  adapter {escape(s.adapter)}")
    err.print(f"  digest  {s.adapter_digest}")
