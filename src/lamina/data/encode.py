"""From an `Example` to an `EncodedExample`: render, tokenize once, and carry the answers' spans over to tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from lamina.data.example import EncodedExample, Example
from lamina.data.template import ChatTemplate, Rendered, Span
from lamina.errors import DataError, ModelError

# Rows handed to the tokenizer at once; it runs them over its own threads.
TOKENIZE_ROWS = 512


def encode_examples(examples: Sequence[Example], template: ChatTemplate, train_on: str) -> Iterable[EncodedExample]:
    """Encodes examples in order.

    Args:
        examples: What to encode; each ends in an assistant turn.
        template: The renderer, with its tokenizer.
        train_on: `assistant` (every answer), `completions` (the last answer) or `all`.

    Raises:
        ModelError: The tokenizer is not a fast one, so it cannot tell where a token lies in the text.
        DataError: The template cannot render an example; the message begins with its row.
    """
    tokenizer = template.tokenizer
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer {type(tokenizer).__name__} is a slow one and cannot tell where a token lies in the text. "
            "Fix: use a model with a tokenizer.json."
        )
    for first in range(0, len(examples), TOKENIZE_ROWS):
        chunk = examples[first : first + TOKENIZE_ROWS]
        rendered = [_render(example, template) for example in chunk]
        # The template already wrote every special token, BOS included.
        encoded = tokenizer(
            [item.text for item in rendered],
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        for example, item, ids, offsets in zip(
            chunk, rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            mask = supervised_mask(np.asarray(offsets, dtype=np.int64).reshape(-1, 2), _spans(item, train_on))
            yield EncodedExample(np.asarray(ids, dtype=np.int32), mask, example.row)


def supervised_mask(offsets: np.ndarray, spans: Iterable[Span]) -> np.ndarray:
    """Which tokens lie in a span.

    Args:
        offsets: int64, shape (tokens, 2): first and past-the-last character of each token.
        spans: Character ranges.

    Returns:
        bool, shape (tokens,). The first token is never supervised: nothing comes before it to predict it from.
    """
    starts, ends = offsets[:, 0], offsets[:, 1]
    # Byte-level tokenizers leave leading white space out of a token's offsets; it belongs to the token all the same.
    starts = np.minimum(starts, np.concatenate(([0], ends[:-1])))
    mask = np.zeros(len(offsets), dtype=bool)
    for span in spans:
        mask |= (starts < span.end) & (ends > span.start)
    mask[:1] = False
    return mask


def _render(example: Example, template: ChatTemplate) -> Rendered:
    for message in example.messages:
        try:
            message.content.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"row {example.row}: the {message.role} turn holds half of a surrogate pair (character {error.start}), "
                "which is not text. Fix: correct the row."
            ) from None
    try:
        return template.render_spans(example.messages)
    except DataError as error:
        raise DataError(f"row {example.row}: {error}") from None


def _spans(rendered: Rendered, train_on: str) -> Sequence[Span]:
    match train_on:
        case "all":
            return [Span(0, len(rendered.text))]
        case "completions":
            return rendered.answers[-1:]
        case _:
            return rendered.answers
