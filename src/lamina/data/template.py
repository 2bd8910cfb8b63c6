"""Renders a conversation to text and knows which characters the assistant wrote, whatever the template.

One renderer serves training, evaluation, chat and generation. What the template has no place for (tools, reasoning) is
found out by trial (`probe`) and written as text (`turns`); answers are found by marks (`answers`, `spans`). Rendering
runs in a sandbox with bounds (`jinja`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from lamina.config.places import is_template_file
from lamina.data.answers import AnswerFinder, Conversation, find_places
from lamina.data.bounds import TemplateFailure
from lamina.data.example import Message
from lamina.data.jinja import FIXED_DATE, compile_template, mentions_date, needs_date
from lamina.data.probe import ANSWER, ASK, Probe, probe_template
from lamina.data.spans import Rendered, Span
from lamina.data.special import TokenSearch, special_tokens
from lamina.data.tokenizer import adds_bos, fingerprint_tokenizer
from lamina.data.tokens import TextTokenizer
from lamina.data.turns import (
    as_tools,
    as_turn,
    thinking_apart,
    thinking_in_content,
    tools_in_content,
    with_short_ids,
    without_thinking,
)
from lamina.errors import ConfigError, DataError, ModelError, Problem, nearest

__all__ = ["BUILTIN_TEMPLATES", "ChatTemplate", "Rendered", "Span", "Thinking", "build_template"]

Thinking = Literal["keep", "strip", "unsupervised"]

BUILTIN_TEMPLATES = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted((Path(__file__).parent / "templates").glob("*.jinja"))
}
FALLBACK_TEMPLATE = "plain"

# The first line of a built-in template names the tokens that it cannot do without.
_NEEDS = re.compile(r"\{#- needs:(.*?)-#\}")


class ChatTemplate:
    """A chat template bound to a tokenizer.

    Attributes:
        tokenizer: Whose special tokens the template writes.
        name: `model` for the model's own template, else the name of a built-in one or the path of a file.
        source: The Jinja text.
        tool_source: The Jinja text for rows with tools, where the model has one of its own for them.
        thinking: What becomes of reasoning: `keep` (taught), `strip` (removed) or `unsupervised` (shown, not taught).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        source: str,
        tool_source: str = "",
        thinking: Thinking = "keep",
    ) -> None:
        self.tokenizer = tokenizer
        self.name = name
        self.source = source
        self.tool_source = tool_source
        self.thinking: Thinking = thinking
        self._for_tools = ChatTemplate(tokenizer, name, tool_source, "", thinking) if tool_source else None

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer begins every plain text with its BOS token."""
        return adds_bos(self.tokenizer)

    @cached_property
    def text_tokenizer(self) -> TextTokenizer:
        """The tokenizer, for rendered texts.

        Raises:
            ModelError: It is not a fast one.
        """
        return TextTokenizer(self.tokenizer)

    @cached_property
    def tokenizer_digest(self) -> str:
        """SHA-256 over what decides the tokenizer's ids; it takes a tenth of a second, so it is computed once."""
        return fingerprint_tokenizer(self.tokenizer)

    @property
    def is_file(self) -> bool:
        """Whether it was read from a file of the user's."""
        return self.name != "model" and self.name not in BUILTIN_TEMPLATES

    @property
    def digest(self) -> str:
        """SHA-256 of the Jinja text."""
        text = f"{self.source}\0{self.tool_source}" if self.tool_source else self.source
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def render(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), add_generation_prompt: bool = False
    ) -> str:
        """The conversation as text.

        Args:
            messages: The turns.
            tools: JSON schemas of functions that the assistant may call.
            add_generation_prompt: Whether the text goes on to where an answer begins.

        Raises:
            DataError: The template refuses the conversation (its own words are quoted), drops its system turn or
                repeats BOS; or a turn holds one of the template's special tokens.
        """
        if self._for_tools and tools:
            return self._for_tools.render(messages, tools, add_generation_prompt)
        return self._conversation(messages, tools, add_generation_prompt).text

    def render_spans(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> Rendered:
        """The conversation as text, with the span of each assistant turn.

        Raises:
            DataError: As `render`; or the template changes, drops or repeats an answer so that it cannot be found in
                the text, or leaves out its stop token.
        """
        if self._for_tools and tools:
            return self._for_tools.render_spans(messages, tools)
        conversation = self._conversation(messages, tools)
        text, last = conversation.text, conversation.messages[-1]
        found = self._finder.find(conversation)
        answers, parts = found.answers, found.parts
        if answers and last.role == "assistant":
            if self._appends_stop:
                end = answers[-1].end
                text = text[:end] + self.stop_token
                answers[-1] = Span(answers[-1].start, len(text))
                parts = [Span(part.start, len(text)) if part.end == end else part for part in parts]
            stop = self.probe.call_stop if last.tool_calls else self.stop_token
            if not text.endswith(stop, answers[-1].start, answers[-1].end):
                raise DataError(
                    f"the {self.name} chat template does not put the stop token {stop} after the last answer, so the "
                    "model would not learn to stop. Fix: set data.chat_template to a built-in template."
                )
        thinking = found.thinking if self.thinking == "unsupervised" else []
        return Rendered(text, tuple(answers), tuple(parts), tuple(thinking))

    @cached_property
    def stop_token(self) -> str:
        """The token that ends an answer: what the template puts after a final one, else the tokenizer's EOS."""
        return self._template_stop or str(self.tokenizer.eos_token)

    @property
    def stop_token_id(self) -> int:
        """Id of `stop_token`."""
        return int(self.tokenizer.convert_tokens_to_ids(self.stop_token))  # pyright: ignore[reportArgumentType]

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids of all that an assistant turn may end with: `stop_token`, and what ends one that calls tools."""
        call_stop = (self._for_tools or self).probe.call_stop
        stops = dict.fromkeys([self.stop_token, *filter(None, [call_stop])])
        return [int(self.tokenizer.convert_tokens_to_ids(token)) for token in stops]  # pyright: ignore[reportArgumentType]

    @property
    def notes(self) -> list[str]:
        """What a user should know about how this template is used."""
        notes = []
        if self.name in BUILTIN_TEMPLATES:
            notes.append(f"the built-in chat template '{self.name}' is used")
        elif self.is_file:
            notes.append(f"the chat template of the file {self.name} is used")
        if self._appends_stop:
            notes.append(f"the chat template ends an answer with no stop token, so {self.stop_token} is added")
        if mentions_date(self.source):
            given = (
                f"{FIXED_DATE:%Y-%m-%d}" if needs_date(self.source) else "none, and writes what it has for that case"
            )
            notes.append(f"the chat template asks for today's date and gets {given}: rows must be the same every day")
        return notes

    def notes_on(self, tools: bool, thinking: bool) -> list[str]:
        """What a user should know about data with tools, or with reasoning that stands apart from the answers."""
        notes = []
        if tools and not (self._for_tools or self).probe.tools:
            notes.append("the chat template has no place for tools: they are written as text, in the Hermes shape")
        if thinking and self.thinking != "strip" and not self.probe.thinking:
            notes.append("the chat template has no place for reasoning: it is written between <think> and </think>")
        return notes

    @cached_property
    def probe(self) -> Probe:
        """What the template has a place for."""
        return probe_template(self._render_turns, special_tokens(self.tokenizer))

    @property
    def _appends_stop(self) -> bool:
        return not self._template_stop

    @cached_property
    def _template_stop(self) -> str:
        messages = [Message("user", "ping"), Message("assistant", "pong")]
        turns = [as_turn(message) for message in messages]
        conversation = Conversation(messages, turns, None, self._text(turns, None))
        places = find_places(self._render_turns, conversation)
        special = sorted(special_tokens(self.tokenizer), key=len, reverse=True)
        if not (places and special):
            return ""
        pattern = re.compile(r"\s*(" + "|".join(map(re.escape, special)) + ")")
        match = pattern.match(conversation.text, places.answers[0].end)
        return match.group(1) if match else ""

    @cached_property
    def _finder(self) -> AnswerFinder:
        return AnswerFinder(self.name, self._render_turns, self.stop_token, self.probe.call_stop)

    @cached_property
    def _variables(self) -> dict[str, Any]:
        """What every rendering sees; special tokens under transformers' names, such as `bos_token`."""
        return {"documents": None, **self.tokenizer.special_tokens_map}

    def _render_turns(
        self, turns: list[dict[str, Any]], schemas: list[dict[str, Any]] | None, add_generation_prompt: bool = False
    ) -> str:
        characters = 0
        for turn in turns:
            characters += len(turn["content"]) if len(turn) == 2 else len(json.dumps(turn, ensure_ascii=False))
        if schemas:
            characters += len(json.dumps(schemas, ensure_ascii=False))
        variables = {
            **self._variables,
            "messages": turns,
            "tools": schemas,
            "add_generation_prompt": add_generation_prompt,
        }
        return compile_template(self.source).render(variables, characters)

    def _text(
        self, turns: list[dict[str, Any]], schemas: list[dict[str, Any]] | None, add_generation_prompt: bool = False
    ) -> str:
        try:
            return self._render_turns(turns, schemas, add_generation_prompt)
        except TemplateFailure as error:
            raise DataError(
                f"the {self.name} chat template refuses the conversation: {error}. Fix: correct the row, or set "
                "data.chat_template to a built-in template."
            ) from None

    def _conversation(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], add_generation_prompt: bool = False
    ) -> Conversation:
        schemas = as_tools(tools) if tools else None
        self._refuse_special_tokens(messages, schemas)
        if schemas or any(_is_more_than_text(message) for message in messages):
            messages, schemas = self._fitted(messages, schemas)
        turns = [as_turn(message) for message in messages]
        text = self._text(turns, schemas, add_generation_prompt)
        self._check_system_and_bos(messages, text)
        return Conversation(messages, turns, schemas, text)

    def _fitted(
        self, messages: Sequence[Message], schemas: list[dict[str, Any]] | None
    ) -> tuple[Sequence[Message], list[dict[str, Any]] | None]:
        """The conversation with reasoning and tools where the template has a place for them, else in the text."""
        if self.thinking == "strip":
            messages = [without_thinking(m) if m.role == "assistant" else m for m in messages]
        elif self.probe.thinking:
            messages = [thinking_apart(m) if m.role == "assistant" else m for m in messages]
        elif any(message.thinking for message in messages):
            messages = [thinking_in_content(message) for message in messages]
        if schemas or any(message.tool_calls or message.role == "tool" for message in messages):
            if not self.probe.tools:
                messages = tools_in_content(messages, schemas or (), self.probe.system)
                schemas = None
            elif not self.probe.text_beside_calls and any(m.tool_calls and m.content.strip() for m in messages):
                raise DataError(
                    f"the {self.name} chat template leaves out what an assistant turn says beside its tool calls. Fix: "
                    "remove the words (data.thinking: strip, if they are reasoning), or set data.chat_template to a "
                    "built-in template, which keeps both."
                )
            elif self.probe.short_ids:
                messages = with_short_ids(messages)
        return messages, schemas

    @cached_property
    def control_tokens(self) -> TokenSearch:
        """Special tokens that mean something in this template.

        The unknown token and those that the template never writes are words like others: they cannot forge a turn.
        """
        tokenizer = self.tokenizer
        seen = f"{self.source}\0{self.probe.text}"
        named = {str(token) for token in (tokenizer.bos_token, tokenizer.eos_token, self.stop_token) if token}
        unknown = getattr(tokenizer, "unk_token", None)
        return TokenSearch({t for t in special_tokens(tokenizer) if t != unknown and t.strip() and t in seen} | named)

    def _refuse_special_tokens(self, messages: Sequence[Message], schemas: list[dict[str, Any]] | None) -> None:
        for number, message in enumerate(messages, start=1):
            words = message.words() if message.tool_calls or message.thinking else message.content
            if found := self.control_tokens.first_in(words):
                raise DataError(
                    f"the {message.role} turn (turn {number}) holds {found!r}, a special token of the chat "
                    "template, so it could pass for the end of a turn or the start of another. Fix: remove or rewrite "
                    "it."
                )
        if schemas and (found := self.control_tokens.first_in(json.dumps(schemas, ensure_ascii=False))):
            raise DataError(f"the tools hold {found!r}, a special token. Fix: remove it from the schemas.")

    def _check_system_and_bos(self, messages: Sequence[Message], text: str) -> None:
        for message in messages:
            if message.role == "system" and (self.probe.drops_system or message.content.strip() not in text):
                raise DataError(
                    f"the {self.name} chat template drops the system turn. Fix: move its words into the first user "
                    "turn, or set data.chat_template to a built-in template."
                )
        bos = self.tokenizer.bos_token
        if bos and text.startswith(2 * str(bos)):
            raise DataError(
                f"the {self.name} chat template writes {bos} twice at the start. Fix: correct the template."
            )


def build_template(
    tokenizer: PreTrainedTokenizerBase, wanted: str | None = None, thinking: Thinking = "keep", text: str = ""
) -> ChatTemplate:
    """The template to use: the one asked for, else the model's own, else the built-in `plain` one.

    Args:
        tokenizer: A fast tokenizer.
        wanted: Name of a built-in template, or the path of a Jinja file (it ends in .jinja or .j2, or has a slash).
        thinking: What becomes of reasoning: `keep` (taught), `strip` (removed) or `unsupervised` (shown, not taught).
        text: The Jinja text of the file that `wanted` names, where it is known already.

    Raises:
        ConfigError: `wanted` is unknown, cannot be read, is no valid template, or does not fit the tokenizer.
        ModelError: The tokenizer has no stop token to teach.
    """
    own = tokenizer.chat_template
    if wanted is None and own:
        named = own if isinstance(own, dict) else {"default": own}
        default = named.get("default") or next(iter(named.values()))
        return _checked(ChatTemplate(tokenizer, "model", default, named.get("tool_use", ""), thinking))
    name = wanted or FALLBACK_TEMPLATE
    if is_template_file(name):
        return _checked(ChatTemplate(tokenizer, name, text or _read(Path(name)), thinking=thinking))
    if name not in BUILTIN_TEMPLATES:
        raise _config_error(
            f"{name!r} is not a built-in template; they are {', '.join(BUILTIN_TEMPLATES)}.",
            nearest(name, BUILTIN_TEMPLATES) or "leave it out to use the model's own template, or give a .jinja file",
        )
    source = BUILTIN_TEMPLATES[name]
    needed = match.group(1).split() if (match := _NEEDS.match(source)) else []
    vocabulary = tokenizer.get_vocab() if needed else {}
    if missing := [token for token in needed if token not in vocabulary]:
        raise _config_error(
            f"{name!r} needs {' '.join(missing)}, which this model's tokenizer does not have", "use 'plain'"
        )
    if "bos_token" not in source and adds_bos(tokenizer):
        source = "{{ bos_token }}" + source
    return _checked(ChatTemplate(tokenizer, name, source, thinking=thinking))


def _checked(template: ChatTemplate) -> ChatTemplate:
    for source in filter(None, (template.source, template.tool_source)):
        try:
            compile_template(source)
        except TemplateFailure as error:
            raise _config_error(
                f"the {template.name} chat template is not valid Jinja: {error}", "correct it, or use a built-in one"
            ) from None
    if not template.stop_token or template.stop_token == "None":
        raise ModelError(
            "the model's tokenizer has no EOS token and its chat template ends an answer with none, so the model could "
            "not learn to stop. Fix: give the tokenizer an eos_token."
        )
    bos = template.tokenizer.bos_token
    text = template.probe.text
    if bos and any(f"{bos}{bos}" in part or _repeats_bos(part, str(bos)) for part in text.split("\0")):
        raise _config_error(
            f"the {template.name} chat template writes {bos} more than once before the first turn", "correct it"
        )
    return template


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else (error.strerror or str(error))
        raise _config_error(f"{str(path)!r} cannot be read: {reason}", "give the path of a Jinja file") from None


def _config_error(message: str, fix: str) -> ConfigError:
    return ConfigError(Problem("data.chat_template", message, fix))


def _is_more_than_text(message: Message) -> bool:
    return bool(
        message.tool_calls
        or message.thinking
        or message.role == "tool"
        or (message.role == "assistant" and "<think>" in message.content)
    )


def _repeats_bos(text: str, bos: str) -> bool:
    """Whether BOS stands twice before the first words; a token that opens every turn may."""
    before, asked, after = text.partition(ASK)
    return bool(asked) and before.count(bos) > 1 and bos not in after.partition(ANSWER)[0]
