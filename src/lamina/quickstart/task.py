"""The bundled quickstart task: turn a customer-support request into one JSON routing record.

First stage of `lamina quickstart`: this module composes the training requests and the unseen evaluation requests
(wording in `wording.py`). The quickstart then trains a LoRA adapter on `Request.messages()` and counts how many answers
equal `Request.answer()` exactly. It needs no data files and no network.

A record has a queue (determined by the intent), an intent, the product and the order id copied from the text, and a
priority (determined by a phrase about urgency; `normal` without one). Evaluation requests are composed from other
sentences than training requests; half of their products and all of their order ids are new.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from lamina.quickstart.wording import EVAL, TRAIN, Wording

KEYS = ("intent", "queue", "product", "order", "priority")
QUEUE_OF_INTENT = {
    "refund": "billing",
    "duplicate_charge": "billing",
    "late_delivery": "shipping",
    "address_change": "shipping",
    "wrong_item": "returns",
    "damaged_item": "returns",
    "setup_help": "technical",
    "not_working": "technical",
    "password_reset": "account",
    "close_account": "account",
}
INTENTS = tuple(QUEUE_OF_INTENT)
QUEUES = ("billing", "shipping", "returns", "technical", "account")
PRIORITIES = ("high", "normal", "low")
TRAIN_PRODUCTS = TRAIN.products
UNSEEN_PRODUCTS = EVAL.products
PRODUCTS = TRAIN_PRODUCTS + UNSEEN_PRODUCTS
ORDER_PATTERN = re.compile(r"[B-DF-HJ-NP-TV-Z]{2}-[1-9][0-9]{4}")

SYSTEM = "Route this support request as one JSON record."

_ORDER_LETTERS = "BCDFGHJKLMNPRSTVWXYZ"
_EVAL_ORDER_STEP = 7  # Evaluation requests use order numbers divisible by this, training requests all others.
_PRIORITY_MIX = ("high",) * 7 + ("normal",) * 8 + ("low",) * 5
_ORDER_MIX = (True, True, True, False)  # For requests about a product; account requests never have an id.
_GREETING_SHARE = 0.4
_SMALL_TALK_SHARE = 0.2
_SIGN_OFF_SHARE = 0.3
_BEFORE_CORE_SHARE = 0.3
_MIN_WORDS = 12  # Shorter requests get a sentence of small talk.
_MAX_TRIES = 1000  # Maximum number of draws of one row before build_task reports that the wording is exhausted.

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """A customer request, and its expected record.

    Attributes:
        text: The customer's message, on one line.
        record: The expected values, in the order of `KEYS`.
    """

    text: str
    record: dict[str, str | None]

    def answer(self) -> str:
        """Returns the record as the line of JSON that the model must produce."""
        return json.dumps(self.record)

    def messages(self) -> list[dict[str, str]]:
        """Returns the request as a system, a user and an assistant message."""
        return [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": self.text},
            {"role": "assistant", "content": self.answer()},
        ]


@dataclass(frozen=True)
class Task:
    """The training rows and the evaluation rows, which share no wording."""

    train: list[Request]
    eval: list[Request]


def build_task(seed: int = 0, train_rows: int = 560, eval_rows: int = 100) -> Task:
    """Composes the task; the same arguments give the same rows on every machine.

    The evaluation rows depend only on `seed` and `eval_rows`: a larger training set is evaluated on the same ones.

    Args:
        seed: Seed of the choice of wording.
        train_rows: Number of training requests.
        eval_rows: Number of evaluation requests.

    Returns:
        Both splits: distinct requests with balanced intents, and 35/40/25 percent high/normal/low priority.

    Raises:
        ValueError: The wording does not allow that many distinct requests.
    """
    return Task(train=_Composer(seed, "train").rows(train_rows), eval=_Composer(seed, "eval").rows(eval_rows))


def is_valid_record(text: str) -> bool:
    """Returns whether a text is a valid record of the schema, correct or not.

    Args:
        text: A model's answer. White space around the JSON is allowed, but nothing else.

    Returns:
        True for a JSON object with exactly `KEYS`, in that order, an intent in its own queue, a known product
        (null if and only if the intent is about an account), an order id or null, and a known priority.
    """
    try:
        pairs = json.loads(text, object_pairs_hook=tuple)  # Pairs, since a dict would hide a repeated key.
    except (ValueError, RecursionError):
        return False
    if not isinstance(pairs, tuple) or tuple(key for key, _ in pairs) != KEYS:
        return False
    intent, queue, product, order, priority = (value for _, value in pairs)
    return (
        intent in INTENTS
        and queue == QUEUE_OF_INTENT[intent]
        and (product is None if queue == "account" else product in PRODUCTS)
        and (order is None or (isinstance(order, str) and ORDER_PATTERN.fullmatch(order) is not None))
        and priority in PRIORITIES
    )


class _Deck(Generic[T]):
    """Deals the items of a pool in random order; all of them once before any is repeated."""

    def __init__(self, items: Sequence[T], rng: random.Random) -> None:
        self._items = items
        self._rng = rng
        self._left: list[T] = []

    def deal(self) -> T:
        """Returns the next item."""
        if not self._left:
            self._left = _shuffled(self._items, self._rng)
        return self._left.pop()


class _Composer:
    """Composes the requests of one split, using every phrase of its wording equally often."""

    def __init__(self, seed: int, split: str) -> None:
        words: Wording = TRAIN if split == "train" else EVAL
        # A string seed is hashed with SHA-512, so it does not depend on the process.
        self._rng = rng = random.Random(f"lamina quickstart {split} {seed}")
        self._is_eval = split == "eval"
        self._core = {intent: _Deck(words.core[intent], rng) for intent in INTENTS}
        self._order = _Deck(words.order, rng)
        self._urgency = {"high": _Deck(words.high, rng), "low": _Deck(words.low, rng)}
        self._greeting = _Deck(words.greeting, rng)
        self._small_talk = _Deck(words.small_talk, rng)
        self._sign_off = _Deck(words.sign_off, rng)
        # Evaluation alternates between products that training never names and products that it does.
        pools = (UNSEEN_PRODUCTS, TRAIN_PRODUCTS) if self._is_eval else (TRAIN_PRODUCTS,)
        self._products = [_Deck(pool, rng) for pool in pools]

    def rows(self, count: int) -> list[Request]:
        """Composes `count` distinct requests."""
        intents = _Deck(INTENTS, self._rng)
        priorities = _Deck(_PRIORITY_MIX, self._rng)
        has_order = _Deck(_ORDER_MIX, self._rng)
        rows: list[Request] = []
        seen: set[str] = set()  # Only used for membership, so its order does not matter.
        for _ in range(count):
            intent, priority = intents.deal(), priorities.deal()
            product = order = None
            if QUEUE_OF_INTENT[intent] != "account":
                self._products.append(self._products.pop(0))
                product = self._products[-1].deal()
                order = self._order_id() if has_order.deal() else None
            values = (intent, QUEUE_OF_INTENT[intent], product, order, priority)
            record: dict[str, str | None] = dict(zip(KEYS, values, strict=True))
            text = self._new_text(record, seen)
            seen.add(text)
            rows.append(Request(text, record))
        return rows

    def _new_text(self, record: dict[str, str | None], seen: set[str]) -> str:
        for _ in range(_MAX_TRIES):
            text = self._text(record)
            if text not in seen:
                return text
        raise ValueError(
            f"no new wording left for intent {record['intent']!r} after {len(seen)} rows; ask for fewer rows"
        )

    def _text(self, record: dict[str, str | None]) -> str:
        """Composes one request: greeting, core sentence with extras before or after it, sign-off."""
        core = self._core[str(record["intent"])].deal()
        extras: list[str] = []
        if record["order"] is not None:
            phrase = self._order.deal()
            if phrase.startswith("("):
                core = core.replace("{product}", "{product} " + phrase)
            else:
                extras.append(phrase)
        if record["priority"] in self._urgency:
            extras.append(self._urgency[str(record["priority"])].deal())
        words = len(" ".join([core, *extras]).split())
        if words < _MIN_WORDS or self._rng.random() < _SMALL_TALK_SHARE:
            extras.append(self._small_talk.deal())
        before: list[str] = []
        behind: list[str] = []
        for extra in _shuffled(extras, self._rng):
            (before if self._rng.random() < _BEFORE_CORE_SHARE else behind).append(extra)
        opening = [self._greeting.deal()] if self._rng.random() < _GREETING_SHARE else []
        closing = [self._sign_off.deal()] if self._rng.random() < _SIGN_OFF_SHARE else []
        sentences = [*opening, *before, core, *behind, *closing]
        return " ".join(sentences).format(product=record["product"], order=record["order"])

    def _order_id(self) -> str:
        """Draws an id such as KT-48213, from the numbers of this split."""
        letters = "".join(_ORDER_LETTERS[_below(len(_ORDER_LETTERS), self._rng)] for _ in range(2))
        while True:
            number = 10_000 + _below(90_000, self._rng)
            if (number % _EVAL_ORDER_STEP == 0) == self._is_eval:
                return f"{letters}-{number}"


def _below(limit: int, rng: random.Random) -> int:
    """Draws from range(limit) with `random()`, the only method whose sequence Python guarantees."""
    return int(rng.random() * limit)


def _shuffled(items: Sequence[T], rng: random.Random) -> list[T]:
    """Returns the items in random order, using only `random()` (see `_below`)."""
    result = list(items)
    for last in range(len(result) - 1, 0, -1):
        other = _below(last + 1, rng)
        result[last], result[other] = result[other], result[last]
    return result
