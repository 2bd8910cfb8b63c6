"""The lock: what an adapter was trained on, and the check that it is used on the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from lamina.chat.template import ChatTemplate
from lamina.data.encode import text_end
from lamina.errors import AdapterError, BaseMismatchError, NewerVersionError
from lamina.machine.hardware import dtype_name
from lamina.models.load import Base
from lamina.models.new_tokens import NewTokens
from lamina.version import __version__


@dataclass(frozen=True)
class Lock:
    """What an adapter is bound to.

    Attributes:
        base: What the user called the base.
        base_tensors: Digest of the base's tensors.
        base_config: Digest of its config.
        base_dtype: What the base was held in during training.
        tokenizer: Digest of the tokenizer.
        chat_template: `model`, the name of the built-in template, the path of a file, `bare` for text without a
            template, or `chat` for the model's own next to that.
        chat_template_digest: Digest of the template's text.
        stop_token: The token that training taught to end with: after answers, or, of plain texts alone, after these.
        chat_template_text: The template that was read from a file; None for others.
        thinking: What became of reasoning in the data (`data.thinking`).
        enable_thinking: What the chat template was told of reasoning (`data.enable_thinking`).
        chat_template_kwargs: Other variables that the chat template was given (`data.chat_template_kwargs`).
        data: Path, digest and rows of each data file.
        quantization: How the base was quantized; None for not at all.
        packed_weights: Digest of its packed weights; None where `base_tensors` covers them.
        classes: Names of a classifier's classes, in the order of its scores; None for others.
        added_tokens: The tokens that were added to the base's own, as `NewTokens.as_json`; None for none. The digests
            of the base are of what is on disk, without them; `tokenizer` is with them.
        lamina: The version that trained it.
    """

    base: str
    base_tensors: str
    base_config: str
    base_dtype: str
    tokenizer: str
    chat_template: str
    chat_template_digest: str
    stop_token: str
    chat_template_text: str | None = None
    thinking: Literal["keep", "strip", "unsupervised"] = "keep"
    enable_thinking: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    data: list[dict[str, Any]] = field(default_factory=list)
    quantization: dict[str, Any] | None = None
    packed_weights: str | None = None
    classes: list[str] | None = None
    added_tokens: dict[str, list[str]] | None = None
    lamina: str = __version__

    def as_json(self) -> dict[str, Any]:
        """As plain data. Without what only newer versions know, earlier ones read it too."""
        newer = ("added_tokens", "classes")
        return {key: value for key, value in asdict(self).items() if key not in newer or value is not None}

    @classmethod
    def from_json(cls, value: Any) -> Lock:
        """Reads what `as_json` gave.

        Raises:
            AdapterError: A field is missing.
            NewerVersionError: A field is not known here, so what it binds the adapter to could not be checked.
        """
        unknown = sorted(value.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise NewerVersionError(
                "lamina.json", str(value.get("lamina", "")), f"its lock has {', '.join(unknown)}, not known here"
            )
        try:
            return cls(**value)
        except TypeError as error:
            raise AdapterError(
                f"lamina.json: its lock is not readable ({error}). Fix: copy the adapter again."
            ) from None


def build_lock(
    base: Base,
    template: ChatTemplate,
    data: list[dict[str, Any]],
    only_text: bool = False,
    classes: Sequence[str] = (),
) -> Lock:
    """The lock for an adapter trained on `base` with `template`, through which `only_text` never went."""
    return Lock(
        base=base.source.ref,
        base_tensors=base.fingerprint.tensors,
        base_config=base.fingerprint.config,
        base_dtype=dtype_name(base.dtype),
        tokenizer=template.tokenizer_digest,
        chat_template=template.name,
        chat_template_digest=template.digest,
        chat_template_text=template.source if template.is_file else None,
        thinking=template.thinking,
        enable_thinking=template.enable_thinking,
        chat_template_kwargs=template.kwargs or None,
        stop_token=text_end(template) if only_text else template.stop_token,
        data=data,
        quantization=base.quantization and base.quantization.model_dump(),
        packed_weights=base.packed_digest,
        classes=list(classes) or None,
        added_tokens=base.added and base.added.tokens.as_json(),
    )


def _with(tokens: NewTokens) -> str:
    return f"with the added tokens {[*tokens.ordinary, *tokens.special]}" if tokens else "without added tokens"


def check_lock(lock: Lock, base: Base, template: ChatTemplate, allow_mismatch: bool = False) -> list[str]:
    """Compares the lock with what is at hand.

    Args:
        lock: From the adapter.
        base: The base it is being loaded on.
        template: The template that will render its prompts, with the base's tokenizer.
        allow_mismatch: Go on all the same.

    Returns:
        The differences as sentences; empty when all agree.

    Raises:
        BaseMismatchError: Something differs and `allow_mismatch` is false; both digests are named.
    """
    ours, theirs = NewTokens.from_json(lock.added_tokens), base.added.tokens if base.added else NewTokens()
    if ours != theirs and not allow_mismatch:
        raise BaseMismatchError(
            f"the adapter was trained {_with(ours)}, and the base {base.source.ref!r} was loaded {_with(theirs)}. "
            "Fix: name the adapter itself, so that its base is loaded with its own tokens; adapters with other tokens "
            "need a base of their own."
        )
    pairs = (
        ("base model's weights", lock.base_tensors, base.fingerprint.tensors),
        ("base model's config", lock.base_config, base.fingerprint.config),
        ("tokenizer", lock.tokenizer, template.tokenizer_digest),
        ("chat template", lock.chat_template_digest, template.digest),
        # Only where both are known: the adapter may be going on the weights from before quantization.
        ("quantized weights", lock.packed_weights or base.packed_digest, base.packed_digest or lock.packed_weights),
    )
    differences = [
        f"the {what} differ: trained on {ours}, loading on {theirs}" for what, ours, theirs in pairs if ours != theirs
    ]
    if differences and not allow_mismatch:
        raise BaseMismatchError(
            f"the adapter is locked to another base than {base.source.ref!r} (it was trained on {lock.base!r}): "
            f"{'; '.join(differences)}. Fix: load the base it was trained on, or insist with --allow-base-mismatch."
        )
    return differences
