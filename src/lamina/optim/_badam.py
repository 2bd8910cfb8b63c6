"""BAdam: AdamW on one decoder layer at a time; after `switch_interval` steps the next one has its turn.

    turn t = floor((n - 1) / switch_interval) of update n        block = the layer whose turn it is
    AdamW on the block's tensors, whose moments start at zero with the turn; no other tensor moves

Luo et al. 2024, "BAdam: A Memory Efficient Full Parameter Optimization Method for Large Language Models",
arXiv:2404.02827. As there, what is outside of the decoder layers (embedding, head, last norm) is not trained.

Only the block's tensors require a gradient, so the backward ends at the block, and neither gradients nor moments of
other layers exist. The turn is part of the block's state, so that a resumed run goes on where it was.
"""

from __future__ import annotations

from typing import Any

import torch

from lamina.config import TrainConfig
from lamina.config.optimizers import BadamConfig
from lamina.errors import ConfigError, Problem
from lamina.optim._adamw import FloatMoments, MomentsAdamW


class BlockAdamW(MomentsAdamW):
    """AdamW on one block at a time. A group's `block` is the number of its decoder layer, or None outside of them.

    Attributes:
        blocks: The numbers of the blocks, ascending.
    """

    def __init__(self, config: TrainConfig, groups: list[dict[str, Any]]) -> None:
        """
        Raises:
            ConfigError: No tensor is in a decoder layer, or there is no block to start with.
        """
        self.settings = config.badam or BadamConfig()
        self.blocks = sorted({group["block"] for group in groups if group["block"] is not None})
        if not self.blocks:
            message = "'badam' trains one decoder layer after the other, and no trained tensor is in one."
            raise ConfigError(Problem("train.optim", message, "use another optimizer"))
        start = self.settings.start_block
        if start is not None and start >= len(self.blocks):
            message = f"{start} is none of the {len(self.blocks)} blocks, which are counted from 0."
            raise ConfigError(Problem("train.badam.start_block", message, "lower it"))
        super().__init__(groups, config.peak_learning_rate, config.betas(), config.epsilon, FloatMoments())
        self._turn = -1

    def choose(self) -> None:
        """Makes the tensors of the next update's block, and no others, require a gradient."""
        turn = self._next_turn()
        block = self.blocks[self.place(turn)]
        for group in self.param_groups:
            for tensor in group["params"]:
                tensor.requires_grad_(group["block"] == block)
                state = self.state.get(tensor)
                if state and int(state["turn"]) != turn:
                    del self.state[tensor]
        self._turn = turn

    def place(self, turn: int) -> int:
        """Returns the place in `blocks` of the block that has a turn, from 0."""
        settings, count = self.settings, len(self.blocks)
        if settings.switch_mode == "random":
            cycle = torch.randperm(count, generator=torch.Generator().manual_seed(turn // count))
            return int(cycle[turn % count])
        direction = {"ascending": 1, "descending": -1, "fixed": 0}[settings.switch_mode]
        first = count - 1 if settings.switch_mode == "descending" else 0
        start = first if settings.start_block is None else settings.start_block
        return (start + direction * turn) % count

    def move(self, tensor: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        super().move(tensor, grad, group)
        self.state[tensor]["turn"] = torch.tensor(float(self._turn))

    def _next_turn(self) -> int:
        """The turn of the next update, by the state of the last one's block."""
        states = [state for state in self.state.values() if state]
        if not states:
            return 0
        turn = max(int(state["turn"]) for state in states)
        steps = max(int(state["step"]) for state in states if int(state["turn"]) == turn)
        return turn + (steps >= self.settings.switch_interval)
