"""From an `Example` to an `EncodedExample`: renders it, tokenizes it once, and maps the answers' spans to tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np

from lamina.chat.bare import without_end
from lamina.chat.template import BUILTIN_TEMPLATES, ChatTemplate, Rendered, Span
from lamina.chat.tokens import Tokens, supervised
from lamina.data.example import EncodedExample, Example, Kind, Remarks
from lamina.errors import DataError

T = TypeVar("T")

# Rows per call of the tokenizer, which uses its own threads; and the maximum number of such chunks in progress.
TOKENIZE_ROWS = 1024
IN_FLIGHT = 2

# A prompt's last tokens depend on at most this many characters before its end.
_NEAR = 128


def encode_examples(examples: Iterable[Example], template: ChatTemplate, train_on: str) -> Iterator[EncodedExample]:
    """Encodes examples in order.

    Args:
        examples: What to encode.
        template: The chat template, with its tokenizer.
        train_on: `assistant` (every answer), `completions` (the last answer), `marked` (what the data marks) or `all`.

    Raises:
        ModelError: The tokenizer is not a fast one, so it does not report offsets.
        DataError: The template cannot render an example; the message starts with its row.
    """
    for _, encoded in encode_stream(examples, lambda example: (example,), template, train_on):
        if isinstance(encoded, DataError):
            raise encoded
        assert encoded is not None
        yield encoded


def encode_stream(
    items: Iterable[T], sequences_of: Callable[[T], Sequence[Example]], template: ChatTemplate, train_on: str
) -> Iterator[tuple[T, EncodedExample | DataError | None]]:
    """Yields each item with the encoding of its sequences, in order, one chunk of items at a time.

    While the tokenizer works on a chunk in its own threads, earlier chunks are finished and the next one is rendered.

    Args:
        items: Objects that contain examples.
        sequences_of: Returns the sequences of an item; empty if there is nothing to encode.
        template: The chat template, with its tokenizer.
        train_on: See `encode_examples`.

    Yields:
        The item, and its encoding; or a `DataError` if the template refused it; or None if it has no sequences.

    Raises:
        ModelError: The tokenizer is not a fast one.
    """
    template.text_tokenizer.reset()
    items = iter(items)
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[_Chunk[T]] = deque()
        while taken := list(islice(items, TOKENIZE_ROWS)):
            waiting.append(_Chunk(taken, [tuple(sequences_of(item)) for item in taken], pool, template))
            if len(waiting) > IN_FLIGHT:
                yield from waiting.popleft().finish(train_on)
        while waiting:
            yield from waiting.popleft().finish(train_on)


class _Chunk(Generic[T]):
    """Items whose texts are being tokenized."""

    def __init__(
        self, items: list[T], sequences: list[tuple[Example, ...]], pool: ThreadPoolExecutor, template: ChatTemplate
    ) -> None:
        tokenizer = template.text_tokenizer
        self.items = items
        self.sequences = sequences
        self.template = template
        self.rendered = [_try_render(examples, template) for examples in sequences]
        self.tokenizer = tokenizer
        texts = [entry.text for entries in self.rendered if not isinstance(entries, DataError) for entry in entries]
        self.encodings: Future[list[Any]] = pool.submit(tokenizer.encode, texts)

    def finish(self, train_on: str) -> Iterator[tuple[T, EncodedExample | DataError | None]]:
        encodings = iter(self.encodings.result())
        for item, examples, rendered in zip(self.items, self.sequences, self.rendered, strict=True):
            if isinstance(rendered, DataError):
                yield item, rendered
                continue
            encoded = [
                self._encoded(example, one, next(encodings), train_on)
                for example, one in zip(examples, rendered, strict=True)
            ]
            yield item, _end_to_end(encoded) if len(encoded) > 1 else encoded[0] if encoded else None

    def _encoded(self, example: Example, rendered: Rendered, encoding: Any, train_on: str) -> EncodedExample:
        if example.tokens is not None:
            in_loss = np.array(example.tokens.in_loss, dtype=bool)
            in_loss[:1] = False  # no token before it predicts it
            return EncodedExample(np.array(example.tokens.ids, dtype=np.int32), in_loss, example.row)
        text, chosen = rendered.text, choose_spans(rendered, example, train_on)
        tokens = self.tokenizer.read(encoding, text)
        # In generation, the prompt is tokenized on its own: no token extends into the answer or depends on it.
        unlike = [place for place in sorted(chosen.prompts) if not self._ends_equal(tokens, text, place)]
        separate = self.tokenizer.read_split(tokens, text, unlike) if unlike else tokens
        remarks = Remarks(
            chosen.opening if chosen.opening.strip() else "",
            chosen.reasoning_given,
            chosen.not_asked,
            bool(unlike) and separate is tokens,
            self.template.unread(example.template_kwargs),
        )
        return EncodedExample(separate.ids, supervised(separate, text, chosen.spans), example.row, remarks=remarks)

    def _ends_equal(self, tokens: Tokens, text: str, place: int) -> bool:
        begin = max(0, place - _NEAR)
        begin += self.template.control_tokens.last_in(text[begin:place])
        return self.tokenizer.ends_equal(tokens, text, begin, place)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The parts of a rendering that are in the loss.

    Attributes:
        spans: Character spans in the loss, in order.
        prompts: The offsets at which a generation prompt ends.
        not_asked: Numbers of answers, from 1, that would be in the loss if they followed their generation prompts.
        opening: What the template writes between the last generation prompt and an answer that is in the loss.
        reasoning_given: Whether reasoning is excluded from the loss.
    """

    spans: list[Span]
    prompts: frozenset[int] = frozenset()
    not_asked: tuple[int, ...] = ()
    opening: str = ""
    reasoning_given: bool = False


def choose_spans(rendered: Rendered, example: Example, train_on: str) -> Chosen:
    """Selects the characters of the rendering that are in the loss."""
    if example.kind in (Kind.TEXT, Kind.CLASSIFICATION):
        return Chosen([Span(0, len(rendered.text))])
    if train_on == "all":
        spans = _without([Span(0, len(rendered.text))], rendered.thinking)
        prompts = {answer.start for n, answer in enumerate(rendered.answers) if n not in rendered.not_asked}
        return Chosen(spans, frozenset(prompts), (), rendered.opening, bool(rendered.thinking))
    asked = [message.supervised for message in example.messages if message.role == "assistant"]
    wanted = [
        number for number, answer in enumerate(asked) if (answer if train_on == "marked" else answer is not False)
    ]
    if train_on == "completions":
        wanted = [number for number in wanted if number == len(asked) - 1]
    kept = [rendered.answers[number] for number in wanted if number not in rendered.not_asked]
    parts = []
    if train_on == "marked":
        elsewhere = [rendered.answers[number] for number in rendered.not_asked]
        parts = [part for part in rendered.marked if not any(s.start <= part.start < s.end for s in elsewhere)]
    spans = _without([*parts, *kept], rendered.thinking)
    given = [hole.end for hole in rendered.thinking if any(s.start <= hole.start < s.end for s in kept)]
    return Chosen(
        spans,
        frozenset([*(span.start for span in kept), *given]),
        tuple(number + 1 for number in wanted if number in rendered.not_asked),
        rendered.opening if len(asked) - 1 in wanted else "",
        bool(given),
    )


def _end_to_end(sequences: Sequence[EncodedExample]) -> EncodedExample:
    """Joins the sequences of one row into one example. A remark on one sequence applies to the row."""
    for sequence in sequences:
        sequence.supervised[:1] = False  # no token before it predicts it
    remarks = [sequence.remarks for sequence in sequences]
    first = sequences[0]
    return EncodedExample(
        np.concatenate([sequence.input_ids for sequence in sequences]),
        np.concatenate([sequence.supervised for sequence in sequences]),
        first.row,
        remarks=Remarks(
            next((one.opening for one in remarks if one.opening), ""),
            any(one.reasoning_given for one in remarks),
            tuple(sorted({number for one in remarks for number in one.not_asked})),
            any(one.cut_token for one in remarks),
            tuple(sorted({name for one in remarks for name in one.unread_kwargs})),
        ),
        several=tuple(len(sequence) for sequence in sequences),
    )


def _try_render(examples: Sequence[Example], template: ChatTemplate) -> list[Rendered] | DataError:
    """Returns the texts of a row's sequences, or the error of the first that cannot be rendered."""
    rendered = []
    for example in examples:
        try:
            if example.tokens is not None:
                one = Rendered("", ())
            elif example.kind is Kind.TEXT:
                one = _render_text(example.text, template)
            elif example.kind is Kind.CLASSIFICATION:
                one = render_input(example, template)
            elif example.is_rendered and template.answer_marks is not None:
                one = Rendered(example.text, tuple(template.answer_marks.spans(example.text)))
            else:
                one = template.render_spans(example.messages, example.tools, example.template_kwargs)
            if not one.text.isascii():
                _check_characters(one.text)
        except DataError as error:
            return DataError(f"row {example.row}: {error}")
        rendered.append(one)
    return rendered


def _check_characters(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            "its text contains half of a surrogate pair (near "
            f"{error.object[max(0, error.start - 20) : error.start]!r}), which is not a character. Fix: correct the "
            "row."
        ) from None


def _render_text(text: str, template: ChatTemplate) -> Rendered:
    """Returns a document between the tokens that start and end a text, each of them once, if the tokenizer has them."""
    bos, end = str(template.tokenizer.bos_token or ""), text_end(template)
    inner = without_end(text, end)
    starts = bool(bos) and inner.startswith(bos)
    while starts and inner.startswith(bos):
        inner = inner.removeprefix(bos)
    if not template.is_bare and (found := template.control_tokens.first_in(inner)):
        named = next((name for name, source in BUILTIN_TEMPLATES.items() if found in source), "")
        rendered = (
            f"if a chat template wrote it, name that template, such as data.chat_template={named}; " if named else ""
        )
        raise DataError(
            f"the text contains {found!r}, a special token, which would end the document or start another. Fix: "
            f"{rendered}remove or rewrite it in the data; if it separates documents, give each document its own row; "
            "or set data.chat=false, which takes texts as they are."
        )
    begin = bos if starts or template.adds_bos else ""
    return Rendered(f"{begin}{inner}{end}", ())


def render_input(example: Example, template: ChatTemplate) -> Rendered:
    """Returns a text as the tokenizer itself encodes it, without a token at its end; or a conversation, rendered.

    That is what transformers' models for sequence classification are given.
    """
    if example.messages:
        return Rendered(template.render(example.messages, example.tools, kwargs=example.template_kwargs), ())
    whole = _render_text(example.text, template).text
    return Rendered(whole.removesuffix(text_end(template)), ())


def text_end(template: ChatTemplate) -> str:
    """Returns the token that ends a plain text."""
    eos = template.tokenizer.eos_token
    return str(eos) if eos is not None else template.stop_token


def _without(spans: Sequence[Span], removed: Sequence[Span]) -> list[Span]:
    """Returns the spans minus other spans; both are in order."""
    left = list(spans)
    for hole in removed:
        parts = [
            (Span(span.start, min(span.end, hole.start)), Span(max(span.start, hole.end), span.end)) for span in left
        ]
        left = [part for pair in parts for part in dict.fromkeys(pair) if part.start < part.end]
    return left
