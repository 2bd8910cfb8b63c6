"""Which runner answers for an adapter: the kernels in a mixed batch where they can, else the model's own code."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from lamina.compute.decoding import Decoder, NotMixed, build_decoder
from lamina.compute.ops.row_forms import RowForm
from lamina.engine.fused_runner import FusedRunner
from lamina.engine.runner import Runner
from lamina.engine.transformers_runner import TransformersRunner, Way
from lamina.methods.shared.base import Injection
from lamina.methods.shared.virtual_tokens import VirtualTokens

# Of the memory that is free, for keys and values; and never more than they need.
_SHARE_FOR_CACHE = 0.4


@dataclass(frozen=True)
class Part:
    """What answers for an adapter.

    Attributes:
        runner: The runner.
        weights: What it knows the adapter by.
        virtual_tokens: Positions before a sequence that it takes.
        nbytes: Memory that the adapter takes.
        reason: Why it does not run in a mixed batch; None where it does.
    """

    runner: Runner
    weights: Any
    virtual_tokens: int = 0
    nbytes: int = 0
    reason: str | None = None


@dataclass
class Runners:
    """The runners of one base.

    Attributes:
        fused: For what the kernels run; None where they do not run the base.
        plain: For everything else.
        reason: Why there is no `fused`.
    """

    fused: FusedRunner | None
    plain: TransformersRunner
    reason: str | None = None
    _bare: Way | None = field(default=None)

    @property
    def all(self) -> list[Runner]:
        """All that there are."""
        return [self.plain] if self.fused is None else [self.fused, self.plain]

    def base(self) -> Part:
        """What answers for the bare base."""
        if self.fused is not None:
            return Part(self.fused, None)
        assert self._bare is not None
        return Part(self.plain, self._bare, reason=self.reason)

    def part(
        self,
        forms: Mapping[str, Many[RowForm]],
        model: Callable[[], PreTrainedModel],
        switched: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
        injection: Injection | None = None,
    ) -> Part:
        """What answers for an adapter.

        Args:
            forms: How it acts on a row.
            model: Gives a model that it is attached to, for the plain runner.
            switched: What that model is inside of while it runs.
            injection: The adapter's layers, for the plain runner's virtual tokens.
        """
        reason = self.reason
        if self.fused is not None:
            try:
                own = self.fused.decoder.forms(forms)
                return Part(self.fused, own, own.virtual_tokens, own.nbytes)
            except NotMixed as refused:
                reason = str(refused)
        return Part(self.plain, Way(model(), switched), 0, _bytes(injection), reason)


def build_runners(
    bare: PreTrainedModel,
    live: Way | None = None,
    *,
    cache_bytes: int | None = None,
    most_running: int | None = None,
    filler: int = 0,
    use_kernels: bool = True,
) -> Runners:
    """Builds the runners of a base.

    Args:
        bare: The base without adapters, in evaluation mode.
        live: How the bare base runs by its own code; by default as it is.
        cache_bytes: Memory for keys and values; by default a share of what is free, and no more than is useful.
        most_running: Sequences at once.
        filler: A token that fills up short prompts.
        use_kernels: Whether to use the kernels where they can.
    """
    decoder = build_decoder(bare) if use_kernels else "it was asked to run by its own code"
    plain = TransformersRunner(filler, most_running or 32)
    if isinstance(decoder, str):
        return Runners(None, plain, decoder, live or Way(bare))
    size = cache_bytes or default_cache_bytes(bare, decoder)
    return Runners(FusedRunner(bare, decoder, size, most_running or 128), plain, None, live or Way(bare))


def default_cache_bytes(model: PreTrainedModel, decoder: Decoder) -> int:
    """Memory for keys and values: for 64 sequences of the longest length, but at most a share of what is free."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 4096
    useful = 64 * -(-min(int(longest), 32_768) // 16) * decoder.block_bytes()
    return int(min(useful, _SHARE_FOR_CACHE * psutil.virtual_memory().available))


def virtual_tokens(injection: Injection | None) -> int:
    """Positions before a text that an adapter takes."""
    whole = None if injection is None else injection.layers.get("")
    return whole.count if isinstance(whole, VirtualTokens) else 0


def _bytes(injection: Injection | None) -> int:
    tensors: list[torch.Tensor] = [] if injection is None else list(injection.saved_tensors().values())
    return sum(tensor.nbytes for tensor in tensors)
