"""Log-likelihoods of given texts: token boundaries, bounds and numbers are HFLM's, whatever else is read."""

from __future__ import annotations

import random

import pytest
import torch

from lamina.chat.template import build_template
from lamina.engine.engine import Engine
from lamina.engine.generator import Reading
from lamina.engine.local import LocalGenerator
from lamina.errors import ConfigError, DataError
from lamina.evaluation.likelihood import encode_pairs, log_likelihoods, rolling_log_likelihoods, windows
from tests.support.models_zoo import build_model, build_tokenizer

PAIRS = [
    ("hello", " world"),
    ("hello ", " x"),
    ("trailing \n", "y"),
    ("", "abc"),
    ("a" * 50, "b" * 30),
    ("a" * 300, " ccc"),
    *(("one and the same beginning of a question", letter) for letter in "ABCDA"),
    ("one and the same beginning of another", " A"),
]
LONGEST = {"llama": {"max_position_embeddings": 64}, "gpt2": {"n_positions": 64}}


@pytest.mark.parametrize("family", list(LONGEST))
def test_the_same_as_hflm(family: str) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    tokenizer = build_tokenizer()
    model = build_model(family, vocab_size=len(tokenizer), **LONGEST[family])
    reader = LocalGenerator(model, build_template(tokenizer))
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3)
    assert [(pair.context, pair.continuation) for pair in encode_pairs(tokenizer, PAIRS) if len(pair.context) > 1] == [
        theirs._encode_pair(*pair) for pair in PAIRS if pair[0]
    ]
    wanted = theirs.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in PAIRS], disable_tqdm=True)
    told: list[int] = []
    found = log_likelihoods(reader, PAIRS, progress=told.append)
    assert [each.logprob for each in found] == pytest.approx([value for value, _ in wanted], abs=1e-3)
    assert [each.is_greedy for each in found] == [greedy for _, greedy in wanted]
    assert told[-1] == len(PAIRS)
    # Letters that vary: of windows with the same tokens HFLM reads the first places instead of the last.
    long = "".join(chr(97 + n * n % 23) for n in range(200))
    texts = ["hello there", long, "", "a", long[:64], long[:65]]
    rolling = theirs.loglikelihood_rolling([Instance("r", {}, (text,), 0) for text in texts], disable_tqdm=True)
    ours = rolling_log_likelihoods(reader, texts)
    assert [each.logprob for each in ours] == pytest.approx(rolling, abs=1e-2)
    assert [each.tokens for each in ours] == [len(text) for text in texts]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_each_token_is_as_likely_as_the_model_itself_says(family: str) -> None:
    """Whatever is read beside it, and whatever beginnings are shared."""
    tokenizer = build_tokenizer()
    model = build_model(family, vocab_size=len(tokenizer))
    reader = LocalGenerator(model, build_template(tokenizer))
    rng = random.Random(0)
    shared = [rng.randrange(3, len(tokenizer)) for _ in range(90)]
    texts = [
        shared[: rng.randrange(2, 90)] + [rng.randrange(3, len(tokenizer)) for _ in range(rng.randrange(1, 60))]
        for _ in range(24)
    ]
    readings = [Reading(ids, rng.randrange(1, len(ids))) for ids in texts]
    for reading, found in zip(readings, reader.read(readings), strict=True):
        with torch.no_grad():
            logprobs = model(torch.tensor([list(reading.token_ids)])).logits[0].double().log_softmax(-1)
        wanted = logprobs[reading.start - 1 : -1]
        own = torch.tensor(list(reading.token_ids)[reading.start :])
        assert [each.token_id for each in found] == own.tolist()
        likely = wanted.gather(1, own[:, None])[:, 0].tolist()
        assert [each.logprob for each in found] == pytest.approx(likely, abs=1e-3)
        assert [each.top[0][0] for each in found] == wanted.argmax(-1).tolist()


def test_to_the_bit_alone_and_together() -> None:
    """With the kernels a text's numbers do not depend on what else is read."""
    tokenizer = build_tokenizer()
    reader = LocalGenerator(build_model("llama", vocab_size=len(tokenizer)), build_template(tokenizer))
    if reader.slow_because is not None:
        pytest.skip(reader.slow_because)
    together = log_likelihoods(reader, PAIRS)
    assert together == [log_likelihoods(reader, [pair])[0] for pair in PAIRS]


def test_an_engine_shares_what_was_read_before(tmp_path) -> None:  # type: ignore[no-untyped-def]
    tokenizer = build_tokenizer()
    model = build_model("llama", vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with Engine(tmp_path, dtype="float32") as engine:
        question = "a long question that is the same for each of its answers, and then some more of it. " * 2
        found = log_likelihoods(engine, [(question, f" {letter}") for letter in "ABCD"])
        read = engine.stats().counters.prompt_tokens
        assert len({each.logprob for each in found}) == 4
        assert read < 1.5 * len(question) or engine.slow_because is not None
        assert engine.stats().running == engine.stats().used_blocks == 0
        with pytest.raises(ConfigError, match="'none' is not an adapter"):
            engine.read([Reading([1, 2, 3], 1, "none")])
        local = log_likelihoods(LocalGenerator(model, build_template(tokenizer)), [(question, " A")])
        assert found[0].logprob == pytest.approx(local[0].logprob, abs=1e-4)


def test_what_cannot_be_read_is_told() -> None:
    tokenizer = build_tokenizer()
    reader = LocalGenerator(build_model("gpt2", vocab_size=len(tokenizer), n_positions=64), build_template(tokenizer))
    for pairs, words in (
        ([("a", "b"), ("a", "")], "text 2 has no tokens"),
        ([("a", "b" * 65)], "text 1 has 65 tokens"),
    ):
        with pytest.raises(DataError, match=words):
            log_likelihoods(reader, pairs)
    with pytest.raises(DataError, match="a text has 80 tokens, and the base can read 65"):
        reader.read([Reading([5] * 80)])
    with pytest.raises(DataError):
        reader.read([Reading([5, 10_000])])
    with pytest.raises(ConfigError, match="'x' is not an adapter"):
        reader.read([Reading([5, 6], 1, "x")])
    for start, ids in ((0, [1, 2]), (2, [1, 2]), (1, [1])):
        with pytest.raises(ConfigError, match=r"reading\.start"):
            Reading(ids, start)
    assert reader.read([]) == [] and log_likelihoods(reader, []) == []


def test_windows_ask_about_each_token_once() -> None:
    for count in range(40):
        for longest in (1, 2, 5, 16):
            ids = list(range(100, 100 + count))
            found = list(windows(ids, 0, longest))
            assert [token for pair in found for token in pair.continuation] == ids
            assert all(len(pair.context) >= 1 for pair in found)
            assert all(len(pair.context) + len(pair.continuation) <= longest + 1 for pair in found)
