"""Everything that training needs, built from a configuration: base, data, adapter, optimizer, schedule."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from transformers import PreTrainedModel

from lamina import files
from lamina.adapters.reload import check_before_training
from lamina.chat.template import ChatTemplate, template_of
from lamina.compute.kernels import kernel_state, prepare_kernels
from lamina.compute.weights import count_weights
from lamina.config import Config
from lamina.config.root import default_learning_rate
from lamina.data.batch import Documents
from lamina.data.dataset import Dataset, build_dataset
from lamina.data.example import Kind
from lamina.data.packing import plan_epoch
from lamina.data.side import Batches
from lamina.distributed.world import ALONE, World
from lamina.errors import ConfigError, DataError, Problem, RunError
from lamina.losses.base import Loss, build_loss
from lamina.machine.hardware import default_device, dtype_name
from lamina.methods.shared.base import Hooks, Injection, find_method, inject
from lamina.methods.shared.coverage import Coverage, check_reach, find_coverage
from lamina.methods.shared.virtual_tokens import VirtualTokens
from lamina.models.load import Base, load_base
from lamina.models.vocabulary import check_vocabulary
from lamina.optim import Schedule, build_optimizer, build_schedule
from lamina.progress import Notify
from lamina.quantization.report import RoundingReport
from lamina.runs import Run, keep_places, moved_places
from lamina.runs.manifest import BaseFacts, BaseWeights, DataFile, Hardware, Manifest
from lamina.structure.head import Head, find_head
from lamina.structure.positions import declared_positions, has_position_table
from lamina.version import __version__

# Weights from which on a model is told that the methods' learning rates come from a smaller one.
LARGE_MODEL = 1_000_000_000


@dataclass(frozen=True)
class Session:
    """The parts of a run, in memory.

    Attributes:
        config: The run's configuration.
        run: Its directory.
        base: The frozen model.
        template: Renders conversations.
        dataset: The encoded data.
        head: The model's parts.
        loss: What is minimized.
        injection: The adapter.
        coverage: Which of the base's weights it is on.
        tensors: The adapter's tensors by name.
        hooks: What the method does around each step.
        optimizer: Over the tensors.
        schedule: Learning rate by step.
        micro_batches: Micro-batches in an epoch.
        total_steps: Optimizer steps of the whole run.
        longest: Tokens of the largest micro-batch that there can be.
        world: The processes that train together.
    """

    config: Config
    run: Run
    base: Base
    template: ChatTemplate
    dataset: Dataset
    head: Head
    loss: Loss
    injection: Injection
    coverage: Coverage
    tensors: dict[str, nn.Parameter]
    hooks: Hooks
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    micro_batches: int
    total_steps: int
    longest: int
    world: World = ALONE

    @property
    def longest_document(self) -> int:
        """Tokens of the longest document of training and evaluation."""
        return max(self.dataset.train.longest, self.dataset.eval.longest)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; the last one may have fewer micro-batches."""
        return math.ceil(self.micro_batches / self.config.train.gradient_accumulation_steps)

    def epoch_plan(self, epoch: int) -> Batches:
        """The micro-batches of an epoch, in order."""
        train, config = self.dataset.train, self.config
        plan = plan_epoch(
            train.lengths,
            config.train.per_device_train_batch_size,
            config.data.max_length,
            config.data.packing,
            config.seed,
            epoch,
            config.data.group_by_length,
            self.dataset.train_blocks,
        )
        return Batches(train, plan)


def build_session(config: Config, run: Run, notify: Notify, world: World = ALONE) -> Session:
    """Builds everything, and writes what is known before training into the run: data report and manifest.

    Args:
        config: The run's configuration.
        run: Its directory.
        notify: Told what is being done, and what a user should know.
        world: The processes that train together.

    Raises:
        LaminaError: Model, data or configuration cannot be used; see the parts' own functions.
    """
    prepare_kernels(default_device(), config.train.compile, notify)
    notify(f"Loading {config.model} ...")
    loftq = find_method(config.method.type).plan_loftq(config.method)
    base = load_base(
        config.model,
        config.dtype,
        notify=notify,
        quantization=config.quantization,
        plan_loftq=loftq,
        offload=config.offload if config.method.base_is_read_only else False,
    )
    _note_learning_rate(config, base, notify)
    template = template_of(base.tokenizer, config.data)
    notify("Reading the data ...")
    batch_size = config.train.per_device_train_batch_size
    loss = build_loss(config.loss)
    dataset = build_dataset(config.data, template, batch_size, config.seed, notify, loss.sequences)
    _check_stop_token(dataset, template)
    check_vocabulary(dataset, base.model, template)
    head = find_head(base.model)
    injection = _fresh_adapter(config, base, dataset, notify)
    coverage = find_coverage(injection)
    for note in coverage.notes():
        notify(note)
    head = _head_after_injection(head, injection)
    tensors = injection.tensors()
    optimizer = build_optimizer(config.train, tensors, injection.fast_tensors(), injection.vocabulary_tensors(), notify)

    micro_batches = dataset.report.micro_batches
    steps_per_epoch = math.ceil(micro_batches / config.train.gradient_accumulation_steps)
    epochs = config.train.epochs
    total = config.train.max_steps or max(1, math.ceil(steps_per_epoch * (epochs or 0.0)))
    longest = max(
        batch_size * (config.data.max_length if config.data.packing else dataset.report.train.longest),
        dataset.report.train.longest,
    )
    session = Session(
        config=config,
        run=run,
        base=base,
        template=template,
        dataset=dataset,
        head=head,
        loss=loss,
        injection=injection,
        coverage=coverage,
        tensors=tensors,
        hooks=find_method(config.method.type).hooks(injection, total),
        optimizer=optimizer,
        schedule=build_schedule(config.train, total),
        micro_batches=micro_batches,
        total_steps=total,
        longest=longest,
        world=world,
    )
    for what, value in _facts(session).as_json().items():
        world.same_everywhere(what, json.dumps(value, sort_keys=True))
    world.once(lambda: _write_what_is_known(session, notify))
    return session


def _write_what_is_known(session: Session, notify: Notify) -> None:
    """Manifest, data report, and the report on a quantized base."""
    run, base = session.run, session.base
    _write_manifest(session, notify)
    files.write_json(run.data_report_path, session.dataset.report.as_json())
    if base.rounding_errors and base.packing is not None:
        report = RoundingReport(base.rounding_errors, base.packing)
        files.write_json(run.quantization_report_path, report.as_json())
        notify(report.line())


def data_digests(dataset: Dataset) -> list[dict[str, Any]]:
    """Name, digest and rows of each data file, for the lock."""
    return [dataclasses.asdict(file) for file in _data_files(dataset)]


def count_parameters(parameters: Iterable[torch.Tensor]) -> int:
    """Elements over all tensors; one that is shared counts once."""
    return sum(tensor.numel() for tensor in {id(tensor): tensor for tensor in parameters}.values())


def is_only_text(dataset: Dataset) -> bool:
    """Whether what is trained on are plain texts, which no chat template renders."""
    return all(file.format == "text" for file in dataset.report.files if file.train_rows)


def _check_stop_token(dataset: Dataset, template: ChatTemplate) -> None:
    if not is_only_text(dataset) and not dataset.train.pieces.teaches_stop.any():
        fix = "let the data mark whole turns, with the token that ends them, or set data.train_on=assistant"
        if any(file.cut.count for file in dataset.report.files):  # a row that is not cut would teach it
            chats = [s for s in dataset.train.stores if len(s) and Kind.TEXT not in s.facts.kinds]
            shortest = min(int(store.lengths.min()) for store in chats)
            fix = f"raise data.max_length, so that answers keep their ends: the shortest row has {shortest} tokens"
        raise DataError(
            f"no training example teaches the stop token {template.stop_token}, so the model would never stop. "
            f"Fix: {fix}."
        )


def check_positions(dataset: Dataset, model: PreTrainedModel, notify: Notify, virtual: int = 0) -> None:
    """A position table ends somewhere, and virtual tokens take the first of its rows.

    Args:
        dataset: Whose longest document counts.
        model: What it is for.
        notify: Told where positions are computed and go on, but beyond what the model was trained on.
        virtual: Virtual tokens before each document.

    Raises:
        ConfigError: The longest document does not fit in a table of positions.
    """
    limit = declared_positions(model)
    document = max(dataset.train.longest, dataset.eval.longest)
    longest = document + virtual
    if limit is None or longest <= limit:
        return
    what = f"rows of up to {document} tokens"
    if virtual:
        what += f" with {virtual} virtual ones before them"
    where = f"{type(model).__name__} has {limit} positions (max_position_embeddings)"
    if has_position_table(model):
        message = f"{what} are too long: {where}."
        raise ConfigError(Problem("data.max_length", message, f"use {limit - virtual} at most"))
    notify(f"{what}: {where}, and what it makes of later ones was not trained. data.max_length={limit - virtual} fits.")


def _note_learning_rate(config: Config, base: Base, notify: Notify) -> None:
    """The methods' own learning rates were measured on a small model."""
    own = default_learning_rate(type(config.method), config.train.optim)
    if config.train.learning_rate == own and count_weights(base.model) > LARGE_MODEL:
        notify(
            f"train.learning_rate is the method's own, {own:g}, which was measured on a model of 135 million weights. "
            "Models of billions usually take a smaller one (QLoRA's authors 2e-4 for 7 billion)."
        )


def _fresh_adapter(config: Config, base: Base, dataset: Dataset, notify: Notify) -> Injection:
    find_method(config.method.type).check(base.model, config.method)
    injection = inject(base.model, config.method, config.seed)
    check_reach(injection)
    whole = injection.layers.get("")
    check_positions(dataset, base.model, notify, whole.count if isinstance(whole, VirtualTokens) else 0)
    documents = Documents(dataset.train, base.model.device)
    injection = find_method(config.method.type).prepare(injection, documents)
    for note in check_before_training(injection):
        notify(note)
    return injection


def _head_after_injection(head: Head, injection: Injection) -> Head:
    """The head was taken apart before the adapter went in; an adapter on the head itself takes its place."""
    linear = injection.model.get_output_embeddings()
    if head.whole_model or linear is None:
        return head
    return dataclasses.replace(head, linear=linear)


def _data_files(dataset: Dataset) -> list[DataFile]:
    return [DataFile(Path(file.path).name, file.sha256, file.rows) for file in dataset.report.files]


def _facts(session: Session) -> Manifest:
    """What a run must have the same in all processes, and when it goes on."""
    base = session.base
    return Manifest(
        base=BaseFacts(base.source.ref, base.fingerprint.tensors, base.fingerprint.config),
        tokenizer=session.template.tokenizer_digest,
        chat_template=session.template.digest,
        data=_data_files(session.dataset),
        threads=torch.get_num_threads(),
    )


def _write_manifest(session: Session, notify: Notify) -> None:
    run, base, before = session.run, session.base, session.run.manifest
    facts = _facts(session)
    places: dict[str, str] = {}
    if before.base is not None:
        _check_unchanged(session, before, facts)
        places = keep_places(run, session.config)
    packages = ("torch", "transformers", "safetensors", "tokenizers", "numpy")
    now = dataclasses.replace(
        facts,
        lamina=__version__,
        weights=BaseWeights.from_json(session.coverage.as_json(), base.packing and base.packing.as_json()),
        dtype=dtype_name(base.dtype),
        device=str(base.model.device),
        kernels=kernel_state(base.model.device, session.config.train.compile).name,
        versions={"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in packages},
        hardware=Hardware(
            machine=platform.machine(),
            cpu=str(torch.cpu.get_capabilities().get("cpu_name", platform.processor())),
            cores=psutil.cpu_count(logical=False),
            memory_bytes=psutil.virtual_memory().total,
            gpu=torch.cuda.get_device_name(base.model.device) if base.model.device.type == "cuda" else None,
        ),
    )
    _note_other_machine(before, now, notify)
    run.record(**now.as_json(), **places)


def _check_unchanged(session: Session, before: Manifest, now: Manifest) -> None:
    """A run goes on with what it was started with, wherever that now is.

    Raises:
        RunError: Something is not the same; it is named.
    """
    assert before.base is not None and now.base is not None
    template = session.config.data.chat_template
    files_before, files_now = before.data or [], now.data or []
    # Its digest is over what the package tokenizers makes of it, which another version may write otherwise.
    same_package = (before.versions or {}).get("tokenizers") == importlib.metadata.version("tokenizers")
    pairs: list[tuple[str, object, object]] = [
        (f"the base's weights in {session.base.source.folder}", before.base.tensors, now.base.tensors),
        (f"the base's config in {session.base.source.folder}", before.base.config, now.base.config),
        # Runs of the first version have no digest of these two.
        ("the tokenizer", before.tokenizer if same_package else None, now.tokenizer),
        (f"the chat template {template or 'of the model'}", before.chat_template, now.chat_template),
        ("the number of data files", len(files_before), len(files_now)),
        *(
            (f"data file {place.path}", f"{was.sha256}, {was.rows} rows", f"{is_now.sha256}, {is_now.rows} rows")
            for place, was, is_now in zip(session.dataset.report.files, files_before, files_now, strict=False)
        ),
    ]
    changed = [f"{what} ({was} then, {is_now} now)" for what, was, is_now in pairs if was not in (None, is_now)]
    if before.chat_template is None and "data.chat_template" in moved_places(session.run, session.config):
        changed.append(f"the chat template {template} (this run has no digest to tell whether it is the same)")
    if changed:
        raise RunError(
            f"{session.run.path}: cannot go on with the same training, because this changed since it was started: "
            f"{'; '.join(changed)}. Fix: say where the same are now, with model=PATH, data.train=PATH and the "
            "like, or start a new run elsewhere."
        )


def _note_other_machine(before: Manifest, now: Manifest, notify: Notify) -> None:
    """A run that goes on elsewhere is right, but not to the last digit the run that it would have been."""
    was, is_now = _decides_digits(before), _decides_digits(now)
    changes = [
        f"{name} ({was[name]}, now {is_now[name]})" if isinstance(is_now[name], str | int) else name
        for name in was
        if was[name] != is_now[name]
    ]
    if changes:
        notify(
            f"This is not quite where the run was started: its {', '.join(changes)} changed. It goes on correctly, but "
            "its numbers will differ in their last digits from those of an unbroken run."
        )


def _decides_digits(manifest: Manifest) -> dict[str, object]:
    """What a step's last digits depend on beside the configuration; manifests of earlier versions lack some of it."""
    facts = {
        "device": manifest.device,
        "dtype": manifest.dtype,
        "threads": manifest.threads,
        "kernels": manifest.kernels,
        "versions": manifest.versions,
        "hardware": manifest.hardware and dataclasses.replace(manifest.hardware, memory_bytes=0),
    }
    return {name: fact for name, fact in facts.items() if fact is not None}
