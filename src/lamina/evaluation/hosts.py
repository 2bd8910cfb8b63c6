"""`open_host`: what answers for the entries of one group: a base in memory with its adapters, or a model at a URL."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lamina.adapters.adapter import Adapter, read_adapter
from lamina.adapters.load import adapter_folder, template_of
from lamina.engine.engine import Engine
from lamina.errors import ConfigError, Problem
from lamina.evaluation.asking import Speaker
from lamina.evaluation.entries import Entry, SubjectFacts
from lamina.evaluation.remote import RemoteModel
from lamina.models.load import Base
from lamina.progress import Notify


@dataclass(frozen=True)
class Member:
    """An entry that answers.

    Attributes:
        entry: The entry.
        facts: What it is.
        speaker: What answers, without examples in its prompts.
        adapter: The adapter, as read; None for what has none.
    """

    entry: Entry
    facts: SubjectFacts
    speaker: Speaker
    adapter: Adapter | None = None


@dataclass(frozen=True)
class Host:
    """What answers for a group.

    Attributes:
        members: Its entries.
        engine: What computes; None for a URL.
    """

    members: tuple[Member, ...]
    engine: Engine | None


@contextlib.contextmanager
def open_host(
    entries: Sequence[Entry],
    *,
    model: str | None = None,
    allow_base_mismatch: bool = False,
    notify: Notify = lambda message: None,
) -> Iterator[Host]:
    """Loads what answers for the entries of one group, for a block.

    Raises:
        AdapterError, BaseMismatchError, CertificateError, ModelError: An adapter or the base cannot be used.
        ConfigError: A URL does not know the model.
    """
    if entries[0].url is not None:
        yield Host(tuple(_remote(entry) for entry in entries), None)
        return
    adapters = {entry.name: read_adapter(adapter_folder(entry.adapter)) for entry in entries if entry.adapter}
    subject = next((entry.subject for entry in entries if entry.adapter), entries[0].subject)
    if subject is None:
        raise ConfigError(Problem("subject", f"{entries[0].name!r} names no base", "name a base, a run or an adapter"))
    base = subject.load(notify=notify)
    first = next(iter(adapters.values()), None)
    template = None if first is None else template_of(first, base)
    with Engine(base, template=template, allow_base_mismatch=allow_base_mismatch, notify=notify) as engine:
        if engine.slow_because is not None:
            notify(f"The base runs by transformers' own code, which is slower: {engine.slow_because}")
        members = []
        for number, entry in enumerate(entries):
            adapter = adapters.get(entry.name)
            members.append(_local(engine, entry, adapter, f"a{number}"))
        yield Host(tuple(members), engine)


def license_of(folder: Path) -> str | None:
    """The license that a model folder's card names; None where it names none."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    head = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|$)", text, re.DOTALL)
    found = re.search(r"^license:\s*[\"']?([\w.+-]+)", head.group(1), re.MULTILINE) if head else None
    return found.group(1).lower() if found else None


def _local(engine: Engine, entry: Entry, adapter: Adapter | None, name: str) -> Member:
    base, template = engine.base, engine.template
    sizes, notes, certificate = {"base_bytes": _bytes_of(base)}, tuple[str, ...](), None
    if adapter is not None:
        template = template_of(adapter, base)
        facts = engine.load(name, adapter.path)
        notes = facts.notes
        certificate = None if facts.certificate is None else facts.certificate.passed
        sizes["adapter_bytes"] = sum(path.stat().st_size for path in adapter.path.rglob("*") if path.is_file())
        sizes["adapter_memory_bytes"] = facts.nbytes
    parts = {
        "adapter": None if adapter is None else adapter.digest,
        "base.tensors": base.fingerprint.tensors,
        "base.config": base.fingerprint.config,
        "base.packed": base.packed_digest,
        "template": template.digest,
        "template.settings": [
            template.thinking,
            template.enable_thinking,
            *([template.kwargs] if template.kwargs else []),
        ],
        "tokenizer": template.tokenizer_digest,
        "few_shot": entry.few_shot,
    }
    known = SubjectFacts(
        entry.name,
        entry.kind,
        None if adapter is None else adapter.digest,
        base.fingerprint.tensors,
        parts,
        engine.digest,
        certificate,
        notes,
        sizes,
        license_of(base.source.folder),
    )
    return Member(entry, known, Speaker(engine, None if adapter is None else name, template), adapter)


def _remote(entry: Entry) -> Member:
    if entry.url is None:
        raise ConfigError(Problem("subject", f"{entry.name!r} is no URL", "write http://HOST:PORT/v1#MODEL"))
    url, model = entry.url
    parts = {"url": url, "model": model, "few_shot": entry.few_shot}
    facts = SubjectFacts(entry.name, "url", None, None, parts)
    return Member(entry, facts, Speaker(RemoteModel(url, model), None, None))


def _bytes_of(base: Base) -> int:
    tensors: dict[int, torch.Tensor] = {}
    for tensor in (*base.model.parameters(), *base.model.buffers()):
        tensors[tensor.data_ptr()] = tensor
    return sum(tensor.nbytes for tensor in tensors.values())
