"""What every method's configuration has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from lamina.config.section import Section


class MethodConfig(Section):
    """The `method:` section. A method's own class adds its fields, with peft's names."""

    title: ClassVar[str]
    """The method's name in prose, such as `LoRA`."""

    paper: ClassVar[str]
    """Where it comes from."""

    summary: ClassVar[str]
    """One sentence for `lamina methods`."""

    learning_rate: ClassVar[float] = 1e-3
    """What `train.learning_rate` is unless it is given: the smallest of a sweep with a loss within 2% of the best one's
    (docs/benchmarks.md), where the method was in it."""

    base_is_read_only: ClassVar[bool] = True
    """Whether the base's layers may be others than the model's own, which only read their weights."""

    absent: ClassVar[Mapping[str, str]] = {}
    """Fields of other methods that one may look for here, and what to do instead."""

    type: str
    """The method's name, which is the name of its file."""

    def shortened(self, share: float) -> Self:
        """The same for a run over that share of the steps (0 to 1), where the method has a schedule of its own."""
        return self

    def rank_of(self, module: str) -> int:
        """The rank that the linear layer of that name gets, which its smaller side must have; 1 where any will do."""
        return 1

    def narrowest(self, module: str) -> int:
        """How wide the layer of that name must be at both sides for `all-linear` to select it."""
        return self.rank_of(module)

    @property
    def everywhere(self) -> bool:
        """Whether it goes on every linear layer that it can go on (`target_modules: all-linear`)."""
        return getattr(self, "target_modules", None) == "all-linear"  # also among peft's fields

    @classmethod
    def takes(cls, field: str) -> bool:
        """Whether the section may have a field of that name."""
        return field in cls.model_fields
