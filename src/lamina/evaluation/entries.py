"""What is evaluated: each subject a user names, with the bare base beside every adapter, grouped by what loads once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lamina.adapters.adapter import read_adapter
from lamina.adapters.load import adapter_folder
from lamina.engine.subject import Subject, find_subject, split_url
from lamina.errors import ConfigError, Problem
from lamina.methods.shared.base import find_method
from lamina.models.source import find_model
from lamina.progress import Notify

Kind = Literal["adapter", "base", "url"]

# What `--against` calls the bare base of what it is compared with, held as that holds it.
BASE = "base"


@dataclass(frozen=True)
class Entry:
    """One line of the table.

    Attributes:
        name: What tables and files call it: the reference as it was given.
        kind: What it is.
        subject: The base, and the adapter if it is one; None for a URL.
        url: Where it is asked, and the model's name there; None for what runs here.
        group: Entries of a group share a base in memory.
        few_shot: Examples in its prompts, beyond those of a task.
    """

    name: str
    kind: Kind
    subject: Subject | None
    url: tuple[str, str] | None
    group: str
    few_shot: int = 0

    @property
    def adapter(self) -> Path | None:
        """The run or adapter folder; None for what has none."""
        return None if self.subject is None or self.subject.adapter is None else self.subject.adapter[1]


@dataclass(frozen=True)
class SubjectFacts:
    """What an entry is, by digests.

    Attributes:
        entry: Its name.
        kind: `adapter`, `base` or `url`.
        adapter_digest: Digest of the adapter; None for the bare base and for a URL.
        base_digest: Digest of the base's tensors; None for a URL.
        parts: All that its answers depend on beside the engine, by name.
        engine: Digest of what computed; None for a URL.
        certificate: Whether its probes gave the logits that they gave at the end of training; None without probes.
        notes: What a user should know of it.
        sizes: Bytes of its files and of its weights in memory, by name.
        license: What the base's model card says; None where it does not.
    """

    entry: str
    kind: Kind
    adapter_digest: str | None
    base_digest: str | None
    parts: dict[str, Any]
    engine: str | None = None
    certificate: bool | None = None
    notes: tuple[str, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    license: str | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of its parts."""
        return "sha256:" + hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "subject": self.entry,
            "digest": self.digest,
            "kind": self.kind,
            "adapter_digest": self.adapter_digest,
            "base_digest": self.base_digest,
            "parts": self.parts,
            "engine": self.engine,
            "certificate": self.certificate,
            "notes": list(self.notes),
            "sizes": self.sizes,
            "license": self.license,
        }


def find_entries(
    refs: Sequence[str],
    *,
    few_shot: int = 0,
    model: str | None = None,
    with_base: bool = True,
    notify: Notify = lambda message: None,
) -> list[Entry]:
    """Finds what is evaluated: the subjects in the order in which they are named, then their bare bases.

    Args:
        refs: Runs, adapters, bases, merged folders, or `URL#MODEL`.
        few_shot: Examples in the prompt of one more line for each base; 0 for no such line.
        model: For adapters: another base than the one that they name.
        with_base: Whether the bare base is beside each adapter.
        notify: Called with a sentence before anything that takes a while.

    Raises:
        AdapterError, ConfigError, ModelError: A reference names nothing that can be evaluated.
    """
    named = [_entry(ref, model, notify) for ref in dict.fromkeys(refs)]
    entries = _unlike(named)
    bases = {entry.group: entry for entry in entries if entry.kind == "base"}
    for entry in named:
        if entry.kind == "adapter" and entry.group not in bases and (with_base or few_shot):
            bases[entry.group] = _base_of(entry, {known.name for known in entries})
            if with_base:
                entries.append(bases[entry.group])
    if few_shot:
        entries += [
            replace(base, name=f"{base.name} + {few_shot} examples", few_shot=few_shot) for base in bases.values()
        ]
    return entries


def names_own_base(ref: str | Path) -> bool:
    """Whether a reference is the word `base`, and no path that exists."""
    return str(ref) == BASE and not Path(BASE).exists()


def _entry(ref: str, model: str | None, notify: Notify) -> Entry:
    url = split_url(ref)
    if url is not None:
        return Entry(ref, "url", None, url, url[0])
    subject = find_subject(ref, notify, model)
    kind: Kind = "base" if subject.adapter is None else "adapter"
    return Entry(ref, kind, subject, None, group_of(subject, ref, notify))


def group_of(subject: Subject, ref: str, notify: Notify) -> str:
    """A key that is equal for what the same base in memory answers for.

    Raises:
        AdapterError, ConfigError, ModelError: The adapter or its base is not there, or cannot be read.
    """
    try:
        folder = str(find_model(subject.base, notify).folder.resolve())
    except ConfigError as error:
        raise ConfigError([replace(problem, field="subject") for problem in error.problems], ref) from None
    if subject.adapter is None:
        return json.dumps([folder, None, None])
    adapter = read_adapter(adapter_folder(subject.adapter[1]))
    own = str(subject.adapter[1].resolve()) if find_method(adapter.config.type).plan_loftq(adapter.config) else None
    held = None if subject.quantization is None else subject.quantization.model_dump()
    tokens = adapter.lock and adapter.lock.added_tokens
    return json.dumps([folder, held, own, *([tokens] if tokens else [])], sort_keys=True)


def _base_of(entry: Entry, taken: set[str]) -> Entry:
    """The bare base of an adapter, held as the adapter holds it."""
    if entry.subject is None:
        raise ConfigError(Problem("subject", f"{entry.name!r} has no base here", "name a run or an adapter"))
    name = entry.subject.name
    while name in taken:
        name = f"{name} (base)"
    return replace(entry, name=name, kind="base", subject=replace(entry.subject, adapter=None))


def _unlike(entries: Sequence[Entry]) -> list[Entry]:
    """Entries that are named twice, by two spellings of one path, are one."""
    found: dict[tuple[Any, ...], Entry] = {}
    for entry in entries:
        place = None if entry.adapter is None else adapter_folder(entry.adapter).resolve()
        key = (entry.kind, entry.group, place, entry.url)
        found.setdefault(key, entry)
    return list(found.values())
