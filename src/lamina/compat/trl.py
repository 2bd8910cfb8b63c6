"""TRL's names: `SFTConfig`, `SFTTrainer`, `DPOConfig`, `DPOTrainer`."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from lamina.api.rows import formatted, rows_in
from lamina.api.train import train
from lamina.compat import bases
from lamina.compat.peft import PeftModel, method_of
from lamina.compat.rows import ForRows
from lamina.compat.trl_config import DPOConfig, SFTConfig
from lamina.config import DEFAULT_METHOD, MethodConfig, load_config
from lamina.data.read import read_rows
from lamina.dialects.trl import SFT
from lamina.distributed.ranks import world_size
from lamina.errors import ConfigError, DataError, LaminaWarning, Problem, RunError
from lamina.migration.draft import Draft, Translation
from lamina.migration.settle import settle
from lamina.migration.trl import DEFAULTS, LEARNING_RATES, default_values, kind_of_row
from lamina.runs import Run
from lamina.runs.events import Evaluation, Event, Step


class TrainOutput(NamedTuple):
    """What `train` returns, as in transformers."""

    global_step: int
    training_loss: float
    metrics: dict[str, float]


class TrainerState(NamedTuple):
    """What a trainer tells about its run, as in transformers."""

    global_step: int
    log_history: list[dict[str, float]]
    best_metric: float | None


class SFTTrainer:
    """Supervised fine-tuning with TRL's arguments, by lamina.

    Attributes:
        args: The settings.
        translation: What became of each of them: `translation.rows`.
        config: lamina's configuration.
        run: The run; None before `train`.
    """

    config_class: ClassVar[type[SFTConfig]] = SFTConfig

    def __init__(
        self,
        model: Any,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        peft_config: Any = None,
        formatting_func: Callable[[Any], Any] | None = None,
        callbacks: list[Callable[[Event], object]] | None = None,
        **others: Any,
    ) -> None:
        """Translates everything, and checks it.

        Args:
            model: A name, a model of transformers or of `lamina.compat.transformers`, or a `PeftModel`.
            args: An `SFTConfig`, transformers' `TrainingArguments`, or None for defaults.
            data_collator: None: lamina builds its batches itself. Rows in this place are `train_dataset`, and what
                follows them `eval_dataset`.
            train_dataset: Rows: a list, a `datasets.Dataset`, a DataFrame, or the path of a file.
            eval_dataset: The same; None for no evaluation.
            processing_class: The tokenizer, for a model that was made in memory. Any other has its own.
            peft_config: A `LoraConfig`, or any configuration of peft; None trains all weights, or the `PeftModel`.
            formatting_func: Makes a text or a list of messages of each row, or a list of texts of a batch.
            callbacks: Functions that are called with each of lamina's events.
            others: `tokenizer`, and settings that older versions of TRL took here (`max_seq_length`, `packing`,
                `dataset_text_field`).

        Raises:
            ConfigError: A setting has no counterpart; the error names all of them.
        """
        tokenizer = others.pop("tokenizer", None)
        if _are_rows(data_collator):  # the order that these arguments had in lamina before they had TRL's
            following = train_dataset if eval_dataset is None else eval_dataset
            data_collator, train_dataset, eval_dataset = None, data_collator, following
        others = _without_parts({"data_collator": data_collator, **others})
        self.processing_class = tokenizer if processing_class is None else processing_class
        self.args = self._arguments(args, others)
        self.model: Any = model
        self._callbacks = _checked(callbacks or [])
        self.run: Run | None = None
        # A generator gives its rows once, and its first one is looked at before training.
        self._data = (list(train_dataset) if isinstance(train_dataset, Iterator) else train_dataset, eval_dataset)
        self._formatting = None if formatting_func is None else ForRows(formatting_func)
        self._peft_config = peft_config
        self._prepare()
        if differences := [
            f"{row.name}: {row.note}"
            for row in self.translation.of("mapped", "own")
            if row.name in _TELLING and row.note
        ]:
            warnings.warn(f"lamina differs: {'; '.join(differences)}", LaminaWarning, stacklevel=2)

    def train(self, resume_from_checkpoint: Any = None) -> TrainOutput:
        """Trains.

        Args:
            resume_from_checkpoint: Anything true goes on with the run in output_dir.

        Raises:
            RunError, ConfigError, DataError, ModelError, TrainingError: As `lamina.train`.
        """
        began = time.perf_counter()
        if self.run is not None and not resume_from_checkpoint:
            raise RunError(
                f"this trainer has trained already, in {self.run.path}. Fix: make another for the next run, with what "
                "was trained and a new folder: SFTTrainer(trainer.model, SFTConfig(output_dir=FOLDER), ...)."
            )
        if isinstance(self.model, PeftModel):
            self.model.check_start()
            if self.model.folder != self._start and not resume_from_checkpoint:  # it was changed and saved meanwhile
                self._prepare()
        in_memory = self._in_memory()
        data, evaluation = self._data
        self.run = train(
            self.translation.values,
            data=data,
            eval_data=evaluation,
            model=in_memory,
            # The script's tokenizer is for a model that came from nowhere; any other has its own.
            tokenizer=None if in_memory is None or bases.is_named(self.model) else self.processing_class,
            formatting_func=self._formatting,
            callbacks=self._callbacks,
            resume=bool(resume_from_checkpoint),
        )
        if isinstance(self.model, PeftModel):
            self.model.follow(self.run)
        elif self.config.loss.type != "reward":
            self.model = PeftModel.trained(self.run, self.model)
        summary = self._summary()
        metrics = {"train_loss": summary.train_loss_last, "train_runtime": time.perf_counter() - began}
        return TrainOutput(summary.steps, summary.train_loss_last, metrics)

    def _prepare(self) -> None:
        """Translates everything, with the adapter's folder as it is now, and checks it."""
        self._start = self.model.folder if isinstance(self.model, PeftModel) else None
        self.translation = self._translate(self._first_row(), self._peft_config)
        self.translation.check()
        self.config = load_config(self.translation.values)

    @property
    def state(self) -> TrainerState:
        """The losses so far."""
        run = self._finished()
        history: list[dict[str, float]] = []
        for event in run.events():
            if isinstance(event, Step):
                history.append({"step": event.step, "loss": event.loss, "learning_rate": event.learning_rate})
            elif isinstance(event, Evaluation):
                history.append({"step": event.step, "eval_loss": event.eval_loss})
        summary = self._summary()
        return TrainerState(summary.steps, history, summary.eval_loss)

    def evaluate(self) -> dict[str, float]:
        """Returns the evaluation loss of the adapter that was kept.

        Raises:
            RunError: There is no finished run, or it had no evaluation data.
        """
        loss = self._summary().eval_loss
        if loss is None:
            raise RunError("the run had no evaluation data. Fix: give eval_dataset.")
        return {"eval_loss": loss}

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Saves the adapter alone to a folder, as `trainer.model` has it; the run directory has what was trained.

        Args:
            output_dir: The folder; by default the run directory.

        Raises:
            ConfigError: `trainer.model` was changed since, and the folder has another adapter of lamina's.
        """
        run = self._finished()
        folder = Path(output_dir or run.path)
        if isinstance(self.model, PeftModel):
            self.model.save_pretrained(folder)
        else:
            shutil.copytree(run.adapter, folder, dirs_exist_ok=True)

    def _summary(self) -> Any:
        summary = self._finished().summary
        assert summary is not None, "a run that is finished has one"
        return summary

    def _finished(self) -> Run:
        if self.run is None:
            raise RunError("nothing was trained yet. Fix: call train() first.")
        return self.run

    def _in_memory(self) -> Any:
        """The model that is trained on as it is in memory; None where the run reads the base by its name."""
        if isinstance(self.model, PeftModel):
            return bases.bare(self.model.base_model)
        is_read = isinstance(self.model, str | Path) or bases.quantization_of(self.model) is not None
        return None if is_read else self.model

    def _first_row(self) -> dict[str, Any]:
        data, _ = self._data
        if data is None:
            raise ConfigError(Problem("train_dataset", "is not given", "give rows: a list, a Dataset or a DataFrame"))
        is_path = isinstance(data, str | Path)
        rows = read_rows(str(data), "train_dataset") if is_path else rows_in(data, "train_dataset")
        row = next(iter(rows), None)
        if row is None:
            raise DataError("train_dataset: has no rows. Fix: give at least one.")
        return formatted(row, self._formatting, "train_dataset, row 1")

    def _arguments(self, args: Any, others: dict[str, Any]) -> SFTConfig:
        given = args.given if isinstance(args, SFTConfig) else _changed(args)
        return self.config_class(**{**others, **given})

    def _defaults(self) -> dict[str, Any]:
        """TRL's defaults; a model with fewer positions than its default length has that many."""
        base = self.model.base_model if isinstance(self.model, PeftModel) else self.model
        length = min(DEFAULTS["data.max_length"], bases.positions_of(base) or DEFAULTS["data.max_length"])
        return {**DEFAULTS, "data.max_length": length}

    def _translate(self, first: Mapping[str, Any], peft_config: Any) -> Translation:
        """Translates settings, model, method and data."""
        draft = Draft("trl", self.args.given, Path())
        _model(draft, self.model, peft_config)
        if self.args.loss != "cross_entropy":
            draft.set("trainer", type(self).__name__, {"loss.type": self.args.loss})
        draft.set("train_dataset", "rows in memory", {"data.train": "train_dataset"})
        evaluation = self._data[1]
        if evaluation is not None:
            draft.take("eval_strategy")
            draft.set("eval_dataset", "rows in memory", {"data.eval": "eval_dataset"})
        draft.look_up(self.args.table)
        if evaluation is None:
            draft.set("eval_dataset", None, {"data.eval": None}, kind="default")
        _in_the_loss(draft, first, self.args.loss)
        defaults = default_values(draft, self._defaults())
        draft.default({"train.learning_rate": LEARNING_RATES[self.args.loss], **defaults})
        if (processes := world_size()) > 1:  # a script's settings count for each process, and lamina's for all
            steps = draft.values.get("train.gradient_accumulation_steps", 1)
            note = "TRL's step has so many micro-batches for each process"
            draft.set("WORLD_SIZE", processes, {"train.gradient_accumulation_steps": steps * processes}, note)
        settle(draft)
        return draft.finish(type(self).__name__)


class DPOTrainer(SFTTrainer):
    """Direct preference optimization with TRL's arguments, by lamina: the reference is the base without the adapter."""

    config_class: ClassVar[type[SFTConfig]] = DPOConfig

    def __init__(self, model: Any, ref_model: Any = None, args: Any = None, *rows: Any, **named: Any) -> None:
        """Translates everything, and checks it.

        Args:
            model: As for `SFTTrainer`.
            ref_model: None: another reference than the base has no counterpart.
            args: A `DPOConfig`.
            rows: `data_collator`, `train_dataset`, `eval_dataset` and `processing_class`, as for `SFTTrainer`.
            named: As for `SFTTrainer`, and `beta`, which older versions of TRL took here.

        Raises:
            ConfigError: A setting has no counterpart.
        """
        if ref_model is not None:
            fix = "leave it out: the reference is the base with the adapter off"
            raise ConfigError(Problem("ref_model", "has no counterpart", fix))
        super().__init__(model, args, *rows, **named)


# Settings about which TRL's users should hear.
_TELLING = ("optim", "report_to", "packing_strategy", "loss_type", "max_length")


def _model(draft: Draft, model: Any, peft_config: Any) -> None:
    if isinstance(model, PeftModel):
        origin = model.origin
        name, method, quantization, dtype = origin.name, origin.method, origin.quantization, origin.dtype
    else:
        quantization, dtype = bases.quantization_of(model), bases.dtype_of(model)
        name = bases.name_of(model) if bases.is_named(model) else "in memory"
        method = None if peft_config is None else method_of(peft_config, model)
    draft.set("model", name, {"model": name})
    device = bases.device_of(model.base_model if isinstance(model, PeftModel) else model)
    if device != "auto":
        draft.set("device_map", device, {"device": device})
    if dtype != "auto":
        draft.set("model.dtype", dtype, {"dtype": dtype})
    if quantization is not None:
        given = quantization.model_dump(exclude_unset=True)
        draft.set("quantization_config", given, {f"quantization.{key}": value for key, value in given.items()})
    if isinstance(model, PeftModel):
        model.check_start()
    if isinstance(model, PeftModel) and model.folder is not None:
        start = {"method.from": str(model.folder)}
        if model.method != DEFAULT_METHOD:
            start["method.type"] = model.method
        draft.set("model.adapter", str(model.folder), start, "it is trained further")
    elif method is None:
        draft.set("peft_config", None, {"method.type": "full"}, "without peft_config, all weights are trained")
    else:
        values = {f"method.{key}": each for key, each in method.model_dump(mode="json").items() if key in _set(method)}
        draft.set("peft_config", method.type, {**values, "method.type": method.type})


def _set(method: MethodConfig) -> set[str]:
    return {*method.model_fields_set, *(method.model_extra or {})}


def _in_the_loss(draft: Draft, row: Mapping[str, Any], loss: str) -> None:
    """TRL's defaults: whole conversations, but of rows with a prompt the completion alone; texts as they are."""
    kind = kind_of_row(row) if loss == "cross_entropy" else ""
    if kind == "plain":
        draft.default({"data.chat": False}, "TRL takes prompts and completions that are texts as they are")
    if kind == "conversation" and "data.train_on" not in draft.values:
        draft.default({"data.train_on": "all"}, "TRL puts whole conversations into the loss by default")


def _changed(args: Any) -> dict[str, Any]:
    """Returns the settings of transformers' or TRL's own arguments that are not their defaults."""
    if args is None:
        return {}
    fields = type(args).__dataclass_fields__
    given = {name: getattr(args, name) for name in fields if not name.startswith("_")}
    usual = vars(type(args)(output_dir=args.output_dir))
    return {"output_dir": args.output_dir, **{k: v for k, v in given.items() if k in SFT and v != usual.get(k)}}


# What transformers' trainer takes as objects and functions, and lamina has otherwise.
_PARTS = {
    "data_collator": "lamina builds its batches itself; formatting_func and train_dataset say what is in them",
    "compute_metrics": "lamina.evaluate(RUN, score=[...]) scores the answers after training",
    "compute_loss_func": "a loss is a plug-in of lamina",
    "preprocess_logits_for_metrics": "lamina.evaluate(RUN, score=[...]) scores the answers after training",
    "optimizers": "set SFTConfig(optim=..., lr_scheduler_type=...)",
    "optimizer_cls_and_kwargs": "set SFTConfig(optim=...)",
    "model_init": "give the model",
}


def _without_parts(others: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the trainer's other arguments without those parts; each must be left at None.

    Raises:
        ConfigError: One is given.
    """
    given = {name: value for name, value in others.items() if name in _PARTS and value not in (None, (None, None))}
    if given:
        message = "has no counterpart in lamina's loop"
        raise ConfigError([Problem(name, message, f"leave it out: {_PARTS[name]}") for name in given])
    return {name: value for name, value in others.items() if name not in _PARTS}


def _are_rows(value: Any) -> bool:
    """Returns whether a value in the place of `data_collator` is rows, or the path of a file."""
    return isinstance(value, str | Path) or hasattr(value, "__iter__")


def _checked(callbacks: list[Any]) -> list[Callable[[Event], object]]:
    for callback in callbacks:
        if not callable(callback):
            message = f"{type(callback).__name__} is a callback of transformers, which lamina's loop does not have"
            raise ConfigError(Problem("callbacks", message, "give functions of one event (lamina.runs.events)"))
    return callbacks
