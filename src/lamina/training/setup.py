"""Everything that training needs, built from a configuration: base, data, adapter, optimizer, schedule."""

from __future__ import annotations

import dataclasses
import json
import math

from transformers import PreTrainedModel

from lamina.adapters.adapter import Adapter
from lamina.adapters.reload import check_before_training
from lamina.chat.bare import BARE
from lamina.chat.template import ChatTemplate, build_template, template_of
from lamina.compute.kernels import prepare_kernels
from lamina.config import Config
from lamina.config.optimizers import OPTIMIZERS
from lamina.data.batch import Documents
from lamina.data.dataset import Dataset, build_dataset
from lamina.data.example import Kind
from lamina.data.length import check_length
from lamina.distributed.world import ALONE, World
from lamina.errors import ConfigError, DataError, Problem
from lamina.losses.base import Loss, build_loss
from lamina.machine.hardware import default_device
from lamina.methods.shared.base import Injection, find_method
from lamina.methods.shared.coverage import find_coverage
from lamina.methods.shared.score import score_head
from lamina.methods.shared.virtual_tokens import VirtualTokens
from lamina.models.load import Base
from lamina.models.vocabulary import check_vocabulary
from lamina.optim import build_optimizer, build_schedule
from lamina.progress import Notify
from lamina.runs import Run
from lamina.structure.head import Head, find_head
from lamina.structure.positions import declared_positions, has_position_table
from lamina.training.base import load_for_training
from lamina.training.new_rows import train_new_rows
from lamina.training.rate import with_learning_rate
from lamina.training.record import facts_of, shared_facts, write_what_is_known
from lamina.training.reference import Reference, find_reference, turn_off_dropout, with_reference
from lamina.training.session import KERNELS, Session
from lamina.training.share import choose_strategy, divide, form_teams, zero_engine
from lamina.training.start import check_start_fits, new_adapter, prepare_new, put_on, read_start


def build_session(config: Config, run: Run, notify: Notify, world: World = ALONE, base: Base | None = None) -> Session:
    """Builds everything, and writes what is known before training into the run: data report and manifest.

    Args:
        config: The run's configuration.
        run: Its directory.
        notify: Told what is being done, and what a user should know.
        world: The processes that train together.
        base: The base model, if it is loaded already.

    Raises:
        LaminaError: Model, data or configuration cannot be used; see the parts' own functions.
    """
    _check_optimizer(config, world)
    prepare_kernels(default_device(), config.train.compile, notify)
    start, loss = read_start(config, run), build_loss(config.loss)
    strategy = choose_strategy(config, world, notify)
    divided = strategy == "fsdp"
    base = base or load_for_training(config, start, notify, divided)
    for note in () if base.added is None else base.added.notes():
        notify(note)
    completed = config if start is not None else train_new_rows(config, base)
    config = with_learning_rate(config, base.model, notify)
    check_length(config.data, declared_positions(base.model))
    template = template_of(base.tokenizer, config.data)
    if start is not None:
        check_start_fits(start, base, template, notify)
    dataset, template = _read_data(config, base, template, loss, notify, world)
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"max_length": dataset.max_length})}
    )  # what follows is computed with it, and the run's own config.yaml was written before
    _agree(config, base, template, dataset, world)
    steps_per_epoch = math.ceil(dataset.report.micro_batches / config.train.micro_batches_per_step)
    loss.study(dataset.train, len(dataset.train) / steps_per_epoch, notify)
    head = find_head(base.model)
    injection = _adapter(completed, base, dataset, start, loss, notify)
    # Initializations that decompose matrices may round otherwise on another kind of processor.
    world.copy_from_first(injection.tensors().values())
    coverage = find_coverage(injection)
    for note in coverage.notes():
        notify(note)
    if divided:
        notify(divide(base.model, config.distributed, world).line())
    form_teams(config, injection, loss, world)
    head = _head_after_injection(head, injection)
    reference = find_reference(config.loss, injection, base, start)
    if reference is not None:
        turn_off_dropout(injection, notify)
    dataset = _arranged(dataset, config, loss, reference, head, base, notify, world)
    tensors = injection.tensors()
    optimizer = build_optimizer(config.train, tensors, injection.fast_tensors(), injection.vocabulary_tensors(), notify)
    total = config.train.max_steps or max(1, math.ceil(steps_per_epoch * (config.train.epochs or 0.0)))
    hooks = find_method(config.method.type).hooks(injection, total)
    engine = zero_engine(config, base.dtype, tensors, optimizer, hooks, world) if strategy == "deepspeed" else None
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
        hooks=hooks,
        optimizer=optimizer if engine is None else engine.optimizer,
        schedule=build_schedule(config.train, total),
        micro_batches=dataset.report.micro_batches,
        total_steps=total,
        longest=_longest(config, dataset),
        start=start,
        reference=reference,
        world=world,
        strategy=strategy,
        engine=engine,
    )
    world.once(lambda: write_what_is_known(session, notify), "writing the manifest")
    if dataset.eval_sets:
        sets = ", ".join(f"{name} ({len(dataset.eval[chosen])} rows)" for name, chosen in dataset.eval_sets.items())
        notify(f"Evaluation sets: {sets}. The loss on {session.best_set} picks the best checkpoint (train.best_eval).")
    return session


def _check_optimizer(config: Config, world: World) -> None:
    """Refuses an optimizer that several processes cannot share."""
    name = config.train.optim
    if world.size > 1 and OPTIMIZERS[name].layerwise:
        message = f"'{name}' updates each tensor amid the backward, before {world.size} processes can add up"
        raise ConfigError(Problem("train.optim", message, f"use {name.removesuffix('_layerwise')}"))


def _read_data(
    config: Config, base: Base, template: ChatTemplate, loss: Loss, notify: Notify, world: World
) -> tuple[Dataset, ChatTemplate]:
    """Encodes the data, checks it, and finds the template that the adapter is used with afterwards."""
    notify("Reading the data ...")
    batch_size, positions = config.train.per_device_train_batch_size, declared_positions(base.model)
    given = (config.data, template, batch_size, config.seed, notify, loss.sequences, positions)
    dataset = world.first_here(lambda: build_dataset(*given), "encoding the data")
    if not loss.sequences.pooled:
        _check_stop_token(dataset, template)
    template = _template_in_use(dataset, template, config, notify)
    check_vocabulary(dataset, base.model, template)
    return dataset, template


def _longest(config: Config, dataset: Dataset) -> int:
    """Tokens of the longest micro-batch that may come."""
    longest = dataset.report.train.longest
    each = config.data.max_length if config.data.packing else longest
    return max(config.train.per_device_train_batch_size * each, longest)


def _agree(config: Config, base: Base, template: ChatTemplate, dataset: Dataset, world: World) -> None:
    """Makes sure that all processes train on the same base and data, with the same software.

    Raises:
        RunError: One has something else.
    """
    if world.size == 1:
        return
    facts = facts_of(base, template, dataset).as_json() | shared_facts(base, config)
    files = {f"the data file {file['file']}": file for file in facts.pop("data")}
    parts = {f"the base's {name}": fact for name, fact in facts.pop("base").items() if name != "ref"}
    world.same_everywhere({name: json.dumps(fact, sort_keys=True) for name, fact in (facts | parts | files).items()})


def is_only_text(dataset: Dataset) -> bool:
    """Whether what is trained on are plain texts, which no chat template renders."""
    return dataset.train.kinds <= {Kind.TEXT}


def _template_in_use(dataset: Dataset, template: ChatTemplate, config: Config, notify: Notify) -> ChatTemplate:
    """The template that the adapter is used with: prompts are only rendered afterwards if training rendered any."""
    data, kinds = config.data, dataset.train.kinds | dataset.eval.kinds
    is_left_open = data.chat is None and data.chat_template is None
    if not is_left_open or not kinds <= {Kind.TEXT} or template.tokenizer.eos_token is None:
        return template
    notify(
        "All rows are plain text, so the adapter gets its prompts without a chat template afterwards, too "
        "(data.chat: true uses the template)."
    )
    return build_template(template.tokenizer, BARE)


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


def _adapter(
    config: Config, base: Base, dataset: Dataset, start: Adapter | None, loss: Loss, notify: Notify
) -> Injection:
    injection = new_adapter(config, base) if start is None else put_on(start, base, notify)
    if start is not None and score_head(base.model) is not None and not loss.trains_score:
        message = f"{start.path} has a score head, which loss.type={config.loss.type} does not train"
        raise ConfigError(Problem("method.from", message, "start from an adapter without one, or use loss.type=reward"))
    whole = injection.layers.get("")
    check_positions(dataset, base.model, notify, whole.count if isinstance(whole, VirtualTokens) else 0)
    if start is None:
        injection = prepare_new(injection, Documents(dataset.train, base.model.device))
    injection = loss.attach(injection, base, config.seed, notify)
    for note in check_before_training(injection):
        notify(note)
    return injection


def _arranged(
    dataset: Dataset,
    config: Config,
    loss: Loss,
    reference: Reference | None,
    head: Head,
    base: Base,
    notify: Notify,
    world: World,
) -> Dataset:
    """The data with what the loss needs beside the rows themselves."""
    sides = {
        "training": loss.arrange(dataset.train, (), config.seed),
        "evaluation": loss.arrange(dataset.eval, list(dataset.eval_sets.values()), config.seed),
    }
    for what in sides:
        if reference is not None:
            kernels = KERNELS[config.train.compile]
            sides[what] = with_reference(sides[what], reference, head, base, kernels, notify, what, world)
    return dataclasses.replace(dataset, train=sides["training"], eval=sides["evaluation"])


def _head_after_injection(head: Head, injection: Injection) -> Head:
    """The head was taken apart before the adapter went in; an adapter on the head itself takes its place."""
    linear = injection.model.get_output_embeddings()
    if head.whole_model or linear is None:
        return head
    return dataclasses.replace(head, linear=linear)
