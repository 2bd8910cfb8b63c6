"""What a gate's two subjects are by digests, and whether a stored evaluation is of just these two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lamina.adapters.adapter import read_adapter
from lamina.adapters.load import adapter_folder
from lamina.engine.subject import find_subject, split_url
from lamina.errors import ConfigError, Problem
from lamina.evaluation.store import EvaluationError, StoredEvaluation
from lamina.models.fingerprint import fingerprint_base
from lamina.models.source import find_model
from lamina.progress import Notify
from lamina.registry.digests import short


@dataclass(frozen=True)
class Identity:
    """A subject by digests.

    Attributes:
        ref: What the user called it.
        adapter: Digest of the adapter; None for the bare base.
        base: Digest of the base's tensors.
        template: Digest of the chat template that the adapter is locked to; None where nothing says.
    """

    ref: str
    adapter: str | None
    base: str
    template: str | None

    def fits(self, subject: Mapping[str, Any]) -> bool:
        """Whether a stored subject is this one, without examples in its prompts."""
        parts = subject["parts"]
        return (
            subject["adapter_digest"] == self.adapter
            and subject["base_digest"] == self.base
            and parts.get("few_shot") == 0
            and (self.template is None or parts.get("template") == self.template)
        )


def identify(ref: str, model: str | None = None, notify: Notify = lambda message: None) -> Identity:
    """Finds out what a reference stands for, without loading a model.

    Raises:
        AdapterError, ModelError: It cannot be read.
        ConfigError: There is nothing of that name, or it is a URL, which nothing binds to what answers there.
    """
    if split_url(ref) is not None:
        message = f"{ref!r} is a URL: no digest says what answers there"
        raise ConfigError(Problem("SUBJECT", message, "name a run, an adapter, a version or a base"))
    subject = find_subject(ref, notify, model)
    base = fingerprint_base(find_model(subject.base, notify).folder).tensors
    if subject.adapter is None:
        return Identity(ref, None, base, None)
    adapter = read_adapter(adapter_folder(subject.adapter[1]))
    return Identity(ref, adapter.digest, base, adapter.lock and adapter.lock.chat_template_digest)


def names_in(stored: StoredEvaluation, candidate: Identity, champion: Identity) -> tuple[str, str]:
    """What a stored evaluation calls the two.

    Raises:
        EvaluationError: It is not of these two.
    """
    found = []
    for what, identity in (("candidate", candidate), ("champion", champion)):
        name = next((subject["subject"] for subject in stored.subjects if identity.fits(subject)), None)
        if name is None:
            held = ", ".join(f"{s['subject']} ({short(s['adapter_digest'])})" for s in stored.subjects)
            raise EvaluationError(
                f"{stored.path}: is not of the {what} {identity.ref} ({short(identity.adapter)} on the base "
                f"{short(identity.base)}); it is of {held}. Fix: leave it out, and what is missing is evaluated."
            )
        found.append(name)
    return found[0], found[1]
