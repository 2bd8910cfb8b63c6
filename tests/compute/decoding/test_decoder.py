"""The decoder's layers are the model's own, in every storage and shape, and refuse what they cannot run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lamina.compute.decoding import Decoder, build_decoder
from lamina.compute.decoding.decoder import Rows
from lamina.compute.decoding.layouts import BLOCK_TOKENS
from lamina.compute.weights.packed import EightBitLinear, FourBitLinear
from lamina.errors import KernelError
from lamina.structure.layers import decoder_layers
from tests.support.models_zoo import build_model


def run(decoder: Decoder, ids: list[int], cuts: list[int], first_block: int = 0) -> torch.Tensor:
    """The logits of all tokens, computed in chunks that end at `cuts`."""
    if decoder.cache is None:
        decoder.allocate(64)
    blocks = np.arange(first_block, first_block + -(-len(ids) // BLOCK_TOKENS), dtype=np.int32)[None]
    parts = []
    for begin, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        count = end - begin
        rows = Rows(
            decoder.embed(torch.tensor(ids[begin:end])).contiguous(),
            np.arange(begin, end, dtype=np.int64),
            np.zeros(count, dtype=np.int64),
            blocks,
            [(0, count, None)],
            np.arange(count, dtype=np.int64),
        )
        parts.append(decoder.step(rows))
    return torch.cat(parts)


def built(model: Any) -> Decoder:
    decoder = build_decoder(model)
    assert isinstance(decoder, Decoder), decoder
    return decoder


SHAPES: dict[str, dict[str, Any]] = {
    "even": {},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1},
    "odd widths": {
        "hidden_size": 45,
        "intermediate_size": 77,
        "head_dim": 10,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
    },
    "wide heads": {"head_dim": 64, "num_attention_heads": 3, "num_key_value_heads": 3},
    "odd vocabulary": {"vocab_size": 197},
    "biases": {"attention_bias": True, "mlp_bias": True},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_the_models_own_and_the_same_in_any_chunks(shape: str, dtype: torch.dtype) -> None:
    model = build_model("llama", dtype=dtype, **{"vocab_size": 259, **SHAPES[shape]})
    decoder = built(model)
    ids = torch.randint(3, 190, (75,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0].float()
    whole = run(decoder, ids, [])
    size = float(theirs.abs().max())
    assert float((whole - theirs).abs().max()) <= (1e-5 if dtype == torch.float32 else 0.06) * size
    for number, cuts in enumerate(([1], [16, 32], [31, 33, 34], list(range(1, 75)))):
        assert torch.equal(run(decoder, ids, cuts, 8 * number), whole)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "nf4, single", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_give_what_their_dense_weights_do(kind: str, dtype: torch.dtype) -> None:
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "head_dim": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    packed, dense = (build_model("llama", dtype=dtype, vocab_size=259, **sizes) for _ in range(2))
    for ours, theirs in zip(decoder_layers(packed), decoder_layers(dense), strict=True):
        for part, names in (("self_attn", "qkvo"), ("mlp", ("gate", "up", "down"))):
            for name in names:
                own, other = (getattr(layer, part) for layer in (ours, theirs))
                linear = getattr(own, f"{name}_proj")
                new = (
                    EightBitLinear.pack(linear)
                    if kind == "int8"
                    else FourBitLinear.pack(linear, kind[:3], "single" not in kind)
                )
                setattr(own, f"{name}_proj", new)
                getattr(other, f"{name}_proj").weight.data = new.dense()
    ids = list(range(3, 50))
    assert torch.equal(run(built(packed), ids, []), run(built(dense), ids, []))


def test_what_the_kernels_do_not_run_says_why() -> None:
    for family, reason in (("gpt2", "rotary positions"), ("phi", "other parts")):
        said = build_decoder(build_model(family))
        assert isinstance(said, str) and reason in said
    model = build_model("llama")
    model.to(torch.float16)  # pyright: ignore[reportArgumentType]
    assert build_decoder(model) == "it is float16 on cpu"


def test_a_layer_of_other_numbers_is_refused() -> None:
    model = build_model("llama")
    layer: Any = decoder_layers(model)[1]
    own = layer.mlp.forward
    layer.mlp.forward = lambda x: own(x) * 1.01
    said = build_decoder(model)
    assert isinstance(said, str) and "layer 1" in said and "other numbers" in said


def test_rows_that_do_not_fit_are_refused_before_anything_is_written() -> None:
    decoder = built(build_model("llama"))
    decoder.allocate(4)
    good = {
        "embeddings": decoder.embed(torch.tensor([5, 6])).contiguous(),
        "positions": np.array([0, 1]),
        "tables": np.array([0, 0]),
        "blocks": np.array([[0, 1]], dtype=np.int32),
        "segments": [(0, 2, None)],
        "wanted": np.array([1]),
    }
    decoder.step(Rows(**good))
    bad: list[dict[str, Any]] = [
        {"embeddings": good["embeddings"].double()},
        {"embeddings": good["embeddings"][:1]},
        {"positions": np.array([0, 32])},
        {"positions": np.array([-1, 0])},
        {"tables": np.array([0, 1])},
        {"blocks": np.array([[0, 4]], dtype=np.int32)},
        {"blocks": np.array([[0, -1]], dtype=np.int32)},
        {"segments": [(0, 1, None)]},
        {"segments": [(1, 2, None)]},
        {"wanted": np.array([2])},
    ]
    for change in bad:
        with pytest.raises(KernelError, match="do not fit together"):
            decoder.step(Rows(**{**good, **change}))
