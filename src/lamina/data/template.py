"""Renders a conversation to text and knows which characters the assistant wrote, whatever the template.

One renderer serves training, evaluation, chat and generation. The assistant's text is found by rendering a second time
with invisible marks around each answer: if the two renderings agree once the marks are taken out, the places of the
marks are the places of the answers. No token id is ever searched for.

Rendering runs in transformers' sandboxed Jinja environment.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lamina.data.example import Message
from lamina.errors import ConfigError, DataError, ModelError, Problem, nearest

BUILTIN_TEMPLATES = {
    "plain": (
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
        "{% elif message['role'] == 'assistant' %}### Assistant:\n{{ message['content'] }}{{ eos_token }}\n\n"
        "{% else %}### {{ message['role'] | capitalize }}:\n{{ message['content'] }}\n\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}### Assistant:\n{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}"
        "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}
FALLBACK_TEMPLATE = "plain"

# Two characters of a private-use plane: no text has them, and no `strip` or `trim` touches them.
_OPEN, _CLOSE = "\U000f1e00", "\U000f1e01"


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` (exclusive) of a rendered text: an answer and its stop token."""

    start: int
    end: int


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, with what the assistant wrote in it.

    Attributes:
        text: What is tokenized, without any further special tokens.
        answers: One span for each assistant turn, its stop token included.
    """

    text: str
    answers: tuple[Span, ...]


class ChatTemplate:
    """A chat template bound to a tokenizer.

    Attributes:
        name: `model` for the model's own template, else the name of a built-in one.
        source: The Jinja text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, source: str) -> None:
        self.tokenizer = tokenizer
        self.name = name
        self.source = source

    @property
    def digest(self) -> str:
        """SHA-256 of the Jinja text."""
        return "sha256:" + hashlib.sha256(self.source.encode()).hexdigest()

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The conversation as text.

        Raises:
            DataError: The template refuses the conversation (its own words are quoted).
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text: Any = self.tokenizer.apply_chat_template(
                turns, chat_template=self.source, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            raise DataError(
                f"the {self.name} chat template refuses the conversation: {error}. Fix: correct the row, or set "
                "data.chat_template to a built-in template."
            ) from None
        return str(text)

    def render_spans(self, messages: Sequence[Message]) -> Rendered:
        """The conversation as text, with the span of each assistant turn.

        Raises:
            DataError: The template changes, drops or repeats an answer, so that it cannot be found in the text.
        """
        text = self.render(messages)
        answers = self._answer_spans(messages, text)
        if self._appends_stop and answers and messages[-1].role == "assistant":
            end = answers[-1].end
            text = text[:end] + self.stop_token
            answers[-1] = Span(answers[-1].start, len(text))
        answers = [Span(span.start, self._past_stop(text, span.end)) for span in answers]
        return Rendered(text, tuple(answers))

    @cached_property
    def stop_token(self) -> str:
        """The token that ends an answer: what the template puts after a final one, else the tokenizer's EOS."""
        return self._template_stop or str(self.tokenizer.eos_token)

    @property
    def stop_token_id(self) -> int:
        """Id of `stop_token`."""
        return int(self.tokenizer.convert_tokens_to_ids(self.stop_token))  # pyright: ignore[reportArgumentType]

    @property
    def notes(self) -> list[str]:
        """What a user should know about how this template is used."""
        notes = []
        if self.name != "model":
            notes.append(f"the built-in chat template '{self.name}' is used")
        if self._appends_stop:
            notes.append(f"the chat template ends an answer with no stop token, so {self.stop_token} is added")
        return notes

    @property
    def _appends_stop(self) -> bool:
        return not self._template_stop

    @cached_property
    def _template_stop(self) -> str:
        probe = [Message("user", "ping"), Message("assistant", "pong")]
        text = self.render(probe)
        (span,) = self._answer_spans(probe, text)
        special = sorted(_special_tokens(self.tokenizer), key=len, reverse=True)
        match = re.compile(r"\s*(" + "|".join(map(re.escape, special)) + ")").match(text, span.end) if special else None
        return match.group(1) if match else ""

    def _past_stop(self, text: str, end: int) -> int:
        match = re.compile(r"\s*" + re.escape(self.stop_token)).match(text, end)
        return match.end() if match else end

    def _answer_spans(self, messages: Sequence[Message], text: str) -> list[Span]:
        """Finds each answer's text in the rendering; a template that trims answers is followed."""
        expected = sum(message.role == "assistant" for message in messages)
        for trim in (False, True):
            marked = [_mark(message, trim) if message.role == "assistant" else message for message in messages]
            spans = _spans_of_marks(self.render(marked), text)
            if spans is not None and len(spans) == expected:
                return spans
        span = self._span_after_prompt(messages, text) if expected == 1 else None
        if span is not None:
            return [span]
        raise DataError(
            f"the {self.name} chat template changes or drops an assistant turn, so its tokens cannot be told apart. "
            "Fix: set data.chat_template to a built-in template, or train on rows with a single answer."
        )

    def _span_after_prompt(self, messages: Sequence[Message], text: str) -> Span | None:
        """A final answer that the template takes apart (reasoning sections): all that follows the generation prompt."""
        prompt = self.render(messages[:-1], add_generation_prompt=True) if len(messages) > 1 else ""
        if not prompt or not text.startswith(prompt) or messages[-1].role != "assistant":
            return None
        end = text.rfind(self.stop_token, len(prompt))
        return Span(len(prompt), end if end >= 0 else len(text.rstrip()))


def build_template(tokenizer: PreTrainedTokenizerBase, wanted: str | None = None) -> ChatTemplate:
    """The template to use: the one asked for, else the model's own, else the built-in `plain` one.

    Args:
        tokenizer: A fast tokenizer.
        wanted: Name of a built-in template, or None.

    Raises:
        ConfigError: `wanted` is unknown or does not fit the tokenizer.
        ModelError: The tokenizer has no stop token to teach.
    """
    own = tokenizer.chat_template
    if wanted is None and isinstance(own, str) and own:
        return _checked(ChatTemplate(tokenizer, "model", own))
    name = wanted or FALLBACK_TEMPLATE
    if name not in BUILTIN_TEMPLATES:
        raise ConfigError(
            Problem(
                "data.chat_template",
                f"{name!r} is not a built-in template; they are {', '.join(BUILTIN_TEMPLATES)}.",
                nearest(name, BUILTIN_TEMPLATES) or "leave it out to use the model's own template",
            )
        )
    if name == "chatml" and "<|im_end|>" not in tokenizer.get_vocab():
        raise ConfigError(
            Problem(
                "data.chat_template",
                "'chatml' needs the token <|im_end|>, which this model's tokenizer does not have",
                "use 'plain'",
            )
        )
    source = BUILTIN_TEMPLATES[name]
    if name == "plain" and _adds_bos(tokenizer):
        source = "{{ bos_token }}" + source
    return _checked(ChatTemplate(tokenizer, name, source))


def _checked(template: ChatTemplate) -> ChatTemplate:
    if not template.stop_token or template.stop_token == "None":
        raise ModelError(
            "the model's tokenizer has no EOS token and its chat template ends an answer with none, so the model could "
            "not learn to stop. Fix: give the tokenizer an eos_token."
        )
    return template


def _mark(message: Message, trim: bool) -> Message:
    content = message.content.strip() if trim else message.content
    return Message(message.role, f"{_OPEN}{content}{_CLOSE}")


def _spans_of_marks(marked: str, text: str) -> list[Span] | None:
    """The places of the marks in the text without them, or None if the marks changed the text."""
    spans: list[Span] = []
    plain_length, start = 0, None
    pieces = re.split(f"([{_OPEN}{_CLOSE}])", marked)
    for piece in pieces:
        if piece in (_OPEN, _CLOSE):
            if (piece == _OPEN) != (start is None):
                return None  # the template took the answer apart
            if start is not None:
                spans.append(Span(start, plain_length))
            start = plain_length if start is None else None
        else:
            plain_length += len(piece)
    unchanged = "".join(piece for piece in pieces if piece not in (_OPEN, _CLOSE)) == text
    return spans if unchanged and start is None else None


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids: list[int] = tokenizer("a").input_ids
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
