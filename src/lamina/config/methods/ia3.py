"""`method: {type: ia3}`: the fields of IA3. The math is in `methods/ia3.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from lamina.config.methods.base import MethodConfig
from lamina.config.targets import TargetModules


class IA3Config(MethodConfig):
    """Trained scales on keys, values and the inner activations of the feed-forward."""

    title: ClassVar[str] = "IA3"
    paper: ClassVar[str] = (
        "Liu et al. 2022, Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning, "
        "arXiv:2205.05638"
    )
    summary: ClassVar[str] = (
        "a trained scale for each key, value and inner feed-forward feature; can be merged into the weights"
    )
    learning_rate: ClassVar[float] = 3e-2
    learning_rate_follows_width: ClassVar[bool] = False
    absent: ClassVar[Mapping[str, str]] = {"r": "IA3 has no rank: it trains one number per feature"}

    type: Literal["ia3"] = "ia3"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method name."""

    target_modules: TargetModules | None = None
    """Linear layers to scale: `all-linear`, a list of names, or one regular expression. Null takes the key and value
    projections, and the last linear layer of each feed-forward."""

    feedforward_modules: str | list[str] | None = None
    """Which of these are scaled at the input instead of the output: a list of names or one regular expression. Null
    takes the last linear layer of each feed-forward, [] takes none."""

    init_ia3_weights: bool = True
    """Start with scales of 1, which leave the model unchanged; false draws them from a normal distribution."""

    @property
    def starts_elsewhere(self) -> bool:
        return not self.init_ia3_weights


CONFIG = IA3Config
