"""From an `Example` to an `EncodedExample`: render, tokenize once, and carry the answers' spans over to tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Generic, TypeVar

from lamina.data.example import EncodedExample, Example, Kind
from lamina.data.template import ChatTemplate, Rendered, Span
from lamina.data.tokens import TextTokenizer, supervised
from lamina.errors import DataError

T = TypeVar("T")

# Rows handed to the tokenizer at once, which runs them over its own threads, and how many such chunks may be with it.
TOKENIZE_ROWS = 1024
IN_FLIGHT = 2


def encode_examples(examples: Iterable[Example], template: ChatTemplate, train_on: str) -> Iterator[EncodedExample]:
    """Encodes examples in order.

    Args:
        examples: What to encode.
        template: The renderer, with its tokenizer.
        train_on: `assistant` (every answer), `completions` (the last answer), `marked` (what the data marks) or `all`.

    Raises:
        ModelError: The tokenizer is not a fast one, so it cannot tell where a token lies in the text.
        DataError: The template cannot render an example; the message begins with its row.
    """
    for _, encoded in encode_stream(examples, lambda example: example, template, train_on):
        if isinstance(encoded, DataError):
            raise encoded
        assert encoded is not None
        yield encoded


def encode_stream(
    items: Iterable[T], example_of: Callable[[T], Example | None], template: ChatTemplate, train_on: str
) -> Iterator[tuple[T, EncodedExample | DataError | None]]:
    """Gives each item with the encoding of its example, in order, a chunk of items at a time.

    While the tokenizer works on a chunk in its own threads, the ones before it are finished and the next one rendered.

    Args:
        items: Whatever holds examples.
        example_of: The example of an item; None where it has none to encode.
        template: The renderer, with its tokenizer.
        train_on: See `encode_examples`.

    Yields:
        The item, and its encoding; or why it has none (a template's refusal); or None where there was no example.

    Raises:
        ModelError: The tokenizer is not a fast one.
    """
    tokenizer = template.text_tokenizer
    tokenizer.reset()
    items = iter(items)
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[_Chunk[T]] = deque()
        while taken := list(islice(items, TOKENIZE_ROWS)):
            rendered = [_try_render(example_of(item), template) for item in taken]
            waiting.append(_Chunk(taken, rendered, pool, tokenizer))
            if len(waiting) > IN_FLIGHT:
                yield from waiting.popleft().finish(example_of, train_on)
        while waiting:
            yield from waiting.popleft().finish(example_of, train_on)


class _Chunk(Generic[T]):
    """Items whose texts are with the tokenizer."""

    def __init__(
        self,
        items: list[T],
        rendered: list[Rendered | DataError | None],
        pool: ThreadPoolExecutor,
        tokenizer: TextTokenizer,
    ) -> None:
        self.items = items
        self.rendered = rendered
        self.tokenizer = tokenizer
        texts = [entry.text for entry in rendered if isinstance(entry, Rendered)]
        self.encodings: Future[list[Any]] = pool.submit(tokenizer.encode, texts)

    def finish(
        self, example_of: Callable[[T], Example | None], train_on: str
    ) -> Iterator[tuple[T, EncodedExample | DataError | None]]:
        encodings = iter(self.encodings.result())
        for item, rendered in zip(self.items, self.rendered, strict=True):
            if not isinstance(rendered, Rendered):
                yield item, rendered
                continue
            example = example_of(item)
            assert example is not None
            tokens = self.tokenizer.read(next(encodings), rendered.text)
            learnt = supervised(tokens, rendered.text, supervised_spans(rendered, example, train_on))
            yield item, EncodedExample(tokens.ids, learnt, example.row)


def supervised_spans(rendered: Rendered, example: Example, train_on: str) -> list[Span]:
    """The characters of the rendering that are in the loss."""
    if example.kind is Kind.TEXT or train_on == "all":
        chosen = [Span(0, len(rendered.text))]
    elif train_on == "marked":
        chosen = [*rendered.marked]
        chosen += [span for span, asked in _answers(rendered, example) if asked]
    else:
        answers = _answers(rendered, example)
        chosen = [
            span for span, asked in (answers[-1:] if train_on == "completions" else answers) if asked is not False
        ]
    return _without(chosen, rendered.thinking)


def _try_render(example: Example | None, template: ChatTemplate) -> Rendered | DataError | None:
    if example is None:
        return None
    try:
        if example.kind is Kind.TEXT:
            rendered = _render_text(example.text, template)
        else:
            rendered = template.render_spans(example.messages, example.tools)
        if not rendered.text.isascii():
            _check_characters(rendered.text)
        return rendered
    except DataError as error:
        return DataError(f"row {example.row}: {error}")


def _check_characters(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"its text holds half of a surrogate pair (near {error.object[max(0, error.start - 20) : error.start]!r}), "
            "which is not text. Fix: correct the row."
        ) from None


def _render_text(text: str, template: ChatTemplate) -> Rendered:
    """A document between the tokens that begin and end one, where the tokenizer has them."""
    if found := template.control_tokens.first_in(text):
        raise DataError(
            f"the text holds {found!r}, a special token, so it would end there, or another begin. Fix: remove "
            "or rewrite it in the data; documents that it parts belong into rows of their own."
        )
    tokenizer = template.tokenizer
    begin = str(tokenizer.bos_token) if template.adds_bos else ""
    end = str(tokenizer.eos_token) if tokenizer.eos_token is not None else template.stop_token
    return Rendered(f"{begin}{text}{end}", ())


def _answers(rendered: Rendered, example: Example) -> list[tuple[Span, bool | None]]:
    """Each answer's span, with what the data says of learning it."""
    asked = [message.supervised for message in example.messages if message.role == "assistant"]
    return list(zip(rendered.answers, asked, strict=True))


def _without(spans: Sequence[Span], removed: Sequence[Span]) -> list[Span]:
    """The spans less what others cover; both in order."""
    left = list(spans)
    for hole in removed:
        parts = [
            (Span(span.start, min(span.end, hole.start)), Span(max(span.start, hole.end), span.end)) for span in left
        ]
        left = [part for pair in parts for part in dict.fromkeys(pair) if part.start < part.end]
    return left
