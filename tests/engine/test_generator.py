"""The contract of generating: requests in, whole answers out in their order, whatever else is asked with them."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tools.house import files

import lamina
from lamina.chat.message import Message
from lamina.config import MethodConfig
from lamina.config.methods.lora import LoraConfig
from lamina.config.methods.prefix_tuning import PrefixTuningConfig
from lamina.config.methods.prompt_tuning import PromptTuningConfig
from lamina.engine.generate import complete, generate_each, stream
from lamina.engine.generator import ADAPTER, Generator, Request
from lamina.engine.local import LocalGenerator
from lamina.engine.sampling import Sampling
from lamina.errors import ConfigError, DataError
from lamina.methods.shared.base import inject
from tests.support.answers import FakeGenerator, build_template
from tests.support.models_zoo import build_model, build_tokenizer

PROMPTS = [[5, 9, 17], [33, 4, 101, 7, 60, 21, 8], [11]]
# They read and write the file of that name.
READS_CONFIG = ("models.folder", "engine.asking", "server.vllm.base")


def generator_of(method: MethodConfig | None = None, batch_size: int = 32) -> LocalGenerator:
    """A random adapter that changes answers."""
    model = build_model("llama", vocab_size=259)
    injection = inject(model, method or LoraConfig(r=3), seed=0)
    with torch.no_grad():
        for tensor in injection.tensors().values():
            tensor += 0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
    model.eval()
    return LocalGenerator(model, build_template(build_tokenizer()), injection, batch_size=batch_size)


def requests(adapter: str | None, sampling: Sampling) -> list[Request]:
    return [Request(token_ids=ids, adapter=adapter, sampling=sampling) for ids in PROMPTS]


@pytest.mark.parametrize("method", [LoraConfig(), PrefixTuningConfig(), PromptTuningConfig()])
def test_answers_found_at_once_are_those_found_one_by_one(method: MethodConfig) -> None:
    generator, greedy = generator_of(method), Sampling(max_tokens=12)
    together = generator.generate(requests(ADAPTER, greedy))
    assert together == [generator.generate([request])[0] for request in requests(ADAPTER, greedy)]
    # An answer ends with the first of the stop tokens, whatever the others go on to say.
    stop = together[0].token_ids[1]
    ended = generator.generate(requests(ADAPTER, Sampling(max_tokens=12, stop_token_ids=(stop,))))[0]
    assert ended.token_ids == together[0].token_ids[: together[0].token_ids.index(stop) + 1]
    assert ended.finish_reason == "stop"


def test_adapters_and_samplings_mix_in_one_call_and_come_back_in_order() -> None:
    generator = generator_of(batch_size=2)
    kinds = [
        (ADAPTER, Sampling(max_tokens=4)),
        (None, Sampling(max_tokens=6)),
        (ADAPTER, Sampling(3.0, 5, seed=1)),
        (None, Sampling(3.0, 5, seed=2)),
    ]
    apart = {number: generator.generate(requests(*kind)) for number, kind in enumerate(kinds)}
    mixed = [requests(*kind)[index] for index in range(len(PROMPTS)) for kind in kinds]
    seen: list[int] = []
    together = generator.generate(mixed, seen.append)
    assert together == [apart[number][index] for index in range(len(PROMPTS)) for number in range(len(kinds))]
    assert seen == sorted(seen) and seen[-1] == len(mixed)
    assert len({tuple(piece.token_ids for piece in pieces) for pieces in apart.values()}) == len(kinds)


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=9), Sampling(4.0, 9, seed=5)])
@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("adapter", [None, ADAPTER])
def test_a_stream_gives_the_same_answer_in_pieces(sampling: Sampling, stops: bool, adapter: str | None) -> None:
    generator = generator_of()
    if stops:
        third = generator.generate([Request(token_ids=PROMPTS[0], adapter=adapter, sampling=sampling)])[0].token_ids[2]
        sampling = Sampling(sampling.temperature, 9, sampling.seed, stop_token_ids=(third,))
    request = Request(token_ids=PROMPTS[0], adapter=adapter, sampling=sampling)
    (whole,) = generator.generate([request])
    pieces = list(generator.stream(request))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert tuple(token for piece in pieces for token in piece.token_ids) == whole.token_ids
    assert [piece.finish_reason for piece in pieces] == [*[None] * (len(pieces) - 1), whole.finish_reason]
    assert whole.finish_reason == ("stop" if stops else "length")
    ended = whole.token_ids[:-1] if stops else whole.token_ids
    assert whole.text == generator.template.tokenizer.decode(ended, clean_up_tokenization_spaces=False)


def test_a_stream_of_the_base_that_is_closed_leaves_the_adapter_on() -> None:
    generator = generator_of()
    pieces = generator.stream(Request(token_ids=PROMPTS[0], sampling=Sampling(max_tokens=50)))
    next(pieces)
    pieces.close()
    assert generator._injection is not None
    assert all(layer.enabled for layer in generator._injection.layers.values())


def test_a_bias_decides_what_is_said_in_greedy_answers_and_in_draws() -> None:
    generator = generator_of()
    for temperature in (0.0, 1.0):
        forced = Sampling(temperature, 3, seed=0, logit_bias={77: 1e9})
        assert generator.generate(requests(ADAPTER, forced))[0].token_ids == (77, 77, 77)
        banned = Sampling(temperature, 3, seed=0, logit_bias={token: -1e9 for token in range(259) if token != 78})
        assert generator.generate(requests(None, banned))[0].token_ids == (78, 78, 78)


def test_three_ways_to_ask_the_same() -> None:
    generator, turns = generator_of(), [Message("user", "red")]
    text = generator.template.render(turns, add_generation_prompt=True)
    ids: list[int] = generator.template.tokenizer(text, add_special_tokens=False).input_ids
    asked = [Request(messages=turns), Request(prompt=text), Request(token_ids=ids)]
    first, second, third = generator.generate(asked)
    assert first == second == third


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"temperature": -0.1}, "sampling.temperature"),
        ({"temperature": float("nan")}, "sampling.temperature"),
        ({"max_tokens": 0}, "sampling.max_tokens"),
        ({"seed": -1}, "sampling.seed"),
        ({"seed": 2**64}, "sampling.seed"),
        ({"logit_bias": {3: float("inf")}}, "sampling.logit_bias"),
    ],
)
def test_samplings_that_mean_nothing_are_refused(values: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Sampling(**values)
    assert [problem.field for problem in caught.value.problems] == [field]


@pytest.mark.parametrize("name", ["n", "best_of", "num_beams"])
def test_a_setting_that_would_not_act_does_not_exist(name: str) -> None:
    with pytest.raises(TypeError):
        Sampling(**{name: 1})


@pytest.mark.parametrize("given", [{}, {"prompt": "a", "token_ids": [1]}, {"messages": [], "prompt": "a"}])
def test_a_request_asks_one_thing(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        Request(**given)


def test_what_cannot_be_answered_is_refused_before_anything_is() -> None:
    generator = generator_of()
    good = Request(token_ids=[5])
    bad: Sequence[tuple[Request, type[Exception], str]] = [
        (Request(token_ids=[5], adapter="sql"), ConfigError, "'sql' is not an adapter that is loaded"),
        (Request(token_ids=[]), DataError, "no tokens"),
        (Request(prompt=""), DataError, "no tokens"),
        (Request(token_ids=[259]), DataError, "259"),
        (Request(prompt="\udcff"), DataError, "UTF-8"),
    ]
    generator.check(good)
    for request, error, words in bad:
        with pytest.raises(error, match=words):
            generator.check(request)
        with pytest.raises(error, match=words):
            generator.generate([good, request])
        with pytest.raises(error, match=words):
            next(generator.stream(request))
    bare = LocalGenerator(build_model("llama", vocab_size=259), generator.template)
    with pytest.raises(ConfigError, match="there is none"):
        bare.check(Request(token_ids=[5], adapter=ADAPTER))


def test_the_library_needs_no_more_than_the_contract() -> None:
    fake = FakeGenerator(lambda request: f"{request.adapter} hears {(request.messages or ())[-1].content}")
    generator: Generator = fake
    assert lamina.generate(generator, ["a", "b"], system="s", max_new_tokens=3, base=True) == [
        "None hears a",
        "None hears b",
    ]
    assert [turn.role for turn in fake.asked[0].messages or ()] == ["system", "user"]
    assert fake.asked[0].sampling == Sampling(0.0, 3, 0)
    found = generate_each(generator, ["a", "?!", "b"], Sampling())
    assert [found[0], str(found[1])[:2], found[2]] == ["adapter hears a", "it", "adapter hears b"]
    with pytest.raises(DataError, match="prompt 2: it cannot be asked"):
        lamina.generate(generator, ["a", "?!"])
    assert "".join(stream(generator, [Message("user", "x y")], Sampling())) == "adapter hears x y"
    fake.write = lambda request: f"{request.prompt}!"
    assert complete(generator, ["p", "q"], Sampling(), adapter=None) == ["p!", "q!"]


def test_no_file_generates_by_transformers() -> None:
    """All know the contract: they import none of its classes, and call `generate` of a generator alone."""
    import transformers.generation as generation

    classes = {name for name in dir(generation) if name[0].isupper()} | {"TextIteratorStreamer", "TextStreamer"}
    classes -= {"GenerationConfig"}  # the content of a file, which folders are written with
    wrong = []
    for name, path in files().items():
        if name in ("bench.serving.sides.transformers", "compat.peft"):  # a peer, and what a script asks its model for
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformers":
                own = classes if name in READS_CONFIG else classes | {"GenerationConfig"}
                known = [alias.name for alias in node.names if alias.name in own]
                wrong += [f"{name} imports {each} of {node.module}" for each in known]
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "generate":
                caller = ast.unparse(node.func.value)
                wrong += (
                    [] if caller in ("generator", "engine") else [f"{name}: {caller}.generate at line {node.lineno}"]
                )
    assert not wrong, wrong
