"""The reference model of a loss over answers: its log-probabilities, computed once before training.

The reference is never a second model. It is the base with the adapter off, or, where training starts from an adapter,
that adapter as it was: its tensors are kept, and take the place of the trained ones for the time of a forward pass. The
log-probabilities are one number for each answer. They are kept in the cache under a digest of all that decides them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from lamina import files
from lamina.adapters.adapter import Adapter
from lamina.cache.folder import cache_folder
from lamina.compute.fusion import fast_path
from lamina.config.losses import LossConfig
from lamina.data.batch import Layout, build_units
from lamina.data.example import EncodedExample
from lamina.data.side import Side
from lamina.distributed.world import ALONE, World
from lamina.errors import StorageError, TrainingError
from lamina.losses.answers import answer_log_probs
from lamina.losses.pairs import REFERENCE
from lamina.machine.hardware import dtype_name
from lamina.methods.shared.base import Injection
from lamina.models.load import Base
from lamina.progress import Notify
from lamina.structure.head import Head

# Increase it with every change to how the log-probabilities are computed.
VERSION = 1

# Tokens of a forward pass over several rows.
_TOKENS = 4096

# A model that is its own reference gives the same log-probabilities up to rounding, which depends on the batch that a
# row is in: at most this per token on average. A wrong reference differs by tenths.
_ROUNDING = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.05}

# Seconds between messages on long computations.
_WORD_EVERY = 15.0


@dataclass(frozen=True)
class Reference:
    """The model that a loss compares with.

    Attributes:
        kind: `base` or `start`.
        digest: Of the base's weights, or of the adapter that training starts from.
        injection: The adapter that is trained.
        tensors: The start adapter's tensors; empty for the base.
    """

    kind: str
    digest: str
    injection: Injection
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Makes the model the reference inside the block."""
        if self.kind == "base":
            with self.injection.disabled():
                yield
            return
        current = {name: tensor.detach().clone() for name, tensor in self.injection.tensors().items()}
        self.injection.load_tensors(self.tensors)
        try:
            yield
        finally:
            self.injection.load_tensors(current)


def find_reference(config: LossConfig, injection: Injection, base: Base, start: Adapter | None) -> Reference | None:
    """Finds the reference of a loss, before the adapter is trained; None if it needs none.

    Args:
        config: The `loss:` section.
        injection: The adapter as training starts.
        base: The base model.
        start: The adapter that training starts from; None for a new one.
    """
    if config.reference_name is None:
        return None
    if start is None or config.reference_name == "base":
        return Reference("base", base.fingerprint.tensors, injection)
    kept = {name: tensor.detach().clone() for name, tensor in injection.saved_tensors().items()}
    return Reference("start", start.digest, injection, kept)


def turn_off_dropout(injection: Injection, notify: Notify) -> None:
    """Turns the base's own dropout off, and notes the adapter's, which a user has set.

    With dropout, a model differs from itself, and so from its reference before the first step.
    """
    own = [module for layer in injection.layers.values() for module in layer.modules()]
    ids = {id(module) for module in own}
    for module in injection.model.modules():
        if id(module) in ids:
            continue
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():  # such as Llama's attention_dropout, which is no module
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    rate = dict(injection.config).get("lora_dropout")
    if rate:
        notify(
            f"method.lora_dropout is {rate:g}: with dropout the model differs from its reference, which makes this "
            "loss noisier. TRL turns it off; so does method.lora_dropout=0."
        )


def with_reference(
    side: Side,
    reference: Reference,
    head: Head,
    base: Base,
    kernels: str,
    notify: Notify,
    what: str,
    world: World = ALONE,
) -> Side:
    """Returns a side's examples with the reference's log-probabilities, from the cache if they are there.

    Args:
        side: The examples.
        reference: The reference.
        head: The model's parts.
        base: The base model.
        kernels: See `kernels.use_backend`.
        notify: Told before anything that takes a while.
        what: Name of the side, for messages.
        world: The processes that share the work.
    """
    if not len(side):
        return side
    digests = [_digest(example) for example in side]
    places: dict[bytes, int] = {}
    first = [place for place, digest in enumerate(digests) if places.setdefault(digest, place) == place]
    counts = {place: _sequences(side[place]) for place in first}

    def compute() -> np.ndarray:
        doing = f"Computing the reference's log-probabilities of {len(first):,} {what} rows, once"
        notify(f"{doing} ...")
        last_word = time.monotonic()

        def progress(done: int) -> None:
            nonlocal last_word
            if time.monotonic() - last_word > _WORD_EVERY:
                last_word = time.monotonic()
                notify(f"{doing}: {done / len(first):.0%} ...")

        with reference.active(), fast_path(base.model, kernels=kernels, longest=side.longest) as path:
            return reference_log_probs([side[place] for place in first], base, head, path.layout, progress, world)

    key = _key(reference, base, kernels, [digests[place] for place in first])
    flat = _cached(key, sum(counts.values()), compute, world)
    starts = dict(zip(first, np.cumsum([0, *counts.values()]).tolist(), strict=False))
    columns: dict[str, np.ndarray] = {}
    for place, digest in enumerate(digests):
        start = starts[places[digest]]
        for number, name in enumerate(_names(side[place])):
            columns.setdefault(name, np.full(len(side), np.nan))[place] = flat[start + number]
    return side.with_values(columns)


@torch.no_grad()
def reference_log_probs(
    examples: Sequence[EncodedExample],
    base: Base,
    head: Head,
    layout: Layout,
    progress: Callable[[int], None] = lambda done: None,
    world: World = ALONE,
) -> np.ndarray:
    """Computes the log-probabilities of the answers of each example and its companion, by the model as it is now.

    Args:
        examples: The examples.
        base: The base model, in `fast_path`.
        head: The model's parts.
        layout: How documents go through the model.
        progress: Called with the number of examples done.
        world: The processes that share the work.

    Returns:
        float64, (sequences,): those of the first example, of its companion, of the second example, and so on.
    """
    model, found, done = base.model, dict[int, list[np.ndarray]](), 0
    training = model.training
    model.eval()
    groups = list(_groups(examples))
    try:
        for place, counts in world.walk([float(sum(map(len, group))) for group in groups]):
            parts = found.setdefault(place, []) if counts else []
            for unit in build_units([one for example in groups[place] for one in _both(example)], layout):
                answers = answer_log_probs(model, head, [batch.to(model.device) for batch in unit])
                parts.append(answers.log_probs.cpu().numpy())
            done += len(groups[place])
            progress(done)
    finally:
        model.train(training)
    return np.concatenate([part for parts in world.collect(found, "the reference") for part in parts])


def check_reference(
    examples: Sequence[EncodedExample],
    reference: Reference,
    base: Base,
    head: Head,
    layout: Layout,
    is_start: bool = True,
) -> str:
    """Checks that the model as training starts gives its reference's log-probabilities.

    So the first step's log-ratios are 0 and its loss is what it must be, such as log 2.

    Args:
        examples: Some training rows.
        reference: The reference.
        base: The base model, in `fast_path`.
        head: The model's parts.
        layout: How documents go through the model.
        is_start: Whether the reference is to be the model that training starts from. It is not where an adapter is
            compared with the base, or where the method's new adapters already change the base's output.

    Returns:
        What a user should know; empty if all is as it should be.

    Raises:
        TrainingError: They differ by more than rounding, so the reference is not the model that training starts from.
    """
    ours = reference_log_probs(examples, base, head, layout)
    theirs = np.concatenate([[example.values[name] for name in _names(example)] for example in examples])
    tokens = sum(one.supervised_tokens for example in examples for one in _both(example))
    difference = float(np.abs(ours - theirs).sum()) / tokens
    bound = _ROUNDING[base.dtype]
    if difference <= bound:
        return ""
    what = f"before the first step, the model and its reference differ by {difference:.3g} in log p per token"
    if not is_start:
        return f"{what[0].upper()}{what[1:]}, since training does not start from the reference."
    raise TrainingError(
        f"{what}, and rounding explains {bound:.2g}: the reference is not the model that training starts from. Fix: "
        "set loss.reference to auto, or remove the folder `references` of the cache, in case it is damaged."
    )


def with_live_reference(
    examples: Sequence[EncodedExample], base: Base, head: Head, layout: Layout
) -> list[EncodedExample]:
    """Returns examples with the log-probabilities that the model gives as it is now, in place of precomputed ones."""
    found = reference_log_probs(examples, base, head, layout).tolist()
    live, at = [], 0
    for example in examples:
        names = _names(example)
        live.append(example.with_values(dict(zip(names, found[at : at + len(names)], strict=True))))
        at += len(names)
    return live


def _groups(examples: Sequence[EncodedExample]) -> Iterator[list[EncodedExample]]:
    group: list[EncodedExample] = []
    tokens = 0
    for example in examples:
        size = sum(len(one) for one in _both(example))
        if group and tokens + size > _TOKENS:
            yield group
            group, tokens = [], 0
        group.append(example)
        tokens += size
    if group:
        yield group


def _both(example: EncodedExample) -> list[EncodedExample]:
    return [example] if example.companion is None else [example, example.companion]


def _sequences(example: EncodedExample) -> int:
    return sum(len(one.lengths) for one in _both(example))


def _names(example: EncodedExample) -> list[str]:
    own = [REFERENCE.format(number) for number in range(len(example.lengths))]
    lengths = () if example.companion is None else example.companion.lengths
    return [*own, *(REFERENCE.format(f"companion/{number}") for number in range(len(lengths)))]


def _digest(example: EncodedExample) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for one in _both(example):
        digest.update(str(one.lengths).encode())
        digest.update(one.input_ids.tobytes())
        digest.update(one.supervised.tobytes())
    return digest.digest()


def _key(reference: Reference, base: Base, kernels: str, digests: Sequence[bytes]) -> str:
    facts: dict[str, Any] = {
        "version": VERSION,
        "torch": torch.__version__,
        "base": base.fingerprint.tensors,
        "config": base.fingerprint.config,
        "packed": base.packed_digest,
        "dtype": dtype_name(base.dtype),
        "device": base.model.device.type,
        "kernels": kernels,
        "reference": [reference.kind, reference.digest],
        "rows": hashlib.sha256(b"".join(digests)).hexdigest(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _cached(key: str, size: int, compute: Callable[[], np.ndarray], world: World) -> np.ndarray:
    """What the first process has in its cache, or what all of them compute."""
    path = cache_folder() / "references" / f"{key}.npy"

    def read() -> np.ndarray | None:
        with contextlib.suppress(OSError, ValueError):
            found = np.load(path)
            if found.shape == (size,) and np.isfinite(found).all():
                os.utime(path)  # marks it as used now
                return found
        return None

    found = world.once(read, "looking for the reference in the cache")
    if found is not None:
        return found
    found = compute()
    if not world.is_first:
        return found
    content = io.BytesIO()
    np.save(content, found)
    with contextlib.suppress(OSError, StorageError):  # without a cache, it is computed again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, content.getvalue())
    return found
