"""How an answer is drawn: the fields that both kinds of requests share, by OpenAI's names and by vLLM's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from lamina.engine.guides import MOST_CHARACTERS
from lamina.engine.sampling import LARGEST_SEED
from lamina.server.schemas.base import Body, Items, WholeBody

Penalty = Annotated[float, Field(ge=-2, le=2)]
# No integer is larger than what every engine's counters hold; a server's own limits are below it.
LARGEST_COUNT = 2**31 - 1
TokenId = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
StopText = Annotated[str, Field(min_length=1, max_length=1024)]
Json = dict[str, Any]


class StreamOptions(Body):
    """What a stream has beside its text."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class JsonSchema(Body):
    """A named schema."""

    name: Annotated[str, Field(max_length=64)]
    description: str | None = None
    schema_: Annotated[Json | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Body):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Body):
    """What the answer must be, as vLLM has it; one of these."""

    json_: Annotated[Json | str | None, Field(alias="json")] = None
    regex: Annotated[str, Field(max_length=MOST_CHARACTERS)] | None = None
    choice: Annotated[Items[str], Field(min_length=1, max_length=1024)] | None = None
    grammar: Annotated[str, Field(max_length=MOST_CHARACTERS)] | None = None
    json_object: Literal[True] | None = None


class SamplingBody(WholeBody):
    """The fields of both."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    max_tokens: Annotated[int, Field(ge=0, le=LARGEST_COUNT)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=LARGEST_COUNT)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=LARGEST_SEED)] | None = None
    stop: StopText | Items[StopText] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    response_format: ResponseFormat | None = None
    # As vLLM names them.
    top_k: Annotated[int, Field(ge=-1, le=LARGEST_COUNT)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=LARGEST_COUNT)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Items[TokenId] | None = None
    structured_outputs: StructuredOutputs | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    skip_special_tokens: Literal[True] | None = None
    include_stop_str_in_output: Literal[False] | None = None
