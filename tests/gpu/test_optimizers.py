"""Paged optimizers, which exist on CUDA alone: run with `make gpu`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lamina.config import TrainConfig
from lamina.optim import build_optimizer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize(("paged", "plain"), [("paged_adamw_8bit", "adamw_8bit"), ("paged_adamw_32bit", "adamw_torch")])
def test_paged_is_not_paged_also_after_its_state_came_back(paged: str, plain: str) -> None:
    pytest.importorskip("bitsandbytes")
    results = []
    for optim in (paged, plain):
        generator = torch.Generator("cuda").manual_seed(0)
        weight = nn.Parameter(torch.randn(400, 300, device="cuda", generator=generator))  # large enough for a page
        config = TrainConfig.model_validate({"optim": optim, "learning_rate": 0.01})
        optimizer = build_optimizer(config, {"w": weight})
        for step in range(6):
            if step == 3 and optim == paged:
                assert not optimizer.state[weight]["state1"].is_cuda
                # As a checkpoint stores and restores it.
                stored = {key: value.cpu().clone() for key, value in optimizer.state[weight].items()}
                optimizer = build_optimizer(config, {"w": weight})
                optimizer.state[weight] = {key: value.to("cuda") for key, value in stored.items()}
            weight.grad = torch.randn(weight.shape, device="cuda", generator=generator)
            optimizer.step()
        results.append(weight.detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)
