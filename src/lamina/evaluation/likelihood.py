"""How likely a model finds given texts: continuations of contexts, and whole texts window by window.

Tokens are cut, and contexts shortened, as lm-eval's `HFLM` does, so that log-likelihoods are the same as with it:

* A context and its continuation are tokenized together, and what the context alone has tokens for is the context.
  White space at the context's end belongs to the continuation.
* After an empty context comes the tokenizer's first token, or where it has none the one that ends texts.
* Where a model's positions do not hold both, the context loses tokens at its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from lamina.engine.generator import Reader, Reading, TokenLogprobs
from lamina.errors import DataError
from lamina.evaluation.scorers.base import Likelihood
from lamina.structure.positions import declared_positions

# Where neither the model nor its tokenizer says how long a text may be.
_LONGEST = 2048
# Tokenizers without a limit name one as large as this.
_NO_LIMIT = 10**12


@dataclass(frozen=True)
class Pair:
    """A continuation and what comes before it, in tokens.

    Attributes:
        context: At least one token.
        continuation: What is asked about.
    """

    context: list[int]
    continuation: list[int]


def log_likelihoods(
    reader: Reader,
    pairs: Sequence[tuple[str, str]],
    adapter: str | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Likelihood]:
    """The likelihoods of continuations.

    Args:
        reader: Reads them.
        pairs: Contexts and their continuations. Where words are parted by a space, it belongs to the continuation.
        adapter: The adapter that reads; None is the bare base.
        progress: Called with how many are read.

    Raises:
        DataError: A continuation has no tokens, or more than the model has positions for; the error names which.
    """
    tokenizer, longest = reader.template.tokenizer, longest_text(reader)
    readings: list[Reading] = []
    for number, pair in enumerate(encode_pairs(tokenizer, pairs), start=1):
        count = len(pair.continuation)
        if not 0 < count <= longest:
            said = "no tokens" if not count else f"{count} tokens, and the model has positions for {longest}"
            raise DataError(f"text {number} has {said}. Fix: {'shorten it' if count else 'give it some'}.")
        ids = (pair.context + pair.continuation)[-(longest + 1) :]
        readings.append(Reading(ids, len(ids) - count, adapter))
    return [_likelihood(found) for found in reader.read(readings, progress)]


def rolling_log_likelihoods(
    reader: Reader,
    texts: Sequence[str],
    adapter: str | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Likelihood]:
    """The likelihoods of whole texts, each token after as many before it as the model has positions for.

    A text without tokens has a log-probability of 0. The arguments are those of `log_likelihoods`.
    """
    tokenizer, longest = reader.template.tokenizer, longest_text(reader)
    owners: list[int] = []
    readings: list[Reading] = []
    for number, text in enumerate(texts):
        for pair in windows(encode(tokenizer, text), prefix_token(tokenizer), longest):
            owners.append(number)
            readings.append(Reading(pair.context + pair.continuation, len(pair.context), adapter))
    sums: list[list[Likelihood]] = [[] for _ in texts]
    for owner, found in zip(owners, reader.read(readings, progress) if readings else [], strict=True):
        sums[owner].append(_likelihood(found))
    return [
        Likelihood(
            sum(part.logprob for part in parts),
            all(part.is_greedy for part in parts),
            sum(part.tokens for part in parts),
        )
        for parts in sums
    ]


def encode_pairs(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
    """Cuts contexts and continuations into tokens; see the top of the file."""
    wholes: list[str] = []
    contexts: list[str] = []
    for context, continuation in pairs:
        contexts.append(context.rstrip() if context.strip() else "")
        wholes.append(context + continuation)
    of_whole, of_context = (_encode_all(tokenizer, texts) for texts in (wholes, contexts))
    found = []
    for (context, continuation), whole, before in zip(pairs, of_whole, of_context, strict=True):
        if context:
            found.append(Pair(before, whole[len(before) :]))
            continue
        first, ids = prefix_token(tokenizer), tokenizer.encode(continuation, add_special_tokens=False)
        found.append(Pair(ids[:1], ids[1:]) if ids[:1] == [first] else Pair([first], ids))
    # White space alone, with nothing before it, has no token of a context.
    first = prefix_token(tokenizer)
    return [pair if pair.context else Pair([first], pair.continuation) for pair in found]


def encode(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text, with those that the tokenizer puts before every text, unless it begins with them."""
    return _encode_all(tokenizer, [text])[0]


def _encode_all(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    first = tokenizer.decode(prefix_token(tokenizer))
    ids: list[list[int]] = [[] for _ in texts]
    for begins in (False, True):
        chosen = [number for number, text in enumerate(texts) if text and text.startswith(first) == begins]
        if chosen:
            some = tokenizer([texts[number] for number in chosen], add_special_tokens=not begins, verbose=False)
            for number, own in zip(chosen, some.input_ids, strict=True):
                ids[number] = own
    return ids


def windows(ids: Sequence[int], first: int, longest: int) -> Iterator[Pair]:
    """Cuts a text into pairs that ask about each token once, and read no more than `longest` tokens before it."""
    done = 0
    while done < len(ids):
        end = min(done + longest, len(ids))
        whole = [first, *ids[:end]] if not done else list(ids[max(0, end - longest - 1) : end])
        asked = end - done
        yield Pair(whole[: len(whole) - asked], whole[len(whole) - asked :])
        done = end


def prefix_token(tokenizer: Any) -> int:
    """The token that begins a text without a context."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def longest_text(reader: Reader) -> int:
    """How many tokens the model reads at once, as its files say."""
    return longest_input(reader.model, reader.template.tokenizer)


def longest_input(model: PreTrainedModel, tokenizer: Any) -> int:
    """How many tokens a model reads at once, as its configuration, or else its tokenizer, says."""
    declared = declared_positions(model)
    if declared is not None:
        return declared
    own = getattr(tokenizer, "model_max_length", None)
    return int(own) if own is not None and own < _NO_LIMIT else _LONGEST


def _likelihood(found: Sequence[TokenLogprobs]) -> Likelihood:
    return Likelihood(
        sum(each.logprob for each in found), all(each.top[0][0] == each.token_id for each in found), len(found)
    )
