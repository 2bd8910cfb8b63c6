"""Documents divided over processes: the loss, gradients and adapters of whole ones, up to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lamina
from lamina.compute.fusion import fast_path
from lamina.config.methods.lora import LoraConfig
from lamina.data.batch import build_batch
from lamina.data.example import EncodedExample
from lamina.distributed.group import Group
from lamina.distributed.world import ALONE, World
from lamina.losses.cross_entropy import CrossEntropy
from lamina.methods.shared.base import inject
from lamina.runs import Run
from lamina.runs.events import Evaluation, Step
from lamina.structure.head import find_head
from lamina.training.step import evaluate_loss, training_step
from tests.support.models_zoo import build_model
from tests.support.processes import values
from tests.support.ranks import run_ranks, values_of


def examples(lengths: list[int], seed: int = 0) -> list[EncodedExample]:
    """Documents with a target in the second half alone, so that some part may have none."""
    rng = np.random.default_rng(seed)
    return [
        EncodedExample(rng.integers(0, 64, n, dtype=np.int32), np.arange(n) >= max(1, n // 2), row=1) for n in lengths
    ]


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_parts_are_the_whole(parts: int) -> None:
    batch = build_batch(examples([5, 1, 9, 2]))
    cut = [batch.part(number, parts) for number in range(parts)]
    ids = torch.cat([part.input_ids for part in cut], dim=1)[0]
    assert ids[: batch.tokens].tolist() == batch.input_ids[0].tolist()
    size = cut[0].tokens
    assert {part.tokens for part in cut} == {size}
    assert all(sum(part.document_lengths) == parts * size for part in cut)
    places = torch.cat([part.predicting + number * size for number, part in enumerate(cut)])
    assert places.tolist() == batch.predicting.tolist()
    assert torch.cat([part.targets for part in cut]).tolist() == batch.targets.tolist()


@pytest.mark.parametrize(
    ("family", "parts"), [("llama", 3), ("gemma2", 2), pytest.param("gpt2", 2, marks=pytest.mark.slow)]
)
def test_gradients_of_parts_add_up(family: str, parts: int) -> None:
    """Documents of odd lengths, cut anywhere; fewer key heads than processes, windows and softcaps."""
    model = build_model(family)
    injection = inject(model, LoraConfig(r=3), 0)
    generator = torch.Generator().manual_seed(1)
    for tensor in injection.tensors().values():
        tensor.data.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    head, tensors = find_head(model), list(injection.tensors().values())
    micro_batches = [examples([7, 30]), examples([3]), examples([12, 1, 8], seed=1)]
    optimizer = torch.optim.SGD(tensors, lr=0.0)
    model.train()

    def step(world: World) -> tuple[float, float, list[torch.Tensor]]:
        if isinstance(world, Group):
            world.form_teams(parts)
        taken: list[torch.Tensor] = []
        check = lambda: taken.extend(t.grad.clone() for t in tensors if t.grad is not None)  # noqa: E731
        parts_of = (model, head, CrossEntropy(), optimizer, tensors, micro_batches)
        with fast_path(model, longest=40, fuse=False) as path:
            assert path.layout.together and not path.layout.own_attention
            result = training_step(*parts_of, 0.0, 0.0, check=check, layout=path.layout, world=world, seed=4)
            rows = [example for examples in micro_batches for example in examples]
            evaluated = evaluate_loss(model, head, CrossEntropy(), rows, 2, layout=path.layout, world=world)
        return result.loss, evaluated.loss, taken

    loss, evaluated, gradients = step(ALONE)
    whole = torch.cat([gradient.flatten() for gradient in gradients])
    for found in values_of(run_ranks(2 * parts, step)):
        assert found[0] == pytest.approx(loss, rel=1e-5)
        assert found[1] == pytest.approx(evaluated, rel=1e-5)
        other = torch.cat([gradient.flatten() for gradient in found[2]])
        assert float((other - whole).norm()) <= 1e-4 * float(whole.norm())


@pytest.mark.parametrize("loss", ["cross_entropy", "eaft"])
def test_a_run_on_parts_of_documents(loss: str, model_folder: Path, tmp_path: Path) -> None:
    def trained(size: int, sp_size: int) -> tuple[list[float], list[float]]:
        config: dict[str, Any] = values(tmp_path, model_folder, f"run{sp_size}", "lora")
        config["method"] = {**config["method"], "lora_dropout": 0.0}
        config["distributed"], config["loss"] = {"sp_size": sp_size}, {"type": loss}
        if size == 1:
            run = lamina.train(config)
        else:
            values_of(run_ranks(size, lambda world: lamina.train(config, world=world).path))
            run = Run(Path(config["output_dir"]))
        losses = [event.loss for event in run.events(Step)]
        return losses, [event.eval_loss for event in run.events(Evaluation)]

    (whole, whole_evaluated), (parts, parts_evaluated) = trained(1, 1), trained(2, 2)
    assert parts == pytest.approx(whole, rel=2e-4)
    assert parts_evaluated == pytest.approx(whole_evaluated, rel=2e-4)


@pytest.mark.parametrize(
    ("size", "changes", "said"),
    [
        (2, {"distributed": {"sp_size": 3}}, "3 does not divide the number of processes, 2"),
        (4, {"distributed": {"sp_size": 4}}, "4 does not divide the 6 attention heads"),
        (2, {"distributed": {"sp_size": 2}, "method": {"type": "prefix_tuning"}}, "puts rows before whole documents"),
        (2, {"distributed": {"sp_size": 2}, "loss": {"type": "asft"}}, "loss 'asft' needs whole documents"),
    ],
)
def test_what_cannot_be_divided(
    size: int, changes: dict[str, Any], said: str, model_folder: Path, tmp_path: Path
) -> None:
    config = {**values(tmp_path, model_folder, "run", "lora"), **changes}
    outcomes = run_ranks(size, lambda world: lamina.train(config, world=world).path)
    assert "distributed.sp_size" in outcomes[0].message
    assert said in outcomes[0].message
