"""Completes a folder of saved weights to a model that other software loads in the same way as the base.

Every file of the base except its weights is copied byte for byte, and then only the necessary keys are changed: saving
through transformers would rewrite the files with keys that only its own version understands. The stop tokens are
written to all three files that have them, since programs differ in which of them they read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from lamina import files
from lamina.chat.saved import saved_source
from lamina.chat.template import ChatTemplate
from lamina.chat.tokenizer import fingerprint_tokenizer
from lamina.machine.quiet import quiet_transformers
from lamina.models.companions import MAX_BYTES, copy_companions
from lamina.models.remote_code import is_allowed
from lamina.models.rope_words import add_old_rope_words, config_parts
from lamina.models.stops import with_stop_ids
from lamina.progress import Notify

_CONFIG, _GENERATION = "config.json", "generation_config.json"
_TOKENIZER, _SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
_TEMPLATE = "chat_template.jinja"

# Other files with chat templates, some of which would take precedence over the one that is written.
_OTHER_TEMPLATES = ("chat_template.json", "additional_chat_templates/*.jinja")

# Keys about how a tokenizer was loaded, and a class name, which transformers 5 writes and 4 does not understand.
_ABOUT_LOADING = ("is_local", "local_files_only")
_CLASS_OF_5, _CLASS_OF_4 = "TokenizersBackend", "PreTrainedTokenizerFast"


@dataclass(frozen=True)
class Ends:
    """A model's own stop tokens, read while it is in memory.

    Attributes:
        config: `eos_token_id` of the model's config, which may be the default of its class.
        generation: The model's settings for `generate`.
    """

    config: int | list[int] | None
    generation: GenerationConfig | None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Ends:
        generation: Any = model.generation_config
        return cls(getattr(model.config, "eos_token_id", None), generation)


def complete_folder(
    folder: Path,
    base: Path,
    ends: Ends,
    template: ChatTemplate,
    changes: Mapping[str, Any],
    *,
    own_template: bool = False,
    own_stop: bool = False,
    own_tokens: bool = False,
    notify: Notify = lambda message: None,
) -> None:
    """Adds all files except the weights to a folder that has the weights.

    Args:
        folder: The folder with the weights.
        base: The folder of the model that the weights were made from.
        ends: The stop tokens of that model.
        template: The chat template that the model was, or will be, trained with.
        changes: New values for keys of config.json; None removes a key.
        own_template: Whether to save the template as the tokenizer's own.
        own_tokens: Whether to save the template's tokenizer, which has tokens that the base's lacks.
        own_stop: Whether to make the template's stop token the tokenizer's EOS, because the model was trained with it.
        notify: Called with a message about files that are left out.
    """
    for name in copy_companions(base, folder):
        notify(f"{base / name} is not copied: only weight files may be over {MAX_BYTES:,} bytes.")
    if own_tokens:
        with quiet_transformers():
            template.tokenizer.save_pretrained(str(folder))
    config = _read(base / _CONFIG)
    for key, value in changes.items():
        _change(config, key, value)
    _add_old_words(config)
    for part in config_parts(config):
        if part is config or "eos_token_id" in part:
            _add_stops(part, ends.config, template)
    _write(folder / _CONFIG, config)
    _complete_generation(folder, ends, template, (base / _GENERATION).is_file())
    _finish_tokenizer(folder, template, own_template, own_stop)


def write_tokenizer(folder: Path, template: ChatTemplate, *, own_stop: bool = False) -> None:
    """Writes a tokenizer with its chat template into a folder that is no model's, such as an adapter's.

    Args:
        folder: The folder.
        template: The chat template, with its tokenizer.
        own_stop: As for `complete_folder`.
    """
    with quiet_transformers():
        template.tokenizer.save_pretrained(folder)
    _finish_tokenizer(folder, template, True, own_stop)


def complete_converted(
    folder: Path, ends: Ends, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None
) -> None:
    """Adds what transformers 4 needs to a converted folder that transformers 5 has saved.

    Stop tokens are only written to generation_config.json, since an adapter's lock includes config.json.

    Args:
        folder: The complete folder.
        ends: The stop tokens of its model.
        tokenizer: Its tokenizer.
        template: Its chat template; None if that is unusable.
    """
    config = _read(folder / _CONFIG)
    _add_old_words(config)
    _write(folder / _CONFIG, config)
    _complete_generation(folder, ends, template, False)
    _write_tokenizer(folder, tokenizer)


def _change(config: dict[str, Any], key: str, value: Any) -> None:
    if value is None:
        config.pop(key, None)
        return
    words = ("dtype", "torch_dtype") if key == "dtype" else (key,)
    for part in config_parts(config):
        present = [word for word in words if word in part]
        # The text config of a multimodal model has its own copy of the key, and programs differ in which one they read.
        if not present and (part is config or (key == "tie_word_embeddings" and "vocab_size" in part)):
            present = [key]
        part |= dict.fromkeys(present, value)


def _add_old_words(config: dict[str, Any]) -> None:
    add_old_rope_words(config)
    if "dtype" in config:
        config.setdefault("torch_dtype", config["dtype"])


def _add_stops(holder: dict[str, Any], default: int | list[int] | None, template: ChatTemplate | None) -> None:
    own = holder.get("eos_token_id", default)
    if template is None:
        return
    ids = with_stop_ids(own, template)
    if ids != (own if isinstance(own, list) else [own]):
        holder["eos_token_id"] = ids if len(ids) > 1 else ids[0]


def _complete_generation(folder: Path, ends: Ends, template: ChatTemplate | None, from_base: bool) -> None:
    """Writes generation_config.json, which `generate` and servers read first; not every base has one."""
    own: Any = ends.generation
    content = _read(folder / _GENERATION) if from_base else own.to_diff_dict() if own else {}
    if not from_base:
        content = {key: value for key, value in content.items() if not key.startswith(("_", "transformers_version"))}
    _add_stops(content, own.eos_token_id if own else ends.config, template)
    _write(folder / _GENERATION, content)


def _put_template(folder: Path, template: ChatTemplate) -> str | list[dict[str, str]] | None:
    """Writes the template if it is not the model's own; returns the entry for tokenizer_config.json."""
    saved = saved_source(template)
    if saved is None:
        return None
    for pattern in _OTHER_TEMPLATES:
        for path in folder.glob(pattern):
            path.unlink()
    for name, part in ({"default": saved} if isinstance(saved, str) else saved).items():
        place = folder / (_TEMPLATE if name == "default" else f"additional_chat_templates/{name}.jinja")
        place.parent.mkdir(exist_ok=True)
        place.write_text(part, encoding="utf-8")
    return saved if isinstance(saved, str) else [{"name": name, "template": part} for name, part in saved.items()]


def _finish_tokenizer(folder: Path, template: ChatTemplate, own_template: bool, own_stop: bool) -> None:
    """Puts the template and the stop token into a tokenizer's files, which are in the folder."""
    text = _put_template(folder, template) if own_template else None
    # A template that writes EOS would then write the stop token, and some tokenizers append EOS to every text.
    if own_stop and template.stop_token != template.tokenizer.eos_token:
        own_stop = "eos_token" not in template.source + template.tool_source
        if own_stop and _write_tokenizer_with_stop(folder, template, text):
            return
    _write_tokenizer(folder, template.tokenizer, None, text)


def _write_tokenizer_with_stop(folder: Path, template: ChatTemplate, text: str | list[dict[str, str]] | None) -> bool:
    """Makes the stop token the EOS if tokenization stays the same; else restores the files. Returns whether it does."""
    before = {name: (folder / name).read_bytes() for name in (_TOKENIZER, _SPECIAL) if (folder / name).is_file()}
    _write_tokenizer(folder, template.tokenizer, template.stop_token, text)
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=is_allowed(folder))
    if fingerprint_tokenizer(tokenizer) == template.tokenizer_digest:
        return True
    for name, content in before.items():
        (folder / name).write_bytes(content)
    return False


def _write_tokenizer(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    eos: str | None = None,
    chat_template: str | list[dict[str, str]] | None = None,
) -> None:
    """Writes the given EOS and template, and replaces what transformers 4 would not understand."""
    for name in (_TOKENIZER, _SPECIAL):
        content = _read(folder / name)
        if name == _TOKENIZER:
            content = {key: value for key, value in content.items() if key not in _ABOUT_LOADING}
            if content.get("tokenizer_class") == _CLASS_OF_5:
                content["tokenizer_class"] = _CLASS_OF_4
                content.setdefault(
                    "model_input_names", tokenizer.model_input_names
                )  # transformers 4 has more by default
            if chat_template is not None:
                content["chat_template"] = chat_template
        if eos is not None and (name == _TOKENIZER or content):
            content["eos_token"] = eos
        _write(folder / name, content)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON, unless the file already has this content, so that unchanged files keep their exact bytes."""
    if content != _read(path):
        files.write_json(path, content)
