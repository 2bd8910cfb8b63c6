"""Selects the Jinja text of a run's chat template: the requested one, or otherwise the model's own, or a built-in
one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lamina.chat.bare import BARE, BOS, CHAT, SOURCE, is_bare_source
from lamina.chat.bounds import TemplateFailure
from lamina.chat.jinja import compile_template
from lamina.chat.support import TemplateSupport
from lamina.chat.tokenizer import adds_bos
from lamina.config.places import is_template_file, is_template_text
from lamina.errors import ConfigError, ModelError, Problem, nearest

BUILTIN_TEMPLATES = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted((Path(__file__).parent / "templates").glob("*.jinja"))
}
FALLBACK_TEMPLATE = "plain"

# The name of a template that the configuration gives as text.
INLINE = "inline"

# The first line of a built-in template lists the tokens that it requires.
_NEEDS = re.compile(r"\{#- needs:(.*?)-#\}")


@dataclass(frozen=True)
class TemplateSource:
    """The text of a template, with its name.

    Attributes:
        name: `model` for the model's own template, the name of a built-in template, the path of a file, `inline` for a
            text, `bare` for text without a template, or `chat` for the model's own next to that.
        text: The Jinja text.
        tool_text: The Jinja text for rows with tools, if the model has a separate one.
    """

    name: str
    text: str
    tool_text: str = ""


def find_source(tokenizer: PreTrainedTokenizerBase, wanted: str | None = None, text: str = "") -> TemplateSource:
    """Returns the template text to use.

    Args:
        tokenizer: The model's tokenizer.
        wanted: Name of a built-in template, or the path of a Jinja file (it ends in .jinja or .j2, or has a slash), or
            a Jinja text, or `bare` for text without a template.
        text: The Jinja text of what `wanted` names, if it is already known.

    Raises:
        ConfigError: `wanted` is unknown, cannot be read, is not a valid template, or does not fit the tokenizer.
    """
    source = _choose(tokenizer, wanted, text)
    for part in filter(None, (source.text, source.tool_text)):
        try:
            compile_template(part)
        except TemplateFailure as error:
            raise template_error(
                f"the {source.name} chat template is not valid Jinja: {error}", "correct it, or use a built-in one"
            ) from None
    return source


def own_templates(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Returns the model's own templates by name, with one named `default`; empty if it has none."""
    own = tokenizer.chat_template
    if not own:
        return {}
    named: dict[str, str] = dict(own) if isinstance(own, dict) else {"default": own}
    return {"default": next(iter(named.values())), **named}


def check_usable(name: str, stop: str, bos: str, support: TemplateSupport) -> None:
    """Checks that a model can be trained with a template.

    Args:
        name: The template's name.
        stop: The token that ends an answer.
        bos: The tokenizer's BOS token; empty if it has none.
        support: What the template supports.

    Raises:
        ConfigError: It writes BOS more than once.
        ModelError: There is no token that ends an answer.
    """
    if not stop or stop == "None":
        raise ModelError(
            "the model's tokenizer has no EOS token and its chat template writes no stop token, so the model could "
            "not learn to stop. Fix: give the tokenizer an eos_token."
        )
    if bos and support.repeats(bos):
        raise template_error(
            f"the {name} chat template writes {bos} more than once before the first turn", "correct it"
        )


def template_error(message: str, fix: str) -> ConfigError:
    """Returns an error about `data.chat_template`."""
    return ConfigError(Problem("data.chat_template", message, fix))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else (error.strerror or str(error))
        raise template_error(f"{str(path)!r} cannot be read: {reason}", "give the path of a Jinja file") from None


def _choose(tokenizer: PreTrainedTokenizerBase, wanted: str | None, text: str) -> TemplateSource:
    own = own_templates(tokenizer)
    if wanted == CHAT and is_bare_source(own.get("default", "")):
        if CHAT in own:
            return TemplateSource(CHAT, own[CHAT])
        own = {}
    wanted = None if wanted == CHAT else wanted
    if wanted is None and own:
        return TemplateSource("model", own["default"], own.get("tool_use", ""))
    if wanted == BARE:
        return TemplateSource(BARE, BOS + SOURCE if adds_bos(tokenizer) else SOURCE)
    name = wanted or FALLBACK_TEMPLATE
    if is_template_text(name) or (name == INLINE and text):
        return TemplateSource(INLINE, text or name)
    if is_template_file(name):
        return TemplateSource(name, text or _read(Path(name)))
    if name not in BUILTIN_TEMPLATES:
        raise template_error(
            f"{name!r} is not a built-in template; available: {', '.join(BUILTIN_TEMPLATES)}.",
            nearest(name, BUILTIN_TEMPLATES) or "remove it to use the model's own template, or give a .jinja file",
        )
    source = BUILTIN_TEMPLATES[name]
    needed = match.group(1).split() if (match := _NEEDS.match(source)) else []
    vocabulary = tokenizer.get_vocab() if needed else {}
    if missing := [token for token in needed if token not in vocabulary]:
        raise template_error(
            f"{name!r} needs {' '.join(missing)}, which this model's tokenizer does not have", "use 'plain'"
        )
    if "bos_token" not in source and adds_bos(tokenizer):
        source = "{{ bos_token }}" + source
    return TemplateSource(name, source)
