"""Who answers: names, aliases that are split by weights, and clients that stay where they are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from lamina.errors import ConfigError
from lamina.server.routing import pick
from tests.support.serving import BASE, FakeEngine, build, chat_body, client_of

WEIGHTS = {"weights": {"a": 90, "b": 10}}


def answered_by(service: Any, headers: dict[str, str] | None = None, **fields: Any) -> str:
    response = client_of(service).post("/v1/chat/completions", json=chat_body(model="live", **fields), headers=headers)
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["choices"][0]["message"]["content"] == f"I am {body['model']}."
    return body["model"]


def test_an_alias_is_split_by_its_weights() -> None:
    router = build(aliases={"live": WEIGHTS}).router
    names = Counter(router.find("live", ["a", "b"], None, {}).name for _ in range(2000))
    assert names["b"] / 2000 == pytest.approx(0.1, abs=0.03)
    users = Counter(router.find("live", ["a", "b"], f"user {n}", {}).name for n in range(2000))
    assert users["b"] / 2000 == pytest.approx(0.1, abs=0.03)


def test_a_user_stays_where_it_is() -> None:
    service = build(aliases={"live": {"weights": {"a": 1, "b": 1, BASE: 1}}})
    for user in ("one", "two", "three"):
        assert len({answered_by(service, user=user) for _ in range(5)}) == 1


def test_a_header_or_nothing_may_say_who_stays() -> None:
    service = build(aliases={"live": {"weights": {"a": 1, "b": 1}, "sticky": "header:X-Tenant"}})
    assert len({answered_by(service, {"x-tenant": "t"}, user=str(n)) for n in range(6)}) == 1
    none = build(aliases={"live": {"weights": {"a": 1, "b": 1}, "sticky": "none"}})
    assert len({none.router.find("live", ["a", "b"], "u", {}).name for _ in range(100)}) == 2


@pytest.mark.parametrize(("point", "name"), [(0.0, "a"), (0.2499, "a"), (0.25, "b"), (0.99, "b"), (1.0, "b")])
def test_points_between_weights(point: float, name: str) -> None:
    assert pick({"none": 0, "a": 1, "b": 3, "never": 0}, point) == name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"aliases": {"live": {"weights": {"c": 1}}}}, "aliases.live.weights: 'c' is not loaded"),
        ({"shadow": [{"of": "a", "to": "c"}]}, "shadow.0.to: 'c' is not loaded"),
        ({"shadow": [{"of": "d", "to": "a"}]}, "shadow.0.of: 'd' is not loaded"),
        ({"name": "a"}, "adapters: 'a' is what requests call the base"),
        ({"aliases": {BASE: {"weights": {"a": 1}}}}, "aliases: 'base' is what requests call the base"),
    ],
)
def test_names_that_lead_nowhere_are_refused_at_the_start(settings: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(**settings)


def test_an_unknown_model_is_named_with_those_that_there_are() -> None:
    response = client_of(build()).post("/v1/chat/completions", json=chat_body(model="basse"))
    error = response.json()["error"]
    assert response.status_code == 404
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "'base', 'a', 'b'" in error["message"] and "Did you mean 'base'?" in error["message"]
    many = build(FakeEngine(names=tuple(f"x{n}" for n in range(500))))
    error = client_of(many).post("/v1/chat/completions", json=chat_body(model="zz")).json()["error"]
    assert len(error["message"]) < 400


def test_the_fingerprint_follows_adapter_and_sampling_and_no_seed() -> None:
    service = build(aliases={"live": {"weights": {"a": 1}}})

    def of(**fields: Any) -> str:
        body = chat_body(**fields)
        return client_of(service).post("/v1/chat/completions", json=body).json()["system_fingerprint"]

    plain = of()
    assert of(seed=5) == of(seed=6, max_tokens=3) == of(model="live") == of(logprobs=True) == plain
    assert len({plain, of(model="b"), of(model=BASE), of(temperature=0), of(stop="x")}) == 5
    other = FakeEngine(digest="sha256:another")
    found = client_of(build(other)).post("/v1/chat/completions", json=chat_body()).json()
    assert found["system_fingerprint"] != plain
