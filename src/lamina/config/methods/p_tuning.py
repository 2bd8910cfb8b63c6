"""`method: {type: p_tuning}`: the fields of P-tuning. The math is in `methods/p_tuning.py`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from lamina.config.methods.base import MethodConfig


class PTuningConfig(MethodConfig):
    """P-tuning: embeddings in front of every sequence, produced by a small trained network."""

    title: ClassVar[str] = "P-tuning"
    paper: ClassVar[str] = "Liu et al. 2021, GPT Understands, Too, arXiv:2103.10385"
    summary: ClassVar[str] = "embeddings in front of every sequence, produced by a small trained network"
    learning_rate: ClassVar[float] = 1e-3
    learning_rate_follows_width: ClassVar[bool] = False

    type: Literal["p_tuning"] = "p_tuning"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method name."""

    num_virtual_tokens: Annotated[int, Field(ge=1)] = 20
    """Number of embeddings."""

    encoder_reparameterization_type: Literal["MLP", "LSTM"] = "MLP"
    """The network: three linear layers, or a bidirectional LSTM followed by two linear layers."""

    encoder_hidden_size: Annotated[int, Field(ge=1)] | None = None
    """Width of the network; null means the width of the embeddings."""

    encoder_num_layers: Annotated[int, Field(ge=1)] = 2
    """Layers of the LSTM."""

    encoder_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout between the layers of the LSTM."""

    inference_mode: bool = False
    """True in a saved adapter, which has the embeddings that the network produced, but not the network."""

    @model_validator(mode="after")
    def _check_encoder(self) -> PTuningConfig:
        if self.encoder_reparameterization_type == "MLP":
            for name in ("encoder_num_layers", "encoder_dropout"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} has no effect with an MLP; use encoder_reparameterization_type: LSTM")
        elif self.encoder_dropout and self.encoder_num_layers == 1:
            raise ValueError(
                "encoder_dropout applies between the layers of the LSTM; it needs encoder_num_layers of 2 or more"
            )
        return self


CONFIG = PTuningConfig
