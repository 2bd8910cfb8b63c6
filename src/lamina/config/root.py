"""The whole configuration of one run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lamina.config.data import DataConfig
from lamina.config.distributed import DistributedConfig
from lamina.config.losses import AnyLossConfig, LossConfig
from lamina.config.losses.cross_entropy import CrossEntropyConfig
from lamina.config.methods import AnyMethodConfig, MethodConfig
from lamina.config.methods.lora import LoraConfig
from lamina.config.optimizers import OPTIMIZERS
from lamina.config.quantization import QuantizationConfig
from lamina.config.section import Section
from lamina.config.train import TrainConfig


class Config(Section):
    """Everything that determines a run's result, other than the machine and the installed versions."""

    model: Annotated[str, Field(min_length=1)] = "smollm2-135m"
    """The base model: an alias, a folder, a hub id, or a `.gguf` file."""

    data: DataConfig
    """What to train on."""

    method: AnyMethodConfig = LoraConfig()
    """The adapter method."""

    loss: AnyLossConfig = CrossEntropyConfig()
    """What training minimizes."""

    quantization: QuantizationConfig | None = None
    """Store the frozen base model in 4 or 8 bits (QLoRA); null leaves it unquantized."""

    train: TrainConfig = TrainConfig()
    """How to train."""

    distributed: DistributedConfig = DistributedConfig()
    """How several processes train together."""

    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Dtype of the frozen base model; `auto` takes bfloat16 if the hardware supports it natively."""

    offload: bool | Literal["auto"] = "auto"
    """Leave the frozen layers' weights on disk: read each layer ahead of time, and free it after use; `auto` does so if
    the base model does not fit in memory. Only on CPUs under Linux."""

    output_dir: Annotated[str, Field(min_length=1)] = "runs/lamina"
    """The run directory."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of everything random: split, order, initial adapter, dropout."""

    @model_validator(mode="after")
    def _check_combinations(self) -> Config:
        wrong = []
        if self.data.eval is None:
            if self.train.early_stopping_patience is not None:
                wrong.append(
                    "train.early_stopping_patience needs an evaluation loss, but data.eval is null; "
                    "set data.eval to a file or a share"
                )
            if self.train.eval_steps is not None:
                wrong.append("train.eval_steps has no effect if data.eval is null; set data.eval or remove it")
        if "galore" in OPTIMIZERS[self.train.optim].reads and self.method.type != "full":
            wrong.append(
                f"train.optim '{self.train.optim}' projects the gradients of whole weight matrices onto a subspace, "
                f"but method '{self.method.type}' trains an adapter, whose tensors are already small; use `method: "
                "{type: full}` or another optim"
            )
        loftq = isinstance(self.method, LoraConfig) and self.method.init_lora_weights == "loftq"
        if loftq and self.quantization is None:
            wrong.append(
                "method.init_lora_weights: loftq compensates for quantization error, but the base model is not "
                "quantized; set quantization, such as `quantization: {bits: 4}`, or another initialization"
            )
        if self.offload is True and not self.method.base_is_read_only:
            wrong.append(
                f"method '{self.method.type}' needs the base model's own layers, but `offload` replaces them with "
                "layers that read from disk; set offload to false, or use a method such as lora"
            )
        if self.loss.reference_name == "start" and self.method.start is None:
            wrong.append(
                "loss.reference: start compares with the adapter that training starts from, but method.from names "
                "none; set method.from, or loss.reference to base"
            )
        if self.loss.whole_rows:
            wrong += self._wrong_for_whole_rows()
        if self.quantization is not None:
            compute = self.quantization.compute_dtype
            if "auto" not in (compute, self.dtype) and compute != self.dtype:
                wrong.append(
                    f"quantization.compute_dtype is {compute} and dtype is {self.dtype}; set only one of them, "
                    "since unquantized weights are stored in the dtype of the matrix products"
                )
            if not self.method.base_is_read_only:
                wrong.append(
                    f"method '{self.method.type}' needs the base model's own layers, but `quantization` stores them "
                    "packed and frozen; remove quantization, or use a method such as lora"
                )
        if wrong:
            raise ValueError(". ".join(wrong))
        return self

    def _wrong_for_whole_rows(self) -> list[str]:
        data, wrong = self.data, []
        if data.train_on not in ("assistant", "completions"):
            wrong.append(
                f"data.train_on '{data.train_on}' puts more than the answers into the loss, but loss "
                f"'{self.loss.type}' compares answers alone; set data.train_on to completions"
            )
        if data.overlong not in ("auto", "drop"):
            wrong.append(
                f"data.overlong '{data.overlong}' divides rows that are too long, but loss '{self.loss.type}' needs "
                "whole answers; set data.overlong to drop, and raise data.max_length to keep more rows"
            )
        if data.packing_strategy == "wrapped":
            wrong.append(
                f"data.packing_strategy 'wrapped' cuts rows anywhere, but loss '{self.loss.type}' needs whole answers; "
                "use bfd"
            )
        if data.replay is not None:
            wrong.append(
                f"data.replay mixes in general text, but loss '{self.loss.type}' learns from "
                "rows of its own kind; remove data.replay"
            )
        return wrong

    @model_validator(mode="after")
    def _fill_in_learning_rate(self) -> Config:
        if self.train.learning_rate is None:
            own = default_learning_rate(type(self.method), self.train.optim, type(self.loss))
            train = self.train.model_copy(update={"learning_rate": own})
            train.model_fields_set.discard(
                "learning_rate"
            )  # it was not given, so it follows when method, optim or loss changes
            object.__setattr__(self, "train", train)  # the class is frozen for everyone else
        return self


def default_learning_rate(method: type[MethodConfig], optim: str, loss: type[LossConfig] = CrossEntropyConfig) -> float:
    """Returns the default of `train.learning_rate` for a method, an optimizer and a loss."""
    return method.learning_rate * OPTIMIZERS[optim].learning_rate_factor * loss.learning_rate_factor
