"""Lets an adapter in: checks its lock, lays it out for the base, and replays its probes before it answers anybody."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedModel

from lamina.adapters.adapter import Adapter, read_adapter
from lamina.adapters.certificate import Certificate, replay_probes
from lamina.adapters.fit import fit
from lamina.adapters.load import template_of
from lamina.adapters.lock import check_lock
from lamina.chat.template import ChatTemplate
from lamina.engine.store import Ready
from lamina.engine.voices import Part, Runners
from lamina.errors import CertificateError
from lamina.models.copies import shared_copy
from lamina.models.load import Base


class _Logits(Protocol):
    def __call__(
        self, ids: Sequence[int], positions: Sequence[int], part: Part, digest: str | None
    ) -> torch.Tensor: ...


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
        self._twins: queue.SimpleQueue[PreTrainedModel] = queue.SimpleQueue()
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
        lock = adapter.lock
        settings = (lock.chat_template, lock.chat_template_text, lock.thinking, lock.enable_thinking)
        template = self._templates.get(settings)
        if template is None:
            template = self._templates[settings] = template_of(adapter, self._base)
        return check_lock(adapter.lock, self._base, template, self._allow_base_mismatch)

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
        twin = self._twin()
        fitted = fit(adapter, twin)
        twin.eval().requires_grad_(False)
        part = self._runners.part(fitted.injection.row_forms(), lambda: twin, injection=fitted.injection)
        if part.reason is None:
            self._keep_twin_ready()
        return Ready(part, adapter.digest, adapter.config.type), list(fitted.notes)

    def certify(self, adapter: Adapter, part: Part, logits: _Logits) -> Certificate | None:
        """Replays an adapter's probes, unless they passed before: its digest says that nothing has changed.

        Args:
            adapter: The adapter.
            part: What answers for it.
            logits: Gives the logits of a part.

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
        certificate = replay_probes(
            lambda ids, positions: logits(ids, positions, part, digest),
            adapter.probes,
            subject=str(adapter.path),
            adapter_digest=digest,
            modules_expected=1,
            modules_matched=1,
            trained_dtype=adapter.lock.base_dtype,
            dtype=str(self._base.dtype).removeprefix("torch."),
        )
        if not certificate.passed and not self._allow_base_mismatch:
            fix = "train it again on this base, or load it with the version of lamina that trained it"
            raise CertificateError(f"{adapter.path}: {certificate.line()}. Fix: {fix}.", certificate)
        if certificate.passed:
            self._certified[digest] = certificate
        return certificate

    def _twin(self) -> PreTrainedModel:
        try:
            return self._twins.get_nowait()
        except queue.Empty:
            return shared_copy(self._base.model)

    def _keep_twin_ready(self) -> None:
        """Makes the copy for the next adapter, so that loading it does not wait for that."""
        if self._twins.empty():
            model, twins = self._base.model, self._twins
            threading.Thread(target=lambda: twins.put(shared_copy(model)), daemon=True).start()
