"""Gradients do not depend on micro-batches, packing, or the company of other rows: odd lengths, one row, any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lamina.compute.fusion import fast_path
from lamina.config import load_config
from lamina.data.batch import PACKED, Layout
from lamina.data.example import EncodedExample
from lamina.data.mismatch import mismatched
from lamina.distributed.world import ALONE
from lamina.losses.base import Loss, build_loss
from lamina.losses.pairs import REFERENCE, unfit_pair
from lamina.methods.shared.base import Injection, inject
from lamina.methods.shared.score import SCORE, attach_score
from lamina.structure.head import Head, find_head
from lamina.training.backward import StepAbandoned
from lamina.training.step import evaluate_loss, training_step
from lamina.verification.paths import fill_adapter
from tests.support.models_zoo import build_model
from tests.support.preferences import example_of

LOSSES: dict[str, dict[str, Any]] = {
    "dpo": {"type": "dpo"},
    "rpo": {"type": "dpo", "loss_type": ["sigmoid", "sft"]},
    "ipo": {"type": "dpo", "loss_type": ["ipo"]},
    "kto": {"type": "kto", "desirable_weight": 1.5, "undesirable_weight": 1.0},
    "orpo": {"type": "orpo"},
    "simpo": {"type": "simpo"},
    "cpo": {"type": "cpo"},
    "reward": {"type": "reward", "center_rewards_coefficient": 0.1},
}
SEPARATE = Layout(together=False, own_attention=True)
PADDED = Layout(together=False, own_attention=True, padded=True)


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def parts(request: pytest.FixtureRequest) -> tuple[Injection, Head]:
    model = build_model(request.param)
    injection = inject(model, load_config({"data": {"train": "x"}, "method": {"r": 4}}).method, 0)
    fill_adapter(injection, 0)
    return injection, find_head(model)


def built(name: str, injection: Injection) -> tuple[Loss, Injection]:
    loss = build_loss(load_config({"data": {"train": "x"}, "loss": LOSSES[name]}).loss)
    if name == "reward":
        if hasattr(injection.model, SCORE):  # of the test before
            delattr(injection.model, SCORE)
        injection = attach_score(injection, 1)
    return loss, injection


def examples_of(lengths: Sequence[tuple[int, int, int]], seed: int) -> list[EncodedExample]:
    examples = []
    for row, (prompt, chosen, rejected) in enumerate(lengths):
        example = example_of([(prompt, chosen), (prompt, rejected)], row=row, seed=seed)
        values = {REFERENCE.format(n): -3.0 * example.sequence(n).supervised_tokens for n in range(2)}
        values |= {REFERENCE.format(f"companion/{n}"): -40.0 for n in range(2)}
        examples.append(example.with_values({**values, "margin": float(row % 2), "label": 1.0}))
    partners = [*examples[1:], examples[0]]
    pairs = zip(examples, partners, strict=True)
    return [
        EncodedExample(**{**_fields(example), "companion": mismatched(example, partner, 64)})
        for example, partner in pairs
    ]


def _fields(example: EncodedExample) -> dict[str, Any]:
    return {name: getattr(example, name) for name in example.__dataclass_fields__}


def gradient(
    loss: Loss, injection: Injection, head: Head, micro_batches: Sequence[Sequence[EncodedExample]], layout: Layout
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one optimizer step, taken before the update."""
    tensors, taken = injection.tensors(), {}

    def take() -> None:
        for name, tensor in tensors.items():
            taken[name] = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.clone()

    optimizer = torch.optim.SGD(tensors.values(), lr=0.0)
    parts = (injection.model, head, loss, optimizer, list(tensors.values()), micro_batches)
    result = training_step(*parts, learning_rate=0.0, max_grad_norm=0.0, check=take, layout=layout)
    return result.loss, taken


@pytest.mark.parametrize("name", LOSSES)
@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.tuples(st.integers(1, 17), st.integers(1, 15), st.integers(1, 15)), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_any_division_gives_the_same_step(
    name: str, lengths: list[tuple[int, int, int]], seed: int, parts: tuple[Injection, Head]
) -> None:
    injection, head = parts
    loss, injection = built(name, injection)
    examples = examples_of(lengths, seed)
    assume(not any(map(unfit_pair, examples)))  # equal answers are dropped; their gradients cancel out
    injection.model.eval()
    with fast_path(injection.model, longest=64) as path:
        assert path.layout == PACKED
        whole = gradient(loss, injection, head, [examples], path.layout)
        others = [
            gradient(loss, injection, head, [[example] for example in examples], path.layout),
            gradient(loss, injection, head, [examples[::-1]], path.layout),
            gradient(loss, injection, head, [examples[:1], examples[1:]] if examples[1:] else [examples], path.layout),
        ]
    others += [gradient(loss, injection, head, [examples], layout) for layout in (SEPARATE, PADDED)]
    size = torch.stack([tensor.norm() for tensor in whole[1].values()]).norm()
    for value, tensors in others:
        assert value == pytest.approx(whole[0], rel=1e-4, abs=1e-6)
        difference = torch.stack([(tensors[key] - tensor).norm() for key, tensor in whole[1].items()]).norm()
        assert float(difference) <= 2e-4 * float(size) + 1e-6


@pytest.mark.parametrize("name", LOSSES)
def test_the_hot_path_is_the_formula(name: str, parts: tuple[Injection, Head]) -> None:
    """Values and gradients, against plain autograd in float64 of the model's own outputs."""
    injection, head = parts
    loss, injection = built(name, injection)
    examples = examples_of([(5, 3, 7), (1, 1, 1), (12, 9, 2)], seed=3)
    injection.model.eval()
    with fast_path(injection.model, longest=64) as path:
        (examples,) = loss.over_step(injection.model, head, [examples], path.layout, ALONE)
        value, got = gradient(loss, injection, head, [examples], path.layout)
    tensors = injection.tensors()
    total = torch.zeros((), dtype=torch.float64)
    for example in examples:
        ids = [torch.from_numpy(example.sequence(n).input_ids).long()[None] for n in range(2)]
        outputs = [loss.outputs(injection.model, one).double() for one in ids]
        total = total + loss.formula(outputs, example)
    total = total / loss.count(examples)
    expected = torch.autograd.grad(total, list(tensors.values()), allow_unused=True)
    assert value == pytest.approx(float(total.detach()), rel=1e-5)
    size = torch.stack([each.norm() for each in expected if each is not None]).norm()
    for (key, _), each in zip(tensors.items(), expected, strict=True):
        if each is not None:
            assert float((got[key] - each).norm()) <= 1e-4 * float(size), key


@pytest.mark.parametrize(("name", "each"), [("kto", 1), ("dpo", 2)])
def test_an_evaluation_tells_how_far_it_is_and_stops_also_amid_what_runs_ahead(
    name: str, each: int, parts: tuple[Injection, Head]
) -> None:
    """KTO runs all mismatched answers before the first of the rows."""
    injection, head = parts
    loss, injection = built(name, injection)
    examples = examples_of([(5, 3, 7), (1, 1, 1), (12, 9, 2), (2, 3, 4)], seed=3)
    told: list[int] = []
    with fast_path(injection.model, longest=64) as path:
        inputs = (injection.model, head, loss, examples, 2)
        evaluate_loss(*inputs, progress=told.append, layout=path.layout)
        assert told == list(range(each, 5, each))
        told.clear()
        with pytest.raises(StepAbandoned):
            evaluate_loss(*inputs, stop=lambda: bool(told), progress=told.append, layout=path.layout)
        assert told == [each]


def test_a_step_stops_amid_what_runs_ahead(parts: tuple[Injection, Head]) -> None:
    injection, head = parts
    loss, injection = built("kto", injection)
    examples = examples_of([(5, 3, 7), (1, 1, 1)], seed=3)
    tensors, asked = list(injection.tensors().values()), []
    inputs = (injection.model, head, loss, torch.optim.SGD(tensors), tensors, [[example] for example in examples])

    def stop() -> bool:
        asked.append(True)
        return True

    with fast_path(injection.model, longest=64) as path, pytest.raises(StepAbandoned):
        training_step(*inputs, learning_rate=0.0, max_grad_norm=0.0, stop=stop, layout=path.layout)
    assert len(asked) == 1
    assert not any(tensor.grad is not None for tensor in tensors)
