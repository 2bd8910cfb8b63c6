"""The whole configuration of one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lamina.config.data import DataConfig
from lamina.config.distributed import DistributedConfig
from lamina.config.hub import hub_reference
from lamina.config.losses import AnyLossConfig, LossConfig
from lamina.config.losses.cross_entropy import CrossEntropyConfig
from lamina.config.methods import AnyMethodConfig, MethodConfig
from lamina.config.methods.lora import LoraConfig
from lamina.config.optimizers import OPTIMIZERS
from lamina.config.quantization import QuantizationConfig
from lamina.config.section import Section
from lamina.config.train import TrainConfig

# Losses whose head is that of peft's SEQ_CLS.
_WITH_A_SCORE = ("classification", "reward")


# PiSSA and LoRA+ want less than LoRA (docs/benchmarks.md, "Learning rates").
_STEEPER = 0.3


class Config(Section):
    """Everything that determines a run's result, other than the machine and the installed versions."""

    model: Annotated[str, Field(min_length=1)] = "smollm2-135m"
    """The base model: an alias, a folder, a `.gguf` file, or a hub id, which may name a revision and a folder in the
    repository: `ORG/NAME@REVISION:FOLDER`. The keys `revision` and `subfolder` beside `model` are other words for these
    two. A token for private models is never a setting: set HF_TOKEN, or use `hf auth login`."""

    trust_remote_code: bool = False
    """Run the Python code that a model brings (`auto_map`), which can do whatever you can on this machine. What is
    allowed is that code as it is now, on this machine from now on; changed code has to be allowed again."""

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

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Dtype of the frozen base model. `auto` takes bfloat16 if the hardware multiplies it, else float16 on GPUs and
    float32 on CPUs. float16 is trained with a loss scale, on GPUs only."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    """Where to train: `auto` (the first GPU, else the CPU), `cpu`, `cuda`, `cuda:N` or `mps`."""

    offload: bool | Literal["auto"] = "auto"
    """Leave the frozen layers' weights on disk: read each layer ahead of time, and free it after use; `auto` does so if
    the base model does not fit in memory. Only on CPUs under Linux."""

    output_dir: Annotated[str, Field(min_length=1)] = "runs/lamina"
    """The run directory."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of everything random: split, order, initial adapter, dropout."""

    @model_validator(mode="before")
    @classmethod
    def _take_place_in_hub(cls, values: Any) -> Any:
        """Takes `revision` and `subfolder` as parts of the model's name, so that it is one name everywhere."""
        if isinstance(values, Mapping) and {"token", "hf_token", "hub_token"} & values.keys():
            raise ValueError(
                "a token is a secret, and a configuration is stored with every run; remove it, and set the environment "
                "variable HF_TOKEN or use `hf auth login`"
            )
        if not isinstance(values, Mapping) or not {"revision", "subfolder"} & values.keys():
            return values
        rest = dict(values)
        revision, subfolder = rest.pop("revision", None), rest.pop("subfolder", None)
        model = rest.get("model")
        for name, value in (("revision", revision), ("subfolder", subfolder)):
            if value is not None and not (isinstance(value, str) and value):
                raise ValueError(f"{name} is {value!r}; write it as text in quotes")
        if revision or subfolder:
            if not isinstance(model, str):
                raise ValueError("revision and subfolder are of a model on the hub; set model to its id, ORG/NAME")
            rest["model"] = hub_reference(model, revision, subfolder)
        return rest

    @model_validator(mode="before")
    @classmethod
    def _take_task_type(cls, values: Any) -> Any:
        """Takes peft's `task_type: SEQ_CLS` as the loss that trains such a head."""
        method = values.get("method") if isinstance(values, Mapping) else None
        if not isinstance(method, Mapping) or method.get("task_type") != "SEQ_CLS":
            return values
        loss = values.get("loss") or {"type": "classification"}
        if not isinstance(loss, Mapping) or loss.get("type", "classification") not in _WITH_A_SCORE:
            raise ValueError(
                "method.task_type SEQ_CLS trains a head over whole texts, which loss does not; set loss.type to "
                f"{' or '.join(_WITH_A_SCORE)}, or remove task_type"
            )
        kept = {key: value for key, value in method.items() if key != "task_type"}
        return {**values, "method": kept, "loss": {"type": "classification", **loss}}

    @model_validator(mode="after")
    def _fill_in_format(self) -> Config:
        """A text with a label may be plain text or one to classify, and the loss says which."""
        if self.loss.data_format is not None and self.data.format == "auto":
            data = self.data.model_copy(update={"format": self.loss.data_format})
            data.model_fields_set.discard("format")
            object.__setattr__(self, "data", data)  # the class is frozen for everyone else
        return self

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
        sets = self.data.eval if isinstance(self.data.eval, dict) else {}
        if self.train.best_eval is not None and self.train.best_eval not in sets:
            known = f"it has {', '.join(sets)}" if sets else "it has no sets with names"
            wrong.append(f"train.best_eval names the evaluation set {self.train.best_eval!r} of data.eval, but {known}")
        large = OPTIMIZERS[self.train.optim].reads & {"galore", "apollo", "badam"}
        if large and self.method.type != "full":
            wrong.append(
                f"train.optim '{self.train.optim}' saves memory for gradients or moments of whole weight matrices, "
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
            own = own_learning_rate(self)
            train = self.train.model_copy(update={"learning_rate": own})
            train.model_fields_set.discard(
                "learning_rate"
            )  # it was not given, so it follows when method, optim or loss changes
            object.__setattr__(self, "train", train)  # the class is frozen for everyone else
        return self


def own_learning_rate(config: Config) -> float:
    """Returns the default of `train.learning_rate` for a configuration."""
    init = config.method.init_lora_weights if isinstance(config.method, LoraConfig) else True
    kinds = type(config.method), config.train.optim, type(config.loss)
    return default_learning_rate(*kinds, init, config.train.loraplus_lr_ratio)


def default_learning_rate(
    method: type[MethodConfig],
    optim: str,
    loss: type[LossConfig] = CrossEntropyConfig,
    init: Any = True,
    loraplus: Any = None,
) -> float:
    """Returns the default of `train.learning_rate` for a method, an optimizer and a loss.

    Args:
        method: Of the run.
        optim: `train.optim`.
        loss: Of the run.
        init: `method.init_lora_weights`.
        loraplus: `train.loraplus_lr_ratio`.
    """
    is_loraplus = loraplus is True or (isinstance(loraplus, (int, float)) and loraplus > 1.0)
    steeper = is_loraplus or (isinstance(init, str) and init.startswith("pissa"))
    variant = _STEEPER if steeper and issubclass(method, LoraConfig) else 1.0
    rate = method.learning_rate * OPTIMIZERS[optim].learning_rate_factor * loss.learning_rate_factor
    return float(f"{rate * variant:.12g}")
