"""`method: {type: peft, peft_type: ...}`: any method of the installed HF peft, with peft's own fields.

The math is peft's. Its fields are not known here, because looking them up imports torch; they are checked against
peft's own configuration class when the adapter is attached (`methods/peft.py`).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, StringConstraints

from lamina.config.methods.base import MethodConfig


class PeftConfig(MethodConfig):
    """A method of HF peft, run by peft's own layers."""

    model_config = ConfigDict(extra="allow")

    title: ClassVar[str] = "HF peft"
    paper: ClassVar[str] = "Mangrulkar et al. 2022, PEFT, https://github.com/huggingface/peft; each method has its own"
    summary: ClassVar[str] = "any other method of the installed HF peft, with peft's fields next to peft_type"
    # Most of peft's methods are low-rank relatives of LoRA. docs/methods/peft.md lists those that need another learning
    # rate.
    learning_rate: ClassVar[float] = 1e-3
    base_is_read_only: ClassVar[bool] = False

    type: Literal["peft"] = "peft"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method name."""

    peft_type: Annotated[str, StringConstraints(to_upper=True, min_length=1)]
    """peft's name for the method. All other keys in this section are fields of that method's peft configuration
    class."""

    @property
    def fields(self) -> dict[str, Any]:
        """peft's own fields, as given."""
        return dict(self.model_extra or {})

    @property
    def starts_elsewhere(self) -> bool:
        return any(value is False for name, value in self.fields.items() if name.startswith("init_"))

    @classmethod
    def _is_so(cls, key: str, value: Any) -> bool:
        """Returns whether lamina handles a field itself: it always trains causal language models."""
        return key in ("task_type", "inference_mode") and super()._is_so(key, value)

    @classmethod
    def takes(cls, field: str) -> bool:
        """Returns True for every field: peft's own fields are only known when the adapter is attached."""
        return True


CONFIG = PeftConfig
