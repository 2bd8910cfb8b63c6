"""The bodies of `/v1/completions` and `/tokenize`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lamina.server.schemas.base import Items, WholeBody
from lamina.server.schemas.chat import ChatMessage, ChatTemplateKwargs, Tool
from lamina.server.schemas.sampling import LARGEST_COUNT, SamplingBody, TokenId

Ids = Annotated[Items[TokenId], Field(min_length=1)]


class CompletionBody(SamplingBody):
    """A request for what follows a text."""

    prompt: str | Ids | Annotated[Items[str], Field(min_length=1)] | Annotated[Items[Ids], Field(min_length=1)]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1, le=LARGEST_COUNT)] | None = None
    suffix: None = None
    add_special_tokens: bool | None = None


class TokenizeBody(WholeBody):
    """A request for the tokens of a text, or of a conversation's prompt."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    prompt: str | None = None
    messages: Annotated[Items[ChatMessage], Field(min_length=1, max_length=4096)] | None = None
    tools: Annotated[Items[Tool], Field(max_length=128)] | None = None
    chat_template_kwargs: ChatTemplateKwargs | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
