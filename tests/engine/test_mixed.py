"""One batch mixes every method over one base, and a row's answer does not depend on its neighbors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from lamina.adapters.logits import model_logits
from lamina.compute.decoding import AdapterForms, Decoder, NotMixed, build_decoder
from lamina.engine.core import Core
from lamina.engine.fused_runner import FusedRunner
from lamina.engine.generator import Piece
from lamina.engine.sampling import Sampling
from lamina.engine.sequence import Sequence, Voice
from lamina.methods.shared.base import Injection
from lamina.models.copies import bare_copy
from tests.support.method_cases import CASES, attached
from tests.support.models_zoo import build_model, build_tokenizer

TOKENIZER = build_tokenizer()
FUSED = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3")
# peft's own layers act on a whole batch.
MIXED = [case for case in CASES if case not in ("peft", "bitfit")]
BASE_BLOCKS = 400


def prompts(count: int, seed: int, longest: int = 60) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(3, 259, int(random.integers(1, longest))).tolist() for _ in range(count)]


def decoder_of(injection: Injection) -> tuple[Any, Decoder]:
    bare = bare_copy(injection.model)
    decoder = build_decoder(bare)
    assert isinstance(decoder, Decoder), decoder
    return bare, decoder


class Batch:
    """Sequences on one runner, which answer what they are asked."""

    def __init__(self, model: Any, decoder: Decoder, blocks: int = BASE_BLOCKS, shares: bool = True) -> None:
        self.runner = FusedRunner(model, decoder, blocks * decoder.block_bytes())
        self.core = Core([self.runner], shares)
        self.pieces: dict[int, list[Piece]] = {}

    def add(
        self,
        number: int,
        tokens: list[int],
        forms: AdapterForms | None,
        sampling: Sampling,
        wants: list[int] | None = None,
    ) -> Sequence:
        def fail(error: BaseException) -> None:
            raise error

        voice = Voice(None if forms is None else str(id(forms)), forms, forms.virtual_tokens if forms else 0)
        own = self.pieces.setdefault(number, [])
        sequence = Sequence(
            list(tokens),
            voice,
            sampling,
            limit=sampling.max_tokens,
            stop_ids=frozenset(),
            tokenizer=TOKENIZER,
            deliver=own.append,
            fail=fail,
            wants=wants,
        )
        self.core.add(sequence, self.runner)
        return sequence

    def run(self) -> dict[int, Piece]:
        while self.core.step():
            pass
        assert self.core.is_idle and self.runner.blocks.used == 0
        return {number: pieces[-1] for number, pieces in self.pieces.items() if pieces}


@pytest.mark.parametrize("shape", ["llama", "gemma3"])
@pytest.mark.parametrize("case", MIXED)
def test_an_adapters_rows_give_its_own_logits(case: str, shape: str) -> None:
    injection = attached(case, shape)
    bare, decoder = decoder_of(injection)
    ids = prompts(1, seed=5)[0]
    expected = model_logits(injection.model)(ids, range(len(ids)))
    batch = Batch(bare, decoder)
    sequence = batch.add(0, ids, decoder.forms(injection.row_forms()), Sampling(), list(range(len(ids))))
    beside = batch.add(1, ids, None, Sampling(), list(range(len(ids))))
    batch.run()
    found = torch.cat(sequence.logits)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    # The bare base beside it is the bare base alone, to the bit.
    alone = Batch(bare, decoder)
    bare_alone = alone.add(0, ids, None, Sampling(), list(range(len(ids))))
    alone.run()
    assert torch.equal(torch.cat(beside.logits), torch.cat(bare_alone.logits))
    assert not torch.equal(found, torch.cat(beside.logits))


def test_what_cannot_be_mixed_says_why() -> None:
    injection = attached("peft", "llama")
    decoder = build_decoder(build_model("llama", vocab_size=259))
    assert isinstance(decoder, Decoder)
    with pytest.raises(NotMixed, match="peft's own layers"):
        decoder.forms(injection.row_forms())


@pytest.fixture(scope="module", params=[(shape, dtype) for shape in FUSED for dtype in (torch.float32, torch.bfloat16)])
def crowd(request: pytest.FixtureRequest) -> tuple[Any, Decoder, list[AdapterForms | None]]:
    """A base with adapters of several methods, the bare base among them."""
    shape, dtype = request.param
    bare = build_model(shape, dtype=dtype, vocab_size=259)
    decoder = build_decoder(bare)
    assert isinstance(decoder, Decoder), decoder
    cases = [
        "lora",
        "lora of many settings",
        "dora",
        "ia3",
        "prefix_tuning",
        "prompt_tuning",
        "ln_tuning",
        "bottleneck",
    ]
    forms: list[AdapterForms | None] = [None]
    for case in cases:
        forms.append(decoder.forms(attached(case, shape).row_forms()))
    return bare, decoder, forms


def arrivals(batch: Batch, requests: list[tuple[list[int], Any, Sampling]], seed: int) -> Iterator[None]:
    """Adds requests at random times, in random order."""
    random = np.random.default_rng(seed)
    for number in random.permutation(len(requests)):
        batch.add(int(number), *requests[int(number)])
        for _ in range(int(random.integers(0, 4))):
            yield


@pytest.mark.parametrize("seed", [0, 1])
def test_a_request_gets_the_same_alone_and_in_any_batch(
    crowd: tuple[Any, Decoder, list[AdapterForms | None]], seed: int
) -> None:
    bare, decoder, forms = crowd
    random = np.random.default_rng(seed)
    samplings = [
        Sampling(max_tokens=9, logprobs=3),
        Sampling(1.3, 45, seed=4, top_p=0.9, logprobs=0),
        Sampling(0.8, 7, seed=5, top_k=20, repetition_penalty=1.2, presence_penalty=0.3, prompt_logprobs=1),
    ]
    shared = prompts(1, seed=9, longest=70)[0] + list(range(3, 40))
    requests = [
        (shared + own if random.random() < 0.5 else own, forms[int(random.integers(len(forms)))], samplings[number % 3])
        for number, own in enumerate(prompts(14, seed))
    ]
    alone = {}
    for number, request in enumerate(requests):
        batch = Batch(bare, decoder)
        batch.add(number, *request)
        alone |= batch.run()
    together = Batch(bare, decoder)
    together.runner.prompt_chunk = (5 + seed, 37)
    for _ in arrivals(together, requests, seed):
        together.core.step()
    assert together.run() == alone
    assert [piece.prompt.logprobs for piece in together.run().values() if piece.prompt] == [
        alone[number].prompt.logprobs for number in together.pieces
    ]
    # So few blocks that sequences are put back, again and again.
    longest = max(len(tokens) + sampling.max_tokens for tokens, _, sampling in requests) + 8
    tight = Batch(bare, decoder, blocks=-(-longest // 16) + 1)
    for _ in arrivals(tight, requests, seed + 1):
        tight.core.step()
    assert tight.run() == alone
    assert tight.core.counters.preemptions > 0
    unshared = Batch(bare, decoder, shares=False)
    for _ in arrivals(unshared, requests, seed + 2):
        unshared.core.step()
    assert unshared.run() == alone


def test_a_common_beginning_is_computed_once() -> None:
    bare = build_model("llama", vocab_size=259)
    decoder = build_decoder(bare)
    assert isinstance(decoder, Decoder)
    batch = Batch(bare, decoder)
    prompt = prompts(1, seed=3)[0][:1] * 50
    for number in range(8):
        batch.add(number, prompt, None, Sampling(1.0, 6, seed=number))
    batch.run()
    assert batch.core.counters.prompt_tokens == 50 + 7 * 2  # 48 tokens are three whole blocks
    assert batch.core.counters.cached_tokens == 7 * 48
    before = batch.core.counters.prompt_tokens
    # Another adapter has numbers of its own, whatever it is called.
    forms = decoder.forms(attached("lora", "llama").row_forms())
    batch.add(8, prompt, forms, Sampling(max_tokens=2))
    batch.run()
    assert batch.core.counters.prompt_tokens == before + 50


def test_an_error_ends_its_own_request_alone() -> None:
    bare = build_model("llama", vocab_size=259)
    decoder = build_decoder(bare)
    assert isinstance(decoder, Decoder)
    batch = Batch(bare, decoder)
    errors: list[BaseException] = []
    batch.add(0, [5, 6, 7], None, Sampling(max_tokens=5))
    broken = batch.add(1, [5, 6, 7], None, Sampling(max_tokens=5, logit_bias=dict.fromkeys(range(259), -1e38)))
    broken._fail = errors.append
    broken.sampling = Sampling(max_tokens=5, min_tokens=5)
    broken.stop_ids = frozenset(range(259))
    pieces = batch.run()
    assert len(pieces[0].token_ids) == 5
    assert "no token may follow" in str(errors[0])
