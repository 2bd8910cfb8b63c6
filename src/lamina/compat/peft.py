"""peft's names: `LoraConfig`, `get_peft_model`, `PeftModel` and what is used beside them."""

from __future__ import annotations

import shutil
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from lamina.adapters.hf_peft import peft_content, write_peft
from lamina.adapters.load import Loaded
from lamina.adapters.load import load as load_adapter
from lamina.api.method import method_values
from lamina.compat import bases
from lamina.config import MethodConfig, load_config
from lamina.dialects.peft import LORA_CONFIG
from lamina.errors import ConfigError, Problem, nearest
from lamina.export.merge import merge
from lamina.methods.shared.base import Injection, inject
from lamina.methods.shared.coverage import with_names
from lamina.methods.shared.score import saved_form

if TYPE_CHECKING:
    from lamina.runs import Run


class TaskType(StrEnum):
    """What an adapter is for; lamina trains causal language models."""

    CAUSAL_LM = "CAUSAL_LM"
    SEQ_CLS = "SEQ_CLS"


class LoraConfig:
    """LoRA's settings, by peft's names and with its defaults. Configurations of peft itself are taken as well."""

    peft_type = "LORA"

    def __init__(
        self,
        r: int = 8,
        target_modules: str | list[str] | None = None,
        lora_alpha: float = 8,
        lora_dropout: float = 0.0,
        bias: str = "none",
        task_type: str | None = None,
        **others: Any,
    ) -> None:
        for name in others:
            if name not in LORA_CONFIG:
                raise TypeError(f"LoraConfig has no setting {name!r}. {nearest(name, LORA_CONFIG)}".strip())
        self.r, self.lora_alpha, self.lora_dropout = r, lora_alpha, lora_dropout
        self.target_modules, self.bias, self.task_type = target_modules, bias, task_type
        self.__dict__.update(others)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as `adapter_config.json` has them."""
        return {"peft_type": self.peft_type, **self.__dict__}


def method_of(peft_config: Any, model: Any) -> MethodConfig:
    """Returns lamina's method for a configuration, this module's or peft's.

    Args:
        peft_config: The configuration.
        model: The base, which decides the target modules if none are given.

    Raises:
        AdapterError: It has settings without a counterpart.
    """
    values = method_values(peft_config, bases.type_of(model))
    return load_config({"data": {"train": "train_dataset"}, "method": values}).method


def get_peft_model(model: PreTrainedModel, peft_config: Any, adapter_name: str = "default") -> PeftModel:
    """Attaches a new adapter to a model, in place; only the adapter's tensors require gradients.

    Args:
        model: A causal language model of transformers, or of `lamina.compat.transformers`.
        peft_config: A `LoraConfig`, or any configuration of peft.
        adapter_name: Has no effect: a model has one adapter here.

    Raises:
        ConfigError: The configuration does not fit the model, or the model has an adapter already.
    """
    if isinstance(model, PeftModel):
        fix = "give the base model, loaded again; lamina.Engine serves many adapters on one base"
        raise ConfigError(Problem("model", "has an adapter already, and a model has one here", fix))
    config = method_of(peft_config, model)
    name, quantization, dtype = bases.name_of(model), bases.quantization_of(model), bases.dtype_of(model)
    model.requires_grad_(False)
    return PeftModel(model, inject(model, config, seed=0), Origin(name, config, quantization, dtype))


def prepare_model_for_kbit_training(
    model: PreTrainedModel, use_gradient_checkpointing: bool = True, gradient_checkpointing_kwargs: Any = None
) -> PreTrainedModel:
    """Returns the model with its weights frozen. lamina needs nothing else: adapters are float32 anyway."""
    model.requires_grad_(False)
    return model


class Origin:
    """What a trainer must know to train the same adapter.

    Attributes:
        name: The base.
        method: The method's configuration.
        quantization: How the base is quantized.
        dtype: The base's `dtype`.
    """

    def __init__(self, name: str, method: MethodConfig, quantization: Any, dtype: str) -> None:
        self.name, self.method, self.quantization, self.dtype = name, method, quantization, dtype


class PeftModel:
    """A model with an adapter. Everything that is not here is the model's own: `generate`, `parameters`, calling it.

    Attributes:
        base_model: transformers' model, whose layers the adapter is attached to.
    """

    def __init__(
        self, model: PreTrainedModel, injection: Injection, origin: Origin | None = None, folder: Path | None = None
    ) -> None:
        self.base_model = model
        self._injection = injection
        self.origin = origin
        self._folder = folder

    @classmethod
    def from_pretrained(cls, model: Any, model_id: str | Path, **others: Any) -> PeftModel:
        """Loads an adapter, lamina's or peft's, on its base.

        Args:
            model: The base, or its name. It is read again from its files, so the given object stays as it is.
            model_id: A run directory or an adapter folder.
            others: peft's other arguments; they have no effect.

        Raises:
            AdapterError: It is missing, damaged, or does not fit the model.
        """
        return cls.of_run(load_adapter(model_id, model=bases.name_of(model)))

    @classmethod
    def of_run(cls, loaded: Loaded) -> PeftModel:
        """Wraps what `lamina.load` returned."""
        return cls(loaded.model, loaded.injection, None, loaded.adapter.path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["base_model"], name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Runs the model with its adapter."""
        return self.base_model(*arguments, **named)

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Returns the number of trained parameters, and of all of them."""
        trained = sum(tensor.numel() for tensor in self._injection.tensors().values())
        return trained, sum(parameter.numel() for parameter in self.base_model.parameters())

    def print_trainable_parameters(self) -> None:
        """Prints these numbers, as peft does."""
        trained, every = self.get_nb_trainable_parameters()
        print(f"trainable params: {trained:,} || all params: {every:,} || trainable%: {100 * trained / every:.4f}")  # noqa: T201

    def disable_adapter(self) -> Any:
        """Returns a context in which the model is the bare base."""
        return self._injection.disabled()

    def save_pretrained(self, save_directory: str | Path, **others: Any) -> None:
        """Saves the adapter alone, in peft's format.

        Args:
            save_directory: The folder.
            others: peft's other arguments; the files are always safetensors.
        """
        folder = Path(save_directory)
        if self._folder is not None:
            shutil.copytree(self._folder, folder, dirs_exist_ok=True)
            return
        folder.mkdir(parents=True, exist_ok=True)
        saved = saved_form(self._injection)
        config = with_names(self._injection, saved.config)
        write_peft(
            folder, peft_content(self._injection, config, self.origin.name if self.origin else ""), saved.tensors
        )

    def merge_and_unload(self, **others: Any) -> PreTrainedModel:
        """Returns the base with the adapter merged into its weights, as a model of transformers.

        Raises:
            AdapterError: The method cannot be merged.
        """
        with TemporaryDirectory() as temporary:
            source = Path(temporary) / "adapter"
            self.save_pretrained(source)
            base = None if self._folder is not None or self.origin is None else self.origin.name
            merged = merge(source, Path(temporary) / "merged", model=base)
            model = AutoModelForCausalLM.from_pretrained(merged.path)
            return model.eval()

    def follow(self, run: Run) -> None:
        """Takes the adapter of a finished run: its tensors, and its folder for saving."""
        loaded = load_adapter(run.path)
        found = loaded.injection.saved_tensors()
        own = self._injection.saved_tensors()
        if {name: tensor.shape for name, tensor in own.items()} == {name: each.shape for name, each in found.items()}:
            self._injection.load_tensors({name: tensor.to(own[name].device) for name, tensor in found.items()})
        else:
            self.base_model, self._injection = loaded.model, loaded.injection
        self._folder = run.adapter


class AutoPeftModelForCausalLM:
    """Loads an adapter with the base that it names."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **others: Any) -> PeftModel:
        """Loads a run directory or an adapter folder; peft's other arguments have no effect.

        Raises:
            AdapterError: It is missing or damaged, or the base that it names is not there.
        """
        return PeftModel.of_run(load_adapter(pretrained_model_name_or_path))
