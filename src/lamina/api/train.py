"""`lamina.train`: a run from a configuration, or from what is in memory.

What is in memory is stored in the run's folder first (`inputs/`), so that its configuration names files, and it can be
resumed, evaluated and merged like any other.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.api.method import method_values, quantization_values
from lamina.api.progress import choose_view
from lamina.api.rows import Formatting
from lamina.api.scores import Metrics, check_metrics, find_metrics, measure_answers
from lamina.api.settings import plain_settings, with_settings
from lamina.api.sources import NOT_GIVEN, Sources, Store, find_sources, only_names, rows_store, stored
from lamina.config import DEFAULT_METHOD, Config, load_config, only_given, resolved_values
from lamina.config.aliases import ALIASES
from lamina.config.named import names_data
from lamina.data.labels import read_labels
from lamina.distributed.member import member
from lamina.distributed.world import ALONE, World
from lamina.errors import ConfigError, LaminaError, Problem, RunError, StorageError
from lamina.models.loaded import as_base, check_bare, check_kind, find_source
from lamina.models.source import find_model
from lamina.models.stored import read_config
from lamina.progress import Notify
from lamina.runs import Run, check_start
from lamina.runs.events import Event, Note, OnEvent
from lamina.training.loop import train as train_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Where runs go that were given no folder.
RUNS = "runs"


def train(
    config: Config | Mapping[str, Any] | str | Path | None = None,
    on_event: OnEvent | None = None,
    *,
    data: Any = None,
    eval_data: Any = NOT_GIVEN,
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    method: Any = None,
    formatting_func: Formatting | None = None,
    metrics: Metrics = (),
    callbacks: Callable[[Event], object] | Sequence[Callable[[Event], object]] = (),
    overrides: Iterable[str] = (),
    resume: bool = False,
    progress: bool = True,
    world: World | None = None,
    **settings: Any,
) -> Run:
    """Trains an adapter.

        lamina.train("run.yaml")
        lamina.train(data=frame, model="smollm2-135m", method={"type": "lora", "r": 8}, max_steps=100)

    Args:
        config: A configuration, as `load_config` takes it, or the path of a data file. Everything else is put over it.
        on_event: Called with each event as it happens; `lamina.runs.events` has a class for each kind.
        data: What to train on: a path, or rows: a list of dictionaries or of texts, a `datasets.Dataset` or
            `DatasetDict`, a DataFrame of pandas or polars, an Arrow table, or a dictionary of columns. Rows are stored
            in the run's folder.
        eval_data: What to evaluate on: the same, a share of `data` or a number of its rows, None for no evaluation, or
            several by name. By default, a split of a `DatasetDict`, or a tenth of the rows.
        model: A name or folder, or a causal language model of transformers in memory. That is trained on as it is, and
            is the same afterwards; if no folder has its weights, the run keeps a copy of them.
        tokenizer: The tokenizer of a model in memory; by default that of the folder that it came from.
        method: A name, settings with a `type`, a configuration of peft such as `peft.LoraConfig`, or the `Path` of an
            adapter to start from.
        formatting_func: Makes a text, a list of messages or a dictionary of columns of each row.
        metrics: Functions of an answer and the expected answer that return a number; one, several, or by name. They are
            applied to the answers of base model and adapter on the evaluation rows when training has ended
            (`run.scores`). Names of scorers are taken too, such as `exact_match`.
        callbacks: Functions that are called with each event, like `on_event`; one or several.
        overrides: `key.sub=value` texts, as on the command line.
        resume: Go on with the run in `output_dir`, or with the one whose own configuration file is given. Model and
            data may have other places than they had, if they are the same by their digests.
        progress: Show the progress: as HTML in a notebook, as a bar in a terminal, as lines elsewhere.
        world: The processes that train together, of which this is one; by default those that a launcher such as
            torchrun started.
        settings: Sections of the configuration (`train={...}`), its settings (`seed=1`), and settings of a section by
            their own names (`learning_rate=1e-4`, `max_length=512`, `r=8`). They replace what they contradict.

    Returns:
        The finished run: `run.adapter` is the adapter's folder, `run.summary` the figures; `run.plot()` and
        `run.table()` show how it went.

    Raises:
        ConfigError, DataError, ModelError: Before anything is trained.
        RunError: There is a run already, or the one to go on with was started with something else.
        TrainingError: The loss or the gradient is not finite.
        Interrupted: A signal came, or nobody reads any more what a callback writes; a checkpoint was saved.
        StorageError: Something could not be written; the last checkpoint is untouched.
        KeyboardInterrupt: A second signal came; what was done since the last checkpoint is lost.
        Exception: What else comes up in the middle leaves a checkpoint too, if it can.
    """
    if config is not None and not isinstance(config, Config | Mapping) and data is None and not _is_config(config):
        config, data = None, config
    scorers, listeners = find_metrics(metrics), _listeners(callbacks)
    values: dict[str, Any] = _values_of(config)
    if "quantization" in settings:
        settings["quantization"] = quantization_values(settings["quantization"])
    in_memory = None if model is None or isinstance(model, str | Path) else model
    if in_memory is not None:
        check_kind(in_memory)
        check_bare(in_memory)
    if in_memory is None and tokenizer is not None:
        raise ConfigError(Problem("tokenizer", "goes with a model in memory", "give the model's name alone"))
    if model is not None:
        values["model"] = str(model) if in_memory is None else "in memory"
    if method is not None:
        values["method"] = plain_settings(method_values(method, _model_type(in_memory, values)))
    values = _with_column_names(with_settings(values, settings))
    if "output_dir" not in values and (data is not None or in_memory is not None):
        values["output_dir"] = str(_new_folder(values))

    with ExitStack() as stack:
        world = world or stack.enter_context(member()) or ALONE
        view = stack.enter_context(choose_view()) if progress and world.is_first else None
        tell = _Tell([view, on_event, *listeners])
        given = (data, eval_data, formatting_func, in_memory, tokenizer, tuple(overrides))
        inputs = _Inputs(*given, is_configured=config is not None)
        checked = inputs.config(values, resume, lambda message: tell(Note(0, message=message)))
        check_metrics(scorers, checked)
        base = None
        if in_memory is not None:
            base = stack.enter_context(as_base(in_memory, tokenizer, find_model(checked.model)))
        run = train_run(checked, tell, resume=resume, world=world, base=base)
    if scorers and run.scores is None and world.is_first:
        measure_answers(run, scorers, tell)
    return run


@dataclass(frozen=True)
class _Inputs:
    """What was given in memory, and becomes files that the configuration names."""

    data: Any
    eval_data: Any
    formatting: Formatting | None
    model: Any
    tokenizer: Any
    overrides: tuple[str, ...]
    is_configured: bool

    def config(self, values: dict[str, Any], resume: bool, notify: Notify) -> Config:
        """Returns the configuration. It is checked as a whole before anything is stored."""
        if self.model is not None:
            values = {**values, "dtype": _dtype_of(self.model, values.get("dtype", "auto"))}
        draft = load_config(self._named(values, Path("inputs"), only_names), self.overrides)
        if self.model is not None and draft.quantization is not None:
            message = "quantizes the weights that it reads from a folder, and the model is in memory"
            raise ConfigError(Problem("quantization", message, "give the model's name or folder"))
        for name in ("add_tokens", "special_tokens") if self.model is not None else ():
            if getattr(draft.data, name):
                message = "adds tokens to a model that lamina loads, and the model is in memory"
                fix = "give the model's name; or add the tokens to model and tokenizer yourself, and leave it out"
                raise ConfigError(Problem(f"data.{name}", message, fix))
        _check_start(draft, resume)
        folder = Run(Path(draft.output_dir)).inputs
        if self.model is not None:
            values["model"] = find_source(self.model, self.tokenizer, folder, notify).ref
        config = load_config(self._named(values, folder, rows_store), self.overrides)
        # A configuration without a loss trains on the texts alone, wherever its data comes from.
        reading = None if self.data is None or self.is_configured else read_labels(config)
        if reading is None:
            return config
        notify(reading.line)
        return load_config(reading.put_into(self._named(values, folder, rows_store)), self.overrides)

    def _named(self, values: dict[str, Any], folder: Path, stores: Callable[..., Store]) -> dict[str, Any]:
        section = dict(values.get("data") or {})
        if self.data is not None:
            given = find_sources(self.data, self.eval_data)
        else:  # those of the configuration are files
            given = Sources(NOT_GIVEN if self.formatting is None else section.get("train", NOT_GIVEN), self.eval_data)
        if self.formatting is not None and given.eval is NOT_GIVEN and "eval" in section:
            given = replace(given, eval=section["eval"])
        named = stored(given, stores(folder, self.formatting), self.formatting)
        if not named and given.section is None:
            return values
        return {**values, "data": {**section, **(given.section or {}), **named}}


def _check_start(config: Config, resume: bool) -> None:
    """Checks that a run can be started or resumed, with errors that say how in Python.

    Raises:
        ConfigError, RunError: As for `check_start`.
        StorageError: `output_dir` is a file.
    """
    path = Path(config.output_dir)
    if path.exists() and not path.is_dir():
        raise StorageError.wrap(FileExistsError(errno.EEXIST, ""), path, "creating the run's folder")
    try:
        check_start(config, resume)
    except ConfigError as error:
        problem = error.problems[0]
        if problem.field != "--resume":
            raise
        fix = (
            "leave it out to start one; if the run lies elsewhere, give its own configuration: "
            "lamina.train('FOLDER/config.yaml', resume=True)"
        )
        raise ConfigError(Problem("resume", problem.message, fix)) from None
    except RunError as error:
        raise RunError(str(error).replace("add --resume", "pass resume=True")) from None


class _Tell:
    """Passes events on."""

    def __init__(self, listeners: Sequence[Callable[[Event], object] | None]) -> None:
        self._listeners = [listener for listener in listeners if listener is not None]

    def __call__(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)


def _with_column_names(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values with the columns of `data.columns` as text, since those of a DataFrame may be numbers."""
    data = values.get("data")
    columns = data.get("columns") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(columns, Mapping):
        return values
    named = {field: str(column) if type(column) is int else column for field, column in columns.items()}
    return {**values, "data": {**data, "columns": named}}


def _listeners(callbacks: Any) -> list[Callable[[Event], object]]:
    found = [callbacks] if callable(callbacks) else list(callbacks)
    for each in found:
        if not callable(each):
            fix = "give functions of one event (lamina.runs.events)"
            raise ConfigError(Problem("callbacks", f"a {type(each).__name__} cannot be called", fix))
    return found


def _dtype_of(model: PreTrainedModel, given: object) -> str:
    """The `dtype` of a model in memory, which no other may be asked for."""
    own = str(model.dtype).removeprefix("torch.")
    if given not in ("auto", own):
        fix = f"leave it out, or convert the model: model.to(torch.{given})"
        raise ConfigError(Problem("dtype", f"is {given!r}, and the model in memory is {own}", fix))
    return own


def _values_of(config: Config | Mapping[str, Any] | str | Path | None) -> dict[str, Any]:
    if config is None:
        return {}
    if isinstance(config, Mapping):
        return plain_settings(config)
    return only_given(resolved_values(load_config(config)))


def _is_config(given: object) -> bool:
    """Whether the first argument is the path of a configuration, and not data."""
    return isinstance(given, str | Path) and not names_data(given)


def _model_type(model: Any, values: Mapping[str, Any]) -> str | None:
    """The base's `model_type`, if it can be told without a download."""
    if model is not None:
        return str(model.config.model_type)
    with contextlib.suppress(LaminaError, OSError, ValueError):
        name = str(values.get("model", Config.model_fields["model"].default))
        if name in ALIASES or Path(name).expanduser().exists():
            return read_config(find_model(name).folder).get("model_type")
    return None


def _new_folder(values: Mapping[str, Any]) -> Path:
    """A folder that is not there yet, since cells of a notebook are run again."""
    method = values.get("method")
    kind = method.get("type") if isinstance(method, Mapping) else None
    name = f"{kind or DEFAULT_METHOD}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = [f"{RUNS}/{name}", *(f"{RUNS}/{name}-{number}" for number in range(2, 1000))]
    return next(path for path in map(Path, names) if not path.exists())
