"""Beside a longer prompt, a prompt gets the answer that it gets alone, also from a model that looks at padding."""

from __future__ import annotations

import pytest
import torch

from lamina.engine.generator import Request
from lamina.engine.local import LocalGenerator
from lamina.engine.sampling import Sampling
from tests.support.answers import build_template
from tests.support.architectures import build_architecture
from tests.support.models_zoo import build_tokenizer

DRAWS = torch.Generator().manual_seed(0)
PROMPTS = [torch.randint(3, 259, (length,), generator=DRAWS).tolist() for length in (3, 29, 3, 17)]


@pytest.mark.parametrize("name", ["rwkv", "trocr", "bart", "minimax", "recurrent_gemma", "gpt2", "bamba"])
def test_a_prompt_beside_longer_ones_is_answered_as_alone(name: str) -> None:
    generator = LocalGenerator(build_architecture(name), build_template(build_tokenizer()), use_kernels=False)
    sampling = Sampling(max_tokens=6, ignore_stop_tokens=True, logprobs=0, prompt_logprobs=0)
    requests = [Request(token_ids=ids, sampling=sampling) for ids in PROMPTS]
    together = generator.generate(requests)
    for request, beside in zip(requests, together, strict=True):
        (alone,) = generator.generate([request])
        assert beside.token_ids == alone.token_ids
        assert beside.prompt is not None and alone.prompt is not None
        told = [[each.logprob for each in (*piece.prompt.logprobs, *piece.logprobs)] for piece in (beside, alone)]  # type: ignore[union-attr]
        torch.testing.assert_close(told[0], told[1], rtol=0, atol=1e-3)
    assert generator._built().plain._pads is (name in ("gpt2", "bamba"))
