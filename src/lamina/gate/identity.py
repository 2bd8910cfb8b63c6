"""What a gate's two subjects are by digests, and whether a stored evaluation is of just these two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lamina.adapters.adapter import read_adapter
from lamina.adapters.load import adapter_folder
from lamina.chat.template import build_template
from lamina.engine.subject import find_subject, split_url
from lamina.errors import ConfigError, Problem
from lamina.evaluation.entries import BASE, group_of, names_own_base
from lamina.evaluation.store import EvaluationError, StoredEvaluation
from lamina.models.fingerprint import fingerprint_base
from lamina.models.load import load_tokenizer
from lamina.models.source import find_model
from lamina.progress import Notify
from lamina.registry.digests import short


@dataclass(frozen=True)
class Identity:
    """A subject by digests.

    Attributes:
        ref: What the user called it.
        adapter: Digest of the adapter; None for the bare base.
        base: Digest of the base's tensors, as they are on disk.
        packed: Digest of the base's weights as they were quantized for it; None where it is held as it is on disk.
        template: Digest of the chat template that the adapter is locked to; None where nothing says.
        tokenizer: Digest of the tokenizer, with the tokens that were added; None where nothing says.
        group: Equal for what one base in memory answers for.
    """

    ref: str
    adapter: str | None
    base: str
    packed: str | None
    template: str | None
    tokenizer: str | None
    group: str

    def differences(self, subject: Mapping[str, Any]) -> list[str]:
        """In what a stored subject is another; nothing if it is this one, without examples in its prompts."""
        parts = subject["parts"]
        pairs = {
            "adapter": (self.adapter, subject["adapter_digest"]),
            "base": (self.base, subject["base_digest"]),
            "quantization of the base": (self.packed, parts.get("base.packed")),
            "chat template": (self.template or parts.get("template"), parts.get("template")),
            "tokenizer": (self.tokenizer or parts.get("tokenizer"), parts.get("tokenizer")),
            "examples in the prompt": (0, parts.get("few_shot")),
        }
        return [what for what, (ours, theirs) in pairs.items() if ours != theirs]


def identify_pair(
    candidate: str, against: str, model: str | None = None, notify: Notify = lambda message: None
) -> tuple[Identity, Identity]:
    """Finds out what candidate and champion are, without loading a model.

    A bare base that answers beside the candidate is held and asked as the candidate's is: quantized, with its tokens
    and its template. So are `base`, and the base's own name where the candidate holds it as it is on disk.

    Args:
        candidate: A run, an adapter or a version.
        against: The same, a base, or `base` for the candidate's own.
        model: For adapters: another base than the one that they name.
        notify: Called with a sentence before anything that takes a while.

    Raises:
        AdapterError, ConfigError, ModelError: As for `identify`.
    """
    ours = identify(candidate, model, notify)
    if names_own_base(against):
        return ours, replace(ours, ref=BASE, adapter=None)
    theirs = identify(against, model, notify)
    if theirs.adapter is None and theirs.group == ours.group:
        theirs = replace(ours, ref=theirs.ref, adapter=None)
    return ours, theirs


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
    source, group = find_model(subject.base, notify), group_of(subject, ref, notify)
    base = fingerprint_base(source.folder).tensors
    if subject.adapter is None:
        template = build_template(load_tokenizer(source))
        return Identity(ref, None, base, None, template.digest, template.tokenizer_digest, group)
    adapter = read_adapter(adapter_folder(subject.adapter[1]))
    if (lock := adapter.lock) is None:
        return Identity(ref, adapter.digest, base, None, None, None, group)
    template, tokenizer = lock.chat_template_digest, lock.tokenizer
    return Identity(ref, adapter.digest, base, lock.packed_weights, template, tokenizer, group)


def names_in(stored: StoredEvaluation, candidate: Identity, champion: Identity) -> tuple[str, str]:
    """What a stored evaluation calls the two.

    Raises:
        EvaluationError: It is not of these two.
    """
    found = []
    for what, identity in (("candidate", candidate), ("champion", champion)):
        name = next((subject["subject"] for subject in stored.subjects if not identity.differences(subject)), None)
        if name is None:
            held = ", ".join(
                f"{s['subject']} ({short(s['adapter_digest'])}; another {', '.join(identity.differences(s))})"
                for s in stored.subjects
            )
            raise EvaluationError(
                f"{stored.path}: is not of the {what} {identity.ref} ({short(identity.adapter)} on the base "
                f"{short(identity.base)}); it is of {held}. Fix: leave it out, and what is missing is evaluated."
            )
        found.append(name)
    return found[0], found[1]
