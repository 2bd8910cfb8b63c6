"""Lets an adapter in: checks its lock, lays it out for the base, and replays its probes before it answers anybody."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from lamina.adapters.adapter import Adapter, read_adapter
from lamina.adapters.certificate import Certificate, measure_rounding, replay_probes
from lamina.adapters.load import adapter_folder, template_of
from lamina.adapters.lock import Lock, check_lock
from lamina.adapters.probe_logits import Rounding
from lamina.chat.template import ChatTemplate, build_template
from lamina.engine.attached import AttachedModels
from lamina.engine.store import Ready
from lamina.engine.voices import Part, Runners
from lamina.errors import CertificateError
from lamina.models.load import Base


class _Logits(Protocol):
    def __call__(
        self, asked: Sequence[tuple[Sequence[int], Sequence[int]]], part: Part, digest: str | None
    ) -> list[torch.Tensor]: ...


class Admission:
    """Lets adapters in for one base. Safe to use from several threads."""

    def __init__(self, base: Base, runners: Runners, allow_base_mismatch: bool = False) -> None:
        """
        Args:
            base: The base.
            runners: What answers for it.
            allow_base_mismatch: Let in what is locked to another base.
        """
        self._base, self._runners, self._allow_base_mismatch = base, runners, allow_base_mismatch
        self._attached = AttachedModels(base.model)
        self._templates: dict[tuple[object, ...], ChatTemplate] = {}
        self._certified: dict[str, Certificate] = {}

    def check_lock(self, adapter: Adapter) -> list[str]:
        """Compares an adapter's lock with the base.

        Returns:
            Notes on what could not be checked, or was allowed.

        Raises:
            BaseMismatchError: It is locked to another base.
        """
        if adapter.lock is None:
            return ["the adapter has no lamina.json, so neither its base nor its numbers could be checked"]
        template = self.template(adapter.lock, adapter)
        return check_lock(adapter.lock, self._base, template, self._allow_base_mismatch)

    def template(self, lock: Lock, adapter: Adapter) -> ChatTemplate:
        """Returns the template that an adapter with this lock was trained with."""
        kwargs = json.dumps(lock.chat_template_kwargs, sort_keys=True)
        settings = (lock.chat_template, lock.chat_template_text, lock.thinking, lock.enable_thinking, kwargs)
        if settings not in self._templates:
            self._templates[settings] = template_of(adapter, self._base)
        return self._templates[settings]

    def read(self, path: Path) -> Ready:
        """Reads an adapter that was let in before, and lays it out again."""
        return self.prepare(read_adapter(path))[0]

    def prepare(self, adapter: Adapter) -> tuple[Ready, list[str]]:
        """Lays an adapter out, attached to a copy of the model that shares its weights.

        Returns:
            The adapter, and notes on what of it was passed over.

        Raises:
            AdapterError: It does not fit the base.
        """
        attached = self._attached.attach(adapter)
        part = self._runners.part(attached.injection.row_forms(), lambda: attached.model, injection=attached.injection)
        if part.reason is None:
            self._attached.give_back(attached)
        return Ready(part, adapter.digest, adapter.config.type), list(attached.notes)

    def certify(self, adapter: Adapter, part: Part, logits: _Logits) -> Certificate | None:
        """Replays an adapter's probes, unless they passed before: its digest says that nothing has changed.

        Args:
            adapter: The adapter.
            part: What answers for it.
            logits: Gives the logits of a part, at positions of several sequences.

        Returns:
            The certificate; None for an adapter without probes.

        Raises:
            CertificateError: It does not give the logits that it gave at the end of training.
        """
        if adapter.lock is None or not adapter.probes:
            return None
        digest = adapter.digest
        known = self._certified.get(digest)
        if known is not None:
            return replace(known, subject=str(adapter.path))
        trained_dtype, dtype = adapter.lock.base_dtype, str(self._base.dtype).removeprefix("torch.")
        asked = [(probe.input_ids, probe.positions) for probe in adapter.probes]
        given = {_key(*one): found for one, found in zip(asked, logits(asked, part, digest), strict=True)}
        certificate = replay_probes(
            lambda ids, positions: given[_key(ids, positions)],
            adapter.probes,
            subject=str(adapter.path),
            adapter_digest=digest,
            modules_expected=1,
            modules_matched=1,
            trained_dtype=trained_dtype,
            dtype=dtype,
            rounding=lambda: self._measure_rounding(adapter, trained_dtype, dtype),
        )
        if not certificate.passed and not self._allow_base_mismatch:
            fix = "train it again on this base, or load it with the version of lamina that trained it"
            raise CertificateError(f"{adapter.path}: {certificate.line()}. Fix: {fix}.", certificate)
        if certificate.passed:
            self._certified[digest] = certificate
        return certificate

    def _measure_rounding(self, adapter: Adapter, trained_dtype: str, dtype: str) -> Rounding:
        """Measures rounding on the model's own code: what the kernels compute cannot be perturbed."""
        attached = self._attached.attach(adapter)
        try:
            return measure_rounding(attached.model, adapter.probes, trained_dtype, dtype)
        finally:
            self._attached.give_back(attached)


def _key(ids: Sequence[int], positions: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(ids), tuple(positions)


def template_for(base: Base, adapters: Mapping[str, str | Path]) -> ChatTemplate:
    """The template of the first adapter with a lock, else the model's own.

    Raises:
        AdapterError: An adapter cannot be read.
    """
    for path in adapters.values():
        adapter = read_adapter(adapter_folder(path))
        if adapter.lock is not None:
            return template_of(adapter, base)
    return build_template(base.tokenizer)
