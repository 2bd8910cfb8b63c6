"""Each optimizer's arithmetic against a few lines of its paper's, and 8 bits against bitsandbytes' own optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from lamina.config import TrainConfig
from lamina.config.optimizers import GaloreConfig
from lamina.optim import BlockAdamW, Layerwise, build_optimizer
from lamina.optim._adamw import FloatMoments, Update
from lamina.optim._apollo import limited, random_projection
from lamina.optim._galore import project, project_back, project_moments, update_subspace

STEPS = 10
LR, DECAY = 0.02, 0.1


def start(*shapes: Sequence[int]) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {str(i): nn.Parameter(torch.randn(*shape, generator=generator)) for i, shape in enumerate(shapes)}


def gradients(tensors: dict[str, nn.Parameter], steps: int = STEPS) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(t.shape, generator=generator) for t in tensors.values()] for _ in range(steps)]


def run(optim: str, tensors: dict[str, nn.Parameter], vocabulary: Sequence[str] = (), **settings: Any) -> None:
    """Takes the steps with the configured optimizer."""
    values = {"optim": optim, "learning_rate": LR, "weight_decay": DECAY, **settings}
    optimizer = build_optimizer(TrainConfig.model_validate(values), tensors, vocabulary=vocabulary)
    for grads in gradients(tensors):
        for tensor, grad in zip(tensors.values(), grads, strict=True):
            tensor.grad = grad.clone()
        optimizer.step()


def adam(
    w: torch.Tensor, grads: list[torch.Tensor], b1: float = 0.9, b2: float = 0.999, decay: float = DECAY
) -> torch.Tensor:
    m = v = torch.zeros_like(w)
    for t, g in enumerate(grads, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        w = (1 - LR * decay) * w - LR * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + 1e-8)
    return w


def test_adamw_over_float_moments_is_adamw() -> None:
    tensors = start((7, 5))
    expected = adam(tensors["0"].detach(), [g for (g,) in gradients(tensors)], 0.8, 0.95)
    target, state = tensors["0"].detach().clone(), {}
    for step, (grad,) in enumerate(gradients(tensors), start=1):
        FloatMoments().move_(target, grad, state, Update(step, LR, (0.8, 0.95), 1e-8, DECAY))
    torch.testing.assert_close(target, expected)
    run("adamw_torch", tensors, adam_beta1=0.8, adam_beta2=0.95)
    torch.testing.assert_close(tensors["0"].detach(), expected)


@pytest.mark.parametrize(
    ("settings", "betas"), [({}, (0.9, 0.99)), ({"adam_beta1": 0.5, "adam_beta2": 0.7}, (0.5, 0.7))]
)
def test_lion(settings: dict[str, float], betas: tuple[float, float]) -> None:
    tensors = start((7, 5), (6,))
    expected = []
    for i, decay in enumerate((DECAY, 0.0)):
        w, m = tensors[str(i)].detach(), torch.zeros_like(tensors[str(i)])
        for grads in gradients(tensors):
            w = (1 - LR * decay) * w - LR * torch.sign(betas[0] * m + (1 - betas[0]) * grads[i])
            m = betas[1] * m + (1 - betas[1]) * grads[i]
        expected.append(w)
    run("lion", tensors, **settings)
    for tensor, w in zip(tensors.values(), expected, strict=True):
        torch.testing.assert_close(tensor.detach(), w)


def newton_schulz(G: torch.Tensor) -> torch.Tensor:
    X = (G.T if G.shape[0] > G.shape[1] else G).bfloat16()
    X = X / X.norm()
    for _ in range(5):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return (X.T if G.shape[0] > G.shape[1] else X).float()


def test_muon_for_hidden_matrices_and_adamw_for_the_rest() -> None:
    tensors = start((7, 5), (4, 9), (6,), (8, 3))
    grads = gradients(tensors)
    expected = []
    for i in (0, 1):
        w, m = tensors[str(i)].detach(), torch.zeros_like(tensors[str(i)])
        for g in grads:
            m = 0.95 * m + 0.05 * g[i]
            update = newton_schulz(0.05 * g[i] + 0.95 * m)
            w = (1 - LR * DECAY) * w - LR * 0.2 * math.sqrt(max(w.shape)) * update
        expected.append(w)
    expected.append(adam(tensors["2"].detach(), [g[2] for g in grads], decay=0.0))
    expected.append(adam(tensors["3"].detach(), [g[3] for g in grads]))
    run("muon", tensors, vocabulary=["3"])
    before = start((7, 5), (4, 9), (6,), (8, 3))
    for name, w in zip(tensors, expected, strict=True):
        off, moved = (tensors[name].detach() - w).norm(), (w - before[name].detach()).norm()
        # Newton-Schulz runs in bfloat16, and rounds at other places here than in torch.
        assert off < (0.02 if name in "01" else 1e-5) * moved


def test_adafactor_takes_the_learning_rate_as_it_is() -> None:
    tensors = start((7, 5), (6,))
    grads = gradients(tensors)
    expected = []
    for i, decay in enumerate((DECAY, 0.0)):
        w = tensors[str(i)].detach()
        rows, columns, square = torch.zeros(7), torch.zeros(5), torch.zeros_like(w)
        for t, g in enumerate((step[i] for step in grads), start=1):
            b2 = 1 - t**-0.8
            if w.ndim == 2:
                rows = b2 * rows + (1 - b2) * (g * g).mean(1)
                columns = b2 * columns + (1 - b2) * (g * g).mean(0)
                square = torch.outer(rows, columns) / rows.mean()
            else:
                square = b2 * square + (1 - b2) * g * g
            update = g / square.sqrt()
            update = update / max(1.0, float(update.square().mean().sqrt()))
            w = w - LR * decay * w - LR * update
        expected.append(w)
    run("adafactor", tensors)
    for tensor, w in zip(tensors.values(), expected, strict=True):
        torch.testing.assert_close(tensor.detach(), w, rtol=1e-5, atol=1e-5)


def galore(w: torch.Tensor, grads: list[torch.Tensor], side: str, rank: int, gap: int, scale: float) -> torch.Tensor:
    """Algorithm 2 of the paper, with the moments carried over as stated."""
    P = m = v = torch.empty(0)
    for t, g in enumerate(grads, start=1):
        if side == "right":
            g = g.T
        if (t - 1) % gap == 0:
            new = torch.linalg.svd(g)[0][:, :rank]
            if t == 1:
                m = v = torch.zeros(rank, g.shape[1])
            else:
                C = new.T @ P
                m, v = C @ m, C**2 @ v + (1 - (C**2).sum(1, keepdim=True)) * v.mean(0)
            P = new
        m, v = 0.9 * m + 0.1 * P.T @ g, 0.999 * v + 0.001 * (P.T @ g) ** 2
        update = P @ ((m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8))
        w = (1 - LR * DECAY) * w - LR * scale * (update.T if side == "right" else update)
    return w


@pytest.mark.parametrize(
    ("proj_type", "sides"),
    [
        ("std", ("right", "left")),
        ("reverse_std", ("left", "right")),
        ("left", ("left",) * 2),
        ("right", ("right",) * 2),
    ],
)
def test_galore(proj_type: str, sides: tuple[str, str]) -> None:
    tensors = start((9, 6), (5, 8), (6,), (3, 20), (10, 10))
    grads = gradients(tensors)
    expected = [
        galore(tensors[str(i)].detach(), [g[i] for g in grads], sides[i], rank=3, gap=4, scale=0.5) for i in (0, 1)
    ]
    # What is no larger than the rank, no matrix, or in the vocabulary, gets plain AdamW.
    expected += [adam(tensors[str(i)].detach(), [g[i] for g in grads], decay=DECAY if i > 2 else 0) for i in (2, 3, 4)]
    section = {"rank": 3, "update_proj_gap": 4, "scale": 0.5, "proj_type": proj_type}
    run("galore_adamw", tensors, vocabulary=["4"], galore=section)
    for tensor, w in zip(tensors.values(), expected, strict=True):
        torch.testing.assert_close(tensor.detach(), w, rtol=1e-5, atol=1e-5)


def test_galore_full_projects_both_sides() -> None:
    grad, state = torch.randn(9, 6, generator=torch.Generator().manual_seed(0)), {}
    update_subspace(state, grad, GaloreConfig(rank=3, proj_type="full"), FloatMoments())
    low = project(grad, state)
    singular = torch.linalg.svdvals(grad)[:3]
    torch.testing.assert_close(low, torch.diag(singular), rtol=1e-5, atol=1e-5)
    best = torch.linalg.svd(grad)
    torch.testing.assert_close(
        project_back(low, state), best[0][:, :3] @ torch.diag(singular) @ best[2][:3], rtol=1e-5, atol=1e-5
    )


def test_a_subspace_that_turns_within_itself_changes_nothing() -> None:
    """Where only signs and order of the basis change, carrying the moments over is exact, to float64's rounding."""
    U, _ = torch.linalg.qr(torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    strengths = torch.tensor([[3.0, 2.0, 1.0], [1.0, -3.0, 2.0], [-2.0, 1.0, 3.0], [1.5, 3.0, -0.5]]).double()
    results = []
    for gap in (1, 100):
        weight = nn.Parameter(torch.zeros(8, 6, dtype=torch.float64))
        settings = {"rank": 3, "update_proj_gap": gap, "proj_type": "left"}
        config = TrainConfig.model_validate({"optim": "galore_adamw", "learning_rate": LR, "galore": settings})
        optimizer = build_optimizer(config, {"w": weight})
        for strength in strengths:
            weight.grad = U @ torch.diag(strength) @ V.T
            optimizer.step()
        results.append(weight.detach())
    # Adam divides by sqrt(v) + eps, so where a gradient is small, rounding in it is not; in float32 that shows.
    torch.testing.assert_close(results[0], results[1], rtol=0.0, atol=1e-6 * LR)


def test_moments_that_are_carried_over_keep_their_size() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, square = torch.randn(4, 5, generator=generator), torch.rand(4, 5, generator=generator)
    new_basis = torch.linalg.qr(torch.randn(9, 9, generator=generator))[0][:4, :4]
    turned, spread = project_moments(mean, square, new_basis)
    torch.testing.assert_close(turned, new_basis @ mean)
    assert (spread >= square.min(0).values - 1e-6).all()
    assert (spread <= square.max(0).values + 1e-6).all()
    same, kept = project_moments(mean, square, torch.diag(torch.tensor([1.0, -1.0, 1.0, -1.0])))
    torch.testing.assert_close(same, mean * torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]))
    torch.testing.assert_close(kept, square)
    _, fresh = project_moments(mean, square, torch.zeros(4, 4))
    torch.testing.assert_close(fresh, square.mean(0).expand(4, 5))


def apollo(
    w: torch.Tensor, grads: list[torch.Tensor], draw: Callable[[int], torch.Tensor], gap: int, scale: float, whole: bool
) -> torch.Tensor:
    """Algorithm 1 of the paper with Fira's limit, for no more columns than rows; `draw` gives a turn's projection."""
    P = draw(0)
    m = v = torch.zeros(w.shape[0], P.shape[0])
    norm = torch.tensor(math.inf)
    for t, g in enumerate(grads, start=1):
        if (t - 1) % gap == 0:
            P = draw((t - 1) // gap)
        R = g @ P.T
        m, v = 0.9 * m + 0.1 * R, 0.999 * v + 0.001 * R**2
        N = m / (v.sqrt() + 1e-8)
        U = g * (N.norm() / R.norm() if whole else N.norm(dim=1, keepdim=True) / R.norm(dim=1, keepdim=True))
        U = U * min(1.0, float(1.01 * norm / U.norm()))
        norm = U.norm()
        correction = math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        w = (1 - LR * DECAY) * w - LR * correction * math.sqrt(scale) * U
    return w


@pytest.mark.parametrize("scale_type", ["channel", "tensor"])
@pytest.mark.parametrize("rank", [1, 3])
def test_apollo(scale_type: str, rank: int) -> None:
    tensors = start((9, 6), (5, 8), (6,), (rank, 20), (10, 10))
    grads = gradients(tensors)
    vocabulary = ["4"]
    section = {"rank": rank, "update_proj_gap": 4, "scale": 2.0, "scale_type": scale_type}
    config = TrainConfig.model_validate({"optim": "apollo_adamw", "learning_rate": LR, "apollo": section})
    places = list(build_optimizer(config, tensors, vocabulary=vocabulary)._places)  # pyright: ignore[reportAttributeAccessIssue]
    expected = []
    for i in (0, 1):
        w, own = tensors[str(i)].detach(), [g[i] for g in grads]
        place = next(place for place, tensor in enumerate(places) if tensor is tensors[str(i)])
        draw = partial(random_projection, rank, min(w.shape), place)
        turned = (lambda matrix: matrix.T) if i == 1 else (lambda matrix: matrix)
        found = apollo(turned(w), [turned(g) for g in own], draw, 4, 2.0, scale_type == "tensor")
        expected.append(turned(found))
    # What is no larger than the rank, no matrix, or in the vocabulary, gets plain AdamW; a matrix of one row is none.
    decays = (0.0, DECAY if rank > 1 else 0.0, DECAY)
    expected += [adam(tensors[str(i)].detach(), [g[i] for g in grads], decay=decays[i - 2]) for i in (2, 3, 4)]
    run("apollo_adamw", tensors, vocabulary=vocabulary, apollo=section)
    for tensor, w in zip(tensors.values(), expected, strict=True):
        torch.testing.assert_close(tensor.detach(), w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("proj", ["random", "svd"])
@pytest.mark.parametrize(("scale_type", "rank"), [("channel", 3), ("tensor", 1)])
@pytest.mark.parametrize("front", [False, True])
def test_apollo_as_in_its_authors_package(
    proj: str, scale_type: str, rank: int, front: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without weight decay, which is applied before the update here, and after it there. `front` changes nothing."""
    package = pytest.importorskip("apollo_torch")

    def ours(self: Any, weights: torch.Tensor, rank: int, type: str, seed: int) -> torch.Tensor:
        if self.svd_count == 0:
            self.place = seed - 1  # it counts from 1
        P = random_projection(rank, min(weights.shape), self.place, self.svd_count)
        self.svd_count += 1
        return P.T if type == "left" else P

    monkeypatch.setattr("apollo_torch.random_projector.GradientProjector.get_orthogonal_matrix", ours)
    tensors, theirs = start((9, 6), (5, 8)), start((9, 6), (5, 8))
    settings = {"rank": rank, "update_proj_gap": 4, "scale": 2.0, "scale_type": scale_type, "proj": proj}
    group = {"params": list(theirs.values()), **settings, "proj_type": "std"}
    optimizer = package.APOLLOAdamW([group], lr=LR, eps=1e-12, weight_decay=0.0, scale_front=front)
    for grads in gradients(theirs):
        for tensor, grad in zip(theirs.values(), grads, strict=True):
            tensor.grad = grad.clone()
        optimizer.step()
    run("apollo_adamw", tensors, apollo=settings, weight_decay=0.0, adam_epsilon=1e-12)
    for tensor, other in zip(tensors.values(), theirs.values(), strict=True):
        torch.testing.assert_close(tensor.detach(), other.detach(), rtol=1e-4, atol=1e-5)


def test_apollos_limit_outlives_a_step_without_a_gradient() -> None:
    state: dict[str, torch.Tensor] = {}
    sizes = [float(limited(torch.full((4, 4), value), state).norm()) for value in (1.0, 0.0, 1.0, 9.0, 2.0)]
    assert sizes == pytest.approx([4.0, 0.0, 4.0, 4.04, 4.0804], rel=1e-5)


def test_apollos_projections_keep_lengths_on_average() -> None:
    drawn = torch.stack([random_projection(16, 64, place, turn) for place in range(8) for turn in range(8)])
    assert float(drawn.square().sum(1).mean()) == pytest.approx(1.0, abs=0.02)
    assert len({float(each[0, 0]) for each in drawn}) == 64, "each is another one"


def blocks(count: int) -> dict[str, nn.Parameter]:
    """An embedding, and two tensors for each layer."""
    shapes = {"embed.weight": (8, 5), **{f"m.layers.{i}.{n}": s for i in range(count) for n, s in PARTS.items()}}
    return dict(zip(shapes, start(*shapes.values()).values(), strict=True))


PARTS = {"w.weight": (7, 5), "n.weight": (6,)}


def test_badam() -> None:
    tensors, interval = blocks(3), 2
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    grads = [dict(zip(tensors, each, strict=True)) for each in gradients(tensors, 8)]
    config = {"optim": "badam", "learning_rate": LR, "weight_decay": DECAY, "badam": {"switch_interval": interval}}
    optimizer = build_optimizer(TrainConfig.model_validate(config), tensors)
    assert isinstance(optimizer, BlockAdamW)
    for step in grads:
        optimizer.choose()
        for name, tensor in tensors.items():
            tensor.grad = step[name].clone() if tensor.requires_grad else None
        optimizer.step()
    for name, tensor in tensors.items():
        expected = before[name]
        for turn, block in enumerate((0, 1, 2, 0)):
            if f".{block}." in name:  # each turn begins with new moments
                own = [step[name] for step in grads[interval * turn : interval * (turn + 1)]]
                expected = adam(expected, own, decay=DECAY if tensor.ndim > 1 else 0.0)
        torch.testing.assert_close(tensor.detach(), expected)


def test_badam_as_in_its_authors_package() -> None:
    """In float32, where its copies of weights are exact. Its first turn is a step shorter, so it is left out."""
    package = pytest.importorskip("badam")
    tensors, theirs = blocks(3), blocks(3)
    base = torch.optim.AdamW([{"params": [t]} for t in theirs.values()], lr=LR, weight_decay=0.0)
    other = package.BlockOptimizer(base, list(theirs.items()), switch_block_every=3, switch_mode="ascending")
    config = {"optim": "badam", "learning_rate": LR, "badam": {"switch_interval": 3}}
    optimizer = build_optimizer(TrainConfig.model_validate(config), tensors)
    assert isinstance(optimizer, BlockAdamW)

    def step(optimizer: Any, its: dict[str, nn.Parameter], values: list[torch.Tensor]) -> None:
        for tensor, grad in zip(its.values(), values, strict=True):
            tensor.grad = grad.clone() if tensor.requires_grad else None
        optimizer.step()

    steps = gradients(theirs, 12)
    for values in steps[:2]:
        step(other, theirs, values)
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(theirs[name])
    optimizer.settings = optimizer.settings.model_copy(update={"start_block": 1})
    for values in steps[2:]:
        step(other, theirs, values)
        optimizer.choose()
        step(optimizer, tensors, values)
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor.detach(), theirs[name].detach(), msg=name)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, [0, 1, 2, 3, 0, 1]),
        ({"switch_mode": "descending"}, [3, 2, 1, 0, 3, 2]),
        ({"switch_mode": "descending", "start_block": 1}, [1, 0, 3, 2, 1, 0]),
        ({"switch_mode": "fixed", "start_block": 2}, [2] * 6),
    ],
)
def test_turns_of_badam(settings: dict[str, Any], wanted: list[int]) -> None:
    assert [block_optimizer(settings).place(turn) for turn in range(6)] == wanted


def test_random_turns_of_badam_are_another_order_in_each_round() -> None:
    found = [block_optimizer({"switch_mode": "random"}).place(turn) for turn in range(40)]
    rounds = [tuple(found[at : at + 4]) for at in range(0, 40, 4)]
    assert all(sorted(one) == [0, 1, 2, 3] for one in rounds)
    assert len(set(rounds)) > 3


def block_optimizer(settings: dict[str, Any]) -> BlockAdamW:
    config = TrainConfig.model_validate({"optim": "badam", "learning_rate": LR, "badam": settings})
    optimizer = build_optimizer(config, blocks(4))
    assert isinstance(optimizer, BlockAdamW)
    return optimizer


@pytest.mark.parametrize("name", ["galore", "apollo"])
def test_layerwise_is_the_same_with_the_gradients_let_go(name: str) -> None:
    settings = {"learning_rate": LR, name: {"rank": 3, "update_proj_gap": 2}}
    results = []
    for optim in (f"{name}_adamw", f"{name}_adamw_layerwise"):
        tensors = start((9, 6), (6, 4), (4,))
        clip = {"max_grad_norm": 0.0} if optim.endswith("layerwise") else {}
        optimizer = build_optimizer(TrainConfig.model_validate({"optim": optim, **settings, **clip}), tensors)
        x = torch.randn(5, 9, generator=torch.Generator().manual_seed(2))
        norms: list[torch.Tensor] = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = (torch.tanh(x @ tensors["0"]) @ tensors["1"] + tensors["2"]).square().mean()
            if isinstance(optimizer, Layerwise):
                with optimizer.moving():
                    loss.backward()
                assert all(tensor.grad is None for tensor in tensors.values())
                norms.append(torch.stack(list(optimizer.gradient_norms.values())).norm())
            else:
                loss.backward()
                norms.append(torch.stack([tensor.grad.norm() for tensor in tensors.values()]).norm())
                optimizer.step()
        results.append(([tensor.detach() for tensor in tensors.values()], norms))
    (plain, plain_norms), (ours, norms) = results
    torch.testing.assert_close(ours, plain, rtol=0, atol=0)
    torch.testing.assert_close(norms, plain_norms)


def test_a_backward_outside_of_a_step_moves_nothing() -> None:
    tensors = start((9, 6))
    before = tensors["0"].detach().clone()
    values = {"optim": "galore_adamw_layerwise", "learning_rate": LR, "galore": {"rank": 3}, "max_grad_norm": 0.0}
    build_optimizer(TrainConfig.model_validate(values), tensors)
    tensors["0"].square().sum().backward()
    torch.testing.assert_close(tensors["0"].detach(), before, rtol=0, atol=0)
    assert tensors["0"].grad is not None


def test_8bit_moments_are_those_of_bitsandbytes() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    tensors, theirs = start((80, 70), (60,)), start((80, 70), (60,))
    groups = [{"params": [theirs["0"]], "weight_decay": DECAY}, {"params": [theirs["1"]], "weight_decay": 0.0}]
    optimizer = bnb.optim.AdamW8bit(groups, lr=LR)
    for grads in gradients(theirs):
        for tensor, grad in zip(theirs.values(), grads, strict=True):
            tensor.grad = grad.clone()
        optimizer.step()
    run("adamw_8bit", tensors)
    for ours, plain in zip(tensors.values(), theirs.values(), strict=True):
        torch.testing.assert_close(ours.detach(), plain.detach(), rtol=1e-5, atol=1e-5)


def test_8bit_galore_is_near_galore() -> None:
    pytest.importorskip("bitsandbytes")
    settings = {"galore": {"rank": 64, "update_proj_gap": 4, "scale": 1.0}}
    floats, bytes_ = start((90, 80)), start((90, 80))
    before = floats["0"].detach().clone()
    run("galore_adamw", floats, **settings)
    run("galore_adamw_8bit", bytes_, **settings)
    moved = (floats["0"].detach() - before).norm()
    distance = (floats["0"].detach() - bytes_["0"].detach()).norm()
    assert 0 < distance < 0.05 * moved


def test_only_matrices_decay() -> None:
    """A vector does not, nor one that peft's format stores as a matrix with a side of 1, as IA3's scales."""
    tensors = {name: nn.Parameter(torch.ones(shape)) for name, shape in {"w": (3, 4), "b": (4,), "l": (4, 1)}.items()}
    optimizer = build_optimizer(TrainConfig(learning_rate=LR, weight_decay=DECAY), tensors)
    for tensor in tensors.values():
        tensor.grad = torch.zeros_like(tensor)
    optimizer.step()
    assert {name for name, tensor in tensors.items() if (tensor != 1.0).any()} == {"w"}
