"""`build_batch`: concatenated documents, each with its own positions and targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lamina.data.batch import Layout, build_batch, build_units, in_best_order
from lamina.data.example import EncodedExample


def example(ids: list[int], supervised: list[int]) -> EncodedExample:
    mask = np.zeros(len(ids), dtype=bool)
    mask[supervised] = True
    return EncodedExample(np.array(ids, dtype=np.int32), mask, row=1)


def test_documents_lie_end_to_end_with_positions_that_restart() -> None:
    batch = build_batch([example([5, 6, 7], [2]), example([8], []), example([9, 10], [1])])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 10]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert batch.document_lengths == [3, 1, 2]
    assert (batch.tokens, batch.supervised_tokens) == (6, 2)


def test_targets_are_predicted_from_the_position_before_them() -> None:
    batch = build_batch([example([5, 6, 7, 8], [1, 3]), example([9, 10, 11], [1, 2])])
    assert batch.targets.tolist() == [6, 8, 10, 11]
    assert batch.predicting.tolist() == [0, 2, 4, 5]
    assert batch.input_ids[0, batch.predicting + 1].tolist() == batch.targets.tolist()


def test_random_batches_predict_within_their_own_document() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        examples = []
        for length in rng.integers(1, 12, size=rng.integers(1, 6)):
            mask = rng.random(length) < 0.5
            mask[0] = False
            examples.append(EncodedExample(rng.integers(0, 99, length).astype(np.int32), mask, row=1))
        batch = build_batch(examples)
        document = np.repeat(np.arange(len(examples)), batch.document_lengths)
        assert (document[batch.predicting] == document[batch.predicting + 1]).all()
        assert batch.tokens == sum(batch.document_lengths) == sum(map(len, examples))
        assert batch.supervised_tokens == sum(e.supervised_tokens for e in examples)
        expected = np.concatenate([e.input_ids[e.supervised] for e in examples])
        assert batch.targets.tolist() == expected.tolist()


def test_tensors_are_int64_and_there_may_be_no_target() -> None:
    batch = build_batch([example([5, 6], [])])
    tensors = (batch.input_ids, batch.position_ids, batch.predicting, batch.targets)
    assert {tensor.dtype for tensor in tensors} == {torch.int64}
    assert batch.targets.shape == batch.predicting.shape == (0,)


def test_supervised_first_token_is_a_broken_invariant() -> None:
    with pytest.raises(AssertionError, match="first token"):
        build_batch([example([5, 6], [1]), example([7, 8], [0])])


def test_moving_to_the_cpu_copies_nothing() -> None:
    batch = build_batch([example([5, 6], [1])])
    assert batch.to(torch.device("cpu")) is batch


def test_moving_to_another_device_moves_every_tensor() -> None:
    moved = build_batch([example([5, 6], [1])]).to(torch.device("meta"))
    tensors = (moved.input_ids, moved.position_ids, moved.predicting, moved.targets)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.document_lengths == [2]


def test_padded_batches_have_every_example_in_order_and_little_padding() -> None:
    layout, rng = Layout(together=False, own_attention=True, padded=True), np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(2, 60, size=rng.integers(1, 12)).tolist()
        examples = [example(list(range(length)), [length - 1]) for length in lengths]
        units = build_units(examples, layout)
        assert [each for (batch,) in units for each in batch.examples] == examples
        for (batch,) in units:
            assert batch.document_lengths == [len(each) for each in batch.examples]
            assert batch.tokens >= 0.8 * len(batch.document_lengths) * max(batch.document_lengths)
        ordered = in_best_order(examples, layout)
        assert sorted(map(len, ordered)) == list(map(len, ordered)) == sorted(lengths)
        assert len(build_units(ordered, layout)) <= len(units)
    assert build_units([example([5], [])], layout) == []
