"""From a request to the token ids that its answer follows, with what keeps a prompt from being asked."""

from __future__ import annotations

from transformers import PreTrainedModel

from lamina.chat.message import Message
from lamina.chat.template import ChatTemplate
from lamina.engine.generator import Generator, Request
from lamina.errors import ConfigError, DataError, Problem
from lamina.models.vocabulary import check_prompt


def prompt_ids(request: Request, template: ChatTemplate, model: PreTrainedModel, room: int | None) -> list[int]:
    """The tokens that a request's answer follows.

    Args:
        request: What is asked.
        template: Renders conversations.
        model: Whose embedding the tokens need rows of.
        room: Positions that there are for prompt and answer; None where they do not end.

    Raises:
        DataError: The template refuses it, it is no text, or the model has no row for one of its tokens or positions.
    """
    if request.token_ids is not None:
        ids = list(request.token_ids)
    else:
        text = request.prompt
        if text is None:
            text = template.render(
                request.messages or [], request.tools, add_generation_prompt=True, kwargs=request.template_kwargs
            )
        ids = _text_ids(text, template)
    if not ids:
        raise DataError("the prompt has no tokens, so there is nothing to answer. Fix: write something.")
    check_prompt(ids, model, template)
    if room is not None and len(ids) >= room:
        raise DataError(
            f"the prompt has {len(ids)} tokens, and the base has positions for {room}, the answer's included. Fix: "
            "shorten it."
        )
    return ids


def check_system(generator: Generator, system: str) -> None:
    """Finds out whether a conversation may begin with a system turn.

    Raises:
        ConfigError: It may not, with the template's reason.
    """
    try:
        generator.check(Request(messages=[Message("system", system), Message("user", "a")]))
    except DataError as error:
        reason = str(error).partition(" Fix: ")[0]
        raise ConfigError(
            Problem("--system", f"cannot be used with this adapter: {reason}", "put its words into the first prompt")
        ) from None


def _text_ids(text: str, template: ChatTemplate) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the prompt holds {error.object[error.start]!r}, which is no character: its bytes are no UTF-8. Fix: send "
            "UTF-8 text."
        ) from None
    return template.tokenizer(text, add_special_tokens=False).input_ids
