"""Structured output that ends well, and what is said where llguidance cannot go on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lamina.engine import guides
from lamina.engine.engine import Engine
from lamina.engine.generator import Piece, Request
from lamina.engine.guides import Guide
from lamina.engine.sampling import Sampling
from lamina.errors import ConfigError, DataError
from tests.support.models_zoo import build_tokenizer
from tests.support.waiting import wait_for

pytest.importorskip("llguidance")

A, B = build_tokenizer()("ab").input_ids
STOP = 2


def alternatives(count: int, before: str = "") -> str:
    """A grammar with so many alternatives in one place, each of which may begin in the middle of every other."""
    each = (f'"{"a" if number % 2 else "b"}" s "c{number}"' for number in range(count))
    return f"start: {before} s\ns: " + " | ".join(each) + ' | "d"'


def states(count: int) -> str:
    """A grammar whose sentences all end in c, and whose rows grow with every letter."""
    begin = "start: " + " | ".join(f"s{number}" for number in range(count))
    rules = (
        f's{number}: ("a"|"b") s{(number * 7 + 1) % count} | ("a"|"b") s{(number * 13 + 5) % count} | "c"'
        for number in range(count)
    )
    return "\n".join([begin, *rules])


@pytest.fixture(scope="module")
def engine(model_folder: Path) -> Iterator[Engine]:
    with Engine(model_folder, dtype="float32") as engine:
        yield engine


def ask(guide: Guide, **sampling: Any) -> Request:
    return Request(prompt="x", sampling=Sampling(**{"max_tokens": 40, "guide": guide, **sampling}))


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("guide", "allowed"),
    [
        (Guide("regex", "[ab]{1,4}"), {"a", "aa", "aaa", "aaaa", "b", "ab", "ba", "bb"}),
        (Guide("regex", "(abc)+"), {"abc", "abcabc", "abcabcabc"}),
        (Guide("choice", '["yes", "no"]'), {"yes", "no"}),
        (Guide("choice", '[""]'), {""}),
    ],
)
def test_a_token_that_ends_a_guide_is_no_part_of_the_text(
    engine: Engine, guide: Guide, allowed: set[str], streams: bool
) -> None:
    for ignores in (False, True):
        request = ask(guide, ignore_stop_tokens=ignores, logit_bias={STOP: 50.0})
        pieces = list(engine.stream(request)) if streams else engine.generate([request])
        assert "".join(piece.text for piece in pieces) in allowed
        assert pieces[-1].finish_reason == "stop"


def test_a_token_that_ends_a_guide_and_not_the_adapters_turns_is_no_part_of_the_text(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asker = engine._ask
    monkeypatch.setattr(type(asker), "stop_ids", lambda self, sampling: frozenset([B]))
    (piece,) = engine.generate([ask(Guide("regex", "a{1,9}"), logit_bias={STOP: 50.0})])
    assert (piece.text, piece.finish_reason, piece.stopped_by) == ("a", "stop", STOP)
    (last,) = engine.generate([ask(Guide("regex", "a{1,9}"), logit_bias={STOP: 50.0}, max_tokens=2)])
    assert (last.text, last.finish_reason) == ("a", "stop")


def test_a_guide_that_breaks_midway_gives_an_error_and_no_answer(engine: Engine) -> None:
    with pytest.raises(DataError, match=r"cannot follow the grammar any further: .*Current row has 3300 items; max is"):
        engine.generate([ask(Guide("grammar", states(300)), logit_bias={A: 100.0})])
    assert engine.is_alive


def test_a_guide_that_nothing_satisfies_is_refused(engine: Engine) -> None:
    with pytest.raises(ConfigError, match=r"sampling\.guide: .*nothing satisfies it"):
        engine.generate([ask(Guide("json_schema", '{"$ref": "#"}'))])


def test_a_guide_that_takes_long_before_the_first_token_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guides, "_SECONDS_AT_START", 0.05)
    with pytest.raises(ConfigError, match=r"sampling\.guide: the grammar takes .* s before a token, and 0\.05 s"):
        engine.generate([ask(Guide("grammar", alternatives(450)))])


def test_a_guide_that_takes_long_ends_with_an_error_and_others_are_answered(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guides, "_SECONDS", 0.2)
    got: list[Piece | BaseException] = []
    hard = ask(Guide("grammar", alternatives(300, before='"a"')), logit_bias={A: 100.0, B: 90.0}, max_tokens=400)
    plain = Request(prompt="x", sampling=Sampling(max_tokens=8))
    expected = engine.generate([plain])
    engine.submit(hard, got.append)
    assert engine.generate([plain]) == expected
    wait_for(lambda: isinstance(got[-1], BaseException))
    assert isinstance(got[-1], DataError) and "0.2 s and 0.02 s for each token are allowed" in str(got[-1])
    assert len(got) < 60


@pytest.mark.parametrize("count", [30, 300])
def test_large_ordinary_schemas_are_far_from_the_limits(engine: Engine, count: int) -> None:
    names = [f"property_{number}" for number in range(count)]
    schema = {
        "type": "object",
        "properties": {name: {"type": "integer"} for name in names},
        "required": names[::10],
        "additionalProperties": False,
    }
    any_of = {
        "anyOf": [{"type": "object", "properties": {name: {"type": "string"}}, "required": [name]} for name in names]
    }
    made = engine._ask.guides
    for text in (json.dumps(schema), json.dumps(any_of), json.dumps({"enum": names})):
        state = made.start(Guide("json_schema", text))
        begun = time.thread_time()
        for token in build_tokenizer()('{"').input_ids if "enum" not in text else build_tokenizer()('"prop').input_ids:
            state.take(token)
        assert time.thread_time() - begun < guides._SECONDS / 4
    drawn = replace(Sampling(temperature=1.5, seed=1, max_tokens=60), guide=Guide("json_schema", json.dumps(schema)))
    (piece,) = engine.generate([Request(prompt="x", sampling=drawn)])
    assert len(piece.token_ids) == 60 or piece.finish_reason == "stop"
