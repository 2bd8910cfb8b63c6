"""Renders a conversation to text and finds the characters that the assistant wrote, with any chat template.

Training, evaluation, chat and generation share this renderer. What the template does not support (tools, reasoning) is
determined with sample conversations (`support`) and written as text (`turns`). Answers are found with marks (`answers`,
`spans`). Rendering runs in a sandbox with resource limits (`jinja`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from lamina.chat.answers import AnswerFinder, Conversation, find_stop
from lamina.chat.bare import BARE, CHAT, bare_turns, is_bare_source, render_bare
from lamina.chat.bounds import TemplateFailure
from lamina.chat.jinja import compile_template, variables_of
from lamina.chat.message import Message
from lamina.chat.prompts import Prompts, without_reasoning
from lamina.chat.rendered import AnswerMarks, find_marks
from lamina.chat.shape import Thinking, check_text, shape_turns
from lamina.chat.spans import Rendered, Span
from lamina.chat.special import TokenSearch, control_tokens, refuse_special_tokens, special_tokens
from lamina.chat.support import TemplateSupport, find_support
from lamina.chat.template_source import BUILTIN_TEMPLATES, check_usable, find_source
from lamina.chat.tokenizer import adds_bos, fingerprint_tokenizer
from lamina.chat.tokens import TextTokenizer
from lamina.chat.turns import as_tools, as_turn
from lamina.chat.voice import Question, Voice, find_voice
from lamina.config import DataConfig
from lamina.errors import ConfigError, DataError, Problem

__all__ = ["BUILTIN_TEMPLATES", "ChatTemplate", "Rendered", "Span", "Thinking", "build_template", "template_of"]

# The template variables that switch reasoning on and off.
_SWITCHES = ("enable_thinking", "thinking")

# Variables that lamina sets from the conversation and the tokenizer.
_NOT_TO_SET = frozenset(["messages", "tools", "add_generation_prompt", "documents", "bos_token", "eos_token"])

# Maximum number of cached templates with different `chat_template_kwargs`.
_MOST_KWARGS = 64


class ChatTemplate:
    """A chat template bound to a tokenizer.

    Attributes:
        tokenizer: The tokenizer whose special tokens the template writes.
        name: `model` for the model's own template, the name of a built-in template, the path of a file, `bare` for text
            without a template, or `chat` for the model's own next to that.
        source: The Jinja text.
        tool_source: The Jinja text for rows with tools, if the model has a separate one.
        thinking: What to do with reasoning: `keep` (in the loss), `strip`, or `unsupervised` (not in the loss).
        enable_thinking: Value of `enable_thinking` for the template; None leaves the default to the template.
        kwargs: Other template variables, in addition to the conversation.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        source: str,
        tool_source: str = "",
        thinking: Thinking = "keep",
        enable_thinking: bool | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.name = name
        self.source = source
        self.tool_source = tool_source
        self.thinking: Thinking = thinking
        self.enable_thinking = enable_thinking
        self.kwargs = dict(kwargs or {})
        self._for_tools = self._like(source=tool_source) if tool_source else None
        self._given: dict[str, ChatTemplate] = {}

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer adds its BOS token at the start of plain text."""
        return adds_bos(self.tokenizer)

    @cached_property
    def text_tokenizer(self) -> TextTokenizer:
        """The tokenizer for rendered texts.

        Raises:
            ModelError: The tokenizer is not a fast one.
        """
        return TextTokenizer(self.tokenizer)

    @cached_property
    def tokenizer_digest(self) -> str:
        """SHA-256 of everything that determines the tokenizer's ids (cached, since it takes a tenth of a second)."""
        return fingerprint_tokenizer(self.tokenizer)

    @property
    def is_file(self) -> bool:
        """Whether the template was read from a user's file."""
        return self.name not in ("model", BARE, CHAT, *BUILTIN_TEMPLATES)

    @property
    def is_bare(self) -> bool:
        """Whether prompts and completions are bare text, without a chat template (`lamina/chat/bare.py`)."""
        return is_bare_source(self.source)

    @property
    def digest(self) -> str:
        """SHA-256 of the Jinja text."""
        text = f"{self.source}\0{self.tool_source}" if self.tool_source else self.source
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        add_generation_prompt: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Renders the conversation to text.

        Args:
            messages: The turns.
            tools: JSON schemas of functions that the assistant may call.
            add_generation_prompt: Whether to end with the start of an answer (the generation prompt).
            kwargs: Template variables for this conversation; they override the template's own.

        Raises:
            DataError: The template refuses the conversation (the error quotes its message), drops the system turn or
                repeats BOS; or a turn contains one of the template's special tokens.
        """
        template = self._for(tools, kwargs)
        return template._conversation(messages, tools, add_generation_prompt).text

    def render_spans(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Rendered:
        """Renders the conversation to text, and finds the span of each assistant turn.

        The last answer follows its generation prompt exactly as `render` returns it with `add_generation_prompt`.

        Raises:
            DataError: As for `render`; or the template changes, drops or repeats an answer, so that it cannot be found;
                or it omits the stop token; or its generation prompt leaves no place for the reasoning.
        """
        template = self._for(tools, kwargs)
        return template._spans(messages, template._conversation(messages, tools))

    def question(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Question:
        """Returns the prompt for a conversation's last answer, and the text that the model learns to write.

        Raises:
            DataError: As for `render_spans`.
        """
        rendered = self.render_spans(messages, tools, kwargs)
        answer, voice = rendered.answers[-1], self._for(tools, kwargs).voice
        given = max((hole.end for hole in rendered.thinking if hole.start >= answer.start), default=None)
        start = answer.start if given is None else given
        written = rendered.text[start : answer.end]
        return Question(rendered.text[:start], written, voice if given is None else voice.after_reasoning(written))

    @property
    def for_tools(self) -> ChatTemplate:
        """The template for rows with tools; itself unless the model has a separate one."""
        return self._for_tools or self

    @cached_property
    def voice(self) -> Voice:
        """How the template writes answers, for parsing a model's output."""
        return find_voice(self.render_spans, self._like(thinking="keep").render_spans, special_tokens(self.tokenizer))

    @cached_property
    def answer_marks(self) -> AnswerMarks | None:
        """The markers of answers in text that was rendered before; None if there are none to find it by."""
        stops, bos = (self.stop_token, self.for_tools.support.call_stop), str(self.tokenizer.bos_token or "")
        return None if self.is_bare else find_marks(self._render_turns, stops, bos)

    @cached_property
    def switch(self) -> str:
        """The variable that switches the template's reasoning on and off; empty if it reads none."""
        read = self.variables
        return next((name for name in _SWITCHES if name in read), "")

    @cached_property
    def variables(self) -> frozenset[str]:
        """The variables that the template reads and does not set itself."""
        return frozenset().union(*map(variables_of, filter(None, (self.source, self.tool_source))))

    def unread(self, kwargs: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns which of a row's kwargs the template does not read."""
        return tuple(name for name in kwargs if name not in self.variables)

    def _for(self, tools: Sequence[dict[str, Any]], kwargs: Mapping[str, Any] | None) -> ChatTemplate:
        """Returns the template for rows with these tools and kwargs."""
        template = self._for_tools if tools and self._for_tools else self
        if not kwargs:
            return template
        key = json.dumps(kwargs, sort_keys=True, ensure_ascii=False)
        if key not in template._given:
            if found := template.control_tokens.first_in(key):
                raise DataError(
                    f"chat_template_kwargs contain {found!r}, a special token. Fix: remove it from the row."
                )
            if len(template._given) == _MOST_KWARGS:
                template._given.clear()
            template._given[key] = template._like(kwargs={**template.kwargs, **kwargs})
        return template._given[key]

    def with_enable_thinking(self, enable_thinking: bool | None) -> ChatTemplate:
        """Returns the same template with another value of `enable_thinking`."""
        return self._like(tool_source=self.tool_source, enable_thinking=enable_thinking)

    def _like(self, **changes: Any) -> ChatTemplate:
        names = ("tokenizer", "name", "source", "thinking", "enable_thinking", "kwargs")
        return ChatTemplate(**{name: getattr(self, name) for name in names} | changes)

    def _spans(self, messages: Sequence[Message], conversation: Conversation) -> Rendered:
        if self.is_bare:
            return render_bare(conversation.messages, conversation.text, self.stop_token)
        asked, last = self._prompts.ask(conversation), conversation.messages[-1]
        answers = asked.found.answers
        if last.role == "assistant":
            stop = self.support.call_stop if last.tool_calls else self.stop_token
            if not asked.text.endswith(stop, answers[-1].start, answers[-1].end):
                raise DataError(
                    f"the {self.name} chat template does not write the stop token {stop} after the last answer, so "
                    "the model would not learn to stop. Fix: set data.chat_template to a built-in template."
                )
        bare = set() if self.thinking == "strip" else without_reasoning(messages, asked)
        return Rendered(
            asked.text,
            tuple(answers),
            tuple(asked.found.parts),
            tuple(asked.found.thinking) if self.thinking == "unsupervised" else (),
            tuple(sorted(asked.not_asked | bare)),
            asked.opening,
        )

    @cached_property
    def stop_token(self) -> str:
        """The token that ends an answer: what the template writes after the last one, or the tokenizer's EOS."""
        return (not self.is_bare and self._template_stop) or str(self.tokenizer.eos_token)

    @property
    def stop_token_id(self) -> int:
        """Id of `stop_token`."""
        return int(self.tokenizer.convert_tokens_to_ids(self.stop_token))  # pyright: ignore[reportArgumentType]

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids of the tokens that may end an assistant turn: `stop_token`, and the token after tool calls."""
        call_stop = self.for_tools.support.call_stop
        stops = dict.fromkeys([self.stop_token, *filter(None, [call_stop])])
        return [int(self.tokenizer.convert_tokens_to_ids(token)) for token in stops]  # pyright: ignore[reportArgumentType]

    @cached_property
    def support(self) -> TemplateSupport:
        """What the template supports."""
        return find_support(self._render_turns, special_tokens(self.tokenizer))

    @property
    def appends_stop(self) -> bool:
        """Whether the template writes no stop token after an answer, so that `stop_token` is added."""
        return not self._template_stop

    @cached_property
    def _template_stop(self) -> str:
        return find_stop(self._text, self._render_turns, special_tokens(self.tokenizer))

    @cached_property
    def _finder(self) -> AnswerFinder:
        return AnswerFinder(self.name, self._render_turns, self.stop_token, self.support.call_stop)

    @cached_property
    def _prompts(self) -> Prompts:
        added = self.stop_token if self.appends_stop else ""
        told = self._variables.get(self.switch)
        fix = "set data.thinking: strip"
        if self.switch and told is not True:
            of_row = f"the row's chat_template_kwargs: {self.switch}"
            where = of_row if self.switch in self.kwargs else "data.enable_thinking"
            fix += f", or {where}: true"
        return Prompts(self.name, self._text, self._render_turns, self._finder, self.support, added, fix)

    @cached_property
    def _variables(self) -> dict[str, Any]:
        """The variables of every rendering; special tokens have transformers' names, such as `bos_token`."""
        told = {self.switch: self.enable_thinking} if self.enable_thinking is not None and self.switch else {}
        return {"documents": None, **self.tokenizer.special_tokens_map, **told, **self.kwargs}

    def _render_turns(
        self, turns: list[dict[str, Any]], schemas: list[dict[str, Any]] | None, add_generation_prompt: bool = False
    ) -> str:
        characters = 0
        for turn in turns:
            characters += len(turn["content"]) if len(turn) == 2 else len(json.dumps(turn, ensure_ascii=False))
        if schemas or self.kwargs:
            characters += len(json.dumps([schemas, self.kwargs], ensure_ascii=False))
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
        if self.is_bare:
            bos = str(self.tokenizer.bos_token) if self.adds_bos else ""
            messages = bare_turns(messages, bool(tools), bos, self.stop_token)
            turns = [as_turn(message) for message in messages]
            return Conversation(messages, turns, None, self._text(turns, None))
        schemas = as_tools(tools) if tools else None
        refuse_special_tokens(messages, schemas, self.control_tokens)
        messages, schemas = shape_turns(messages, schemas, self.support, self.thinking, self.name)
        turns = [as_turn(message) for message in messages]
        text = self._text(turns, schemas, add_generation_prompt)
        check_text(messages, text, self.support, self.name, str(self.tokenizer.bos_token or ""))
        return Conversation(messages, turns, schemas, text)

    @cached_property
    def control_tokens(self) -> TokenSearch:
        """The special tokens that have a meaning in this template.

        The unknown token, and tokens that the template never writes, are treated as ordinary text: they cannot forge a
        turn.
        """
        tokenizer, stop = self.tokenizer, self.stop_token
        return TokenSearch(control_tokens(tokenizer, f"{self.source}\0{self.support.text}", stop))


def build_template(
    tokenizer: PreTrainedTokenizerBase,
    wanted: str | None = None,
    thinking: Thinking = "keep",
    text: str = "",
    enable_thinking: bool | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> ChatTemplate:
    """Returns the template to use: the requested one, or otherwise the model's own, or otherwise the built-in `plain`.

    Args:
        tokenizer: A fast tokenizer.
        wanted: Name of a built-in template, or the path of a Jinja file (it ends in .jinja or .j2, or has a slash), or
            `bare` for text without a template, or `chat` for the model's own, but never the one for bare text.
        thinking: What to do with reasoning: `keep` (in the loss), `strip`, or `unsupervised` (not in the loss).
        text: The Jinja text of the file that `wanted` names, if it is already known.
        enable_thinking: Value of `enable_thinking` for the template; None leaves the default to the template.
        kwargs: Other template variables, in addition to the conversation.

    Raises:
        ConfigError: `wanted` is unknown, cannot be read, is not a valid template, or does not fit the tokenizer.
        ModelError: The tokenizer has no stop token that the model could learn.
    """
    found = find_source(tokenizer, wanted, text)
    template = ChatTemplate(tokenizer, found.name, found.text, found.tool_text, thinking, enable_thinking, kwargs)
    check_usable(template.name, template.stop_token, str(tokenizer.bos_token or ""), template.support)
    return template


def template_of(tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> ChatTemplate:
    """Returns the template that a `data:` section specifies.

    Raises:
        ConfigError: As for `build_template`; or `enable_thinking` or a name in `chat_template_kwargs` is set, but the
            template does not read it.
        ModelError: The tokenizer has no stop token that the model could learn.
    """
    if data.chat is False:
        return build_template(tokenizer, BARE)
    kwargs = data.chat_template_kwargs or {}
    template = build_template(tokenizer, data.chat_template or CHAT, data.thinking, "", data.enable_thinking, kwargs)
    if data.enable_thinking is not None and not template.switch:
        message = (
            f"the {template.name} chat template reads neither {' nor '.join(_SWITCHES)}, so it would have no effect"
        )
        raise ConfigError(Problem("data.enable_thinking", message, "remove it"))
    if unread := template.unread(kwargs):
        message = f"the {template.name} chat template does not read {unread[0]!r}, so it would have no effect"
        known = ", ".join(sorted(template.variables - _NOT_TO_SET))
        raise ConfigError(
            Problem(
                "data.chat_template_kwargs", message, f"remove it; the template reads {known}" if known else "remove it"
            )
        )
    if found := template.control_tokens.first_in(json.dumps(kwargs, ensure_ascii=False)):
        raise ConfigError(Problem("data.chat_template_kwargs", f"contain {found!r}, a special token", "remove it"))
    return template
