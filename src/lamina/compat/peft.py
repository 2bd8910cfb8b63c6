"""peft's names: `get_peft_model`, `PeftModel`, its configurations, and what is used beside them."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from lamina.adapters.adapter import LAMINA_FILE, adapter_digest, read_adapter
from lamina.adapters.hf_peft import peft_content, write_peft
from lamina.adapters.load import Loaded, adapter_folder, is_base_of, load_on
from lamina.adapters.load import load as load_adapter
from lamina.api.method import method_values
from lamina.compat import bases
from lamina.compat.peft_arguments import MANY, OF_THE_BASE, REFUSED, check_arguments
from lamina.compat.peft_config import LoraConfig, PeftConfig, TaskType, config_of, place_of
from lamina.config import MethodConfig, load_config
from lamina.errors import ConfigError, Problem
from lamina.export.merge import merge, merge_and_unload
from lamina.methods.shared.base import Injection, inject
from lamina.methods.shared.coverage import with_names
from lamina.methods.shared.score import saved_form
from lamina.models.loaded import check_one_device
from lamina.models.source import ModelSource, find_model

if TYPE_CHECKING:
    from lamina.runs import Run

__all__ = [
    "AutoPeftModelForCausalLM",
    "LoraConfig",
    "PeftConfig",
    "PeftModel",
    "TaskType",
    "get_peft_model",
    "get_peft_model_state_dict",
    "prepare_model_for_kbit_training",
]

DEFAULT = "default"


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


def get_peft_model(model: PreTrainedModel, peft_config: Any, adapter_name: str = DEFAULT) -> PeftModel:
    """Attaches a new adapter to a model, in place; only the adapter's tensors require gradients.

    Args:
        model: A causal language model of transformers, or of `lamina.compat.transformers`.
        peft_config: A `LoraConfig`, or any configuration of peft.
        adapter_name: What `peft_config` and `active_adapter` call it: a model has one adapter here.

    Raises:
        ConfigError: The configuration does not fit the model, or the model has an adapter already or is spread over
            several devices.
    """
    if isinstance(model, PeftModel):
        fix = "give the base model, loaded again; lamina.Engine serves many adapters on one base"
        raise ConfigError(Problem("model", "has an adapter already, and a model has one here", fix))
    check_one_device(model)
    config = method_of(peft_config, model)
    name, quantization, dtype = bases.name_of(model), bases.quantization_of(model), bases.dtype_of(model)
    model.requires_grad_(False)
    settings = copy.copy(peft_config)
    settings.base_model_name_or_path = name
    if settings.target_modules is None:  # as peft, which fills in what it has chosen
        settings.target_modules = getattr(config, "target_modules", None)
    named = {adapter_name: settings}
    return PeftModel(model, inject(model, config, seed=0), named, Origin(name, config, quantization, dtype))


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
        method: The method's configuration; None for an adapter that was loaded, which is trained further.
        quantization: How the base is quantized.
        dtype: The base's `dtype`.
    """

    def __init__(self, name: str, method: MethodConfig | None, quantization: Any, dtype: str) -> None:
        self.name, self.method, self.quantization, self.dtype = name, method, quantization, dtype


class PeftModel(nn.Module):
    """A model with an adapter. Everything that is not here is the model's own: `generate`, `config`, `device`.

    Attributes:
        base_model: transformers' model, whose layers the adapter is attached to.
        peft_config: The adapter's configuration, by its name.
        active_adapter: The adapter's name.
        origin: What a trainer must know to train it.
        folder: Where its files are; None for a new one.
    """

    base_model: PreTrainedModel

    def __init__(
        self,
        model: PreTrainedModel,
        injection: Injection,
        peft_config: dict[str, Any],
        origin: Origin,
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        self.base_model = model
        self.training = model.training
        self.peft_config, (self.active_adapter, *_) = peft_config, peft_config
        self.origin = origin
        self._injection = injection
        self.folder: Path | None = None
        self._take_from(folder)

    @classmethod
    def from_pretrained(
        cls,
        model: Any,
        model_id: str | Path,
        adapter_name: str = DEFAULT,
        is_trainable: bool = False,
        **others: Any,
    ) -> PeftModel:
        """Loads an adapter, lamina's or peft's, on its base.

        Args:
            model: The base, or its name. A model in memory shares its weights, and has no adapter afterwards; it is
                read again from its files if it is not in the form in which the adapter was trained, such as in 4 bits.
            model_id: A run directory or an adapter folder.
            adapter_name: What `peft_config` and `active_adapter` call it.
            is_trainable: Whether the adapter's tensors require gradients.
            others: peft's other arguments: about downloading and memory, they have no effect.

        Raises:
            AdapterError: It is missing, damaged, or does not fit the model.
            ConfigError: An argument has no counterpart, or the model's weights were changed in memory.
        """
        check_arguments(others)
        return cls.of_run(_load_for(model, place_of(model_id)), adapter_name, is_trainable)

    @classmethod
    def trained(cls, run: Run, model: Any) -> PeftModel:
        """Returns what a run has trained, to be used and trained further, on the model that it was given."""
        source = find_model(run.config.model) if run.config.quantization is None else None
        return cls.of_run(_load_for(model, run.path, source), is_trainable=True)

    @classmethod
    def of_run(cls, loaded: Loaded, adapter_name: str = DEFAULT, is_trainable: bool = False) -> PeftModel:
        """Wraps what `lamina.load` returned."""
        for tensor in loaded.injection.tensors().values():
            tensor.requires_grad_(is_trainable)
        config = config_of(loaded.adapter.peft_config)
        config.inference_mode = not is_trainable
        base = loaded.base
        bases.note(base, base.source.ref)
        origin = Origin(base.source.ref, None, base.quantization, bases.dtype_of(loaded.model))
        return cls(loaded.model, loaded.injection, {adapter_name: config}, origin, loaded.adapter.path)

    def __getattr__(self, name: str) -> Any:
        if name in REFUSED:
            raise AttributeError(f"PeftModel has no {name} here: {REFUSED[name]}.")
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":  # not there yet while a copy is made
                raise
            return getattr(self.base_model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OF_THE_BASE:
            setattr(self.base_model, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **others: Any) -> Any:
        """Runs the model with its adapter."""
        return self.base_model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **others)

    def generate(self, *arguments: Any, **named: Any) -> Any:
        """Generates with the adapter, as transformers does."""
        base: Any = self.base_model
        return base.generate(*arguments, **named)

    def get_base_model(self) -> PreTrainedModel:
        """Returns transformers' model, with the adapter in its layers."""
        return self.base_model

    @property
    def active_adapters(self) -> list[str]:
        """The adapter's name, in a list."""
        return [self.active_adapter]

    @property
    def active_peft_config(self) -> Any:
        """The adapter's configuration."""
        return self.peft_config[self.active_adapter]

    @property
    def peft_type(self) -> str:
        """The kind of adapter, as peft names it."""
        return str(getattr(self.active_peft_config.peft_type, "value", self.active_peft_config.peft_type))

    @property
    def method(self) -> str:
        """The kind of adapter, as lamina names it."""
        return self._injection.config.type

    def set_adapter(self, adapter_name: str | list[str], **others: Any) -> None:
        """Chooses the adapter, which is the only one.

        Raises:
            ConfigError: It has another name.
        """
        if adapter_name not in (self.active_adapter, [self.active_adapter]):
            message = f"{adapter_name!r} is not here: the model has one adapter, {self.active_adapter!r}"
            raise ConfigError(Problem("adapter_name", message, MANY))

    def adapter_tensors(self) -> dict[str, torch.Tensor]:
        """Returns what is saved of the adapter, by its names in peft's format."""
        return {name: tensor.detach() for name, tensor in saved_form(self._injection).tensors.items()}

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Returns the number of parameters that require gradients, and of all of them."""
        trained = sum(tensor.numel() for tensor in self._injection.tensors().values() if tensor.requires_grad)
        return trained, sum(parameter.numel() for parameter in self.base_model.parameters())

    def print_trainable_parameters(self) -> None:
        """Prints these numbers, as peft does."""
        trained, every = self.get_nb_trainable_parameters()
        print(f"trainable params: {trained:,} || all params: {every:,} || trainable%: {100 * trained / every:.4f}")  # noqa: T201

    def disable_adapter(self) -> Any:
        """Returns a context in which the model is the bare base."""
        return self._injection.disabled()

    def save_pretrained(
        self, save_directory: str | Path, safe_serialization: bool = True, push_to_hub: bool = False, **others: Any
    ) -> None:
        """Saves the adapter alone, in peft's format.

        Args:
            save_directory: The folder.
            safe_serialization: Must be true: the files are safetensors.
            push_to_hub: Must be false.
            others: peft's other arguments; they have no effect.

        Raises:
            ConfigError: An argument has no counterpart, or the folder has another adapter of lamina's.
        """
        if not safe_serialization:
            message = "False has no counterpart: adapters are written as safetensors"
            raise ConfigError(Problem("safe_serialization", message, "leave it out"))
        if push_to_hub:
            raise ConfigError(Problem("push_to_hub", "has no counterpart", REFUSED["push_to_hub"]))
        folder, is_changed = Path(save_directory), not self.is_as_read()
        self._write(folder)
        if is_changed:
            self._take_from(folder)

    def is_as_read(self) -> bool:
        """Returns whether the adapter's tensors are those of its folder, or of a new one, those that it was made with;
        not so once they are changed, or if the folder is gone."""
        return (self.folder is None or self.folder.is_dir()) and self._digest() == self._digest_as_read

    def check_start(self) -> None:
        """Checks that training, which starts from the adapter's folder or makes a new one, starts with this adapter.

        Raises:
            ConfigError: The tensors were changed since, or the folder is gone.
        """
        if not self.is_as_read():
            message = f"its adapter is no longer that in {self.folder}, where training would start"
            if self.folder is None:
                message = "the values of its new adapter were changed, and training would start from other ones"
            fix = "save it to another folder first, and training starts from there: model.save_pretrained(FOLDER)"
            raise ConfigError(Problem("model", message, fix))

    def _take_from(self, folder: Path | None) -> None:
        """Notes that the folder, or a new adapter, has the tensors as they are now."""
        self.folder, self._digest_as_read = folder, self._digest()

    def _digest(self) -> str:
        return adapter_digest({}, self.adapter_tensors())

    def _write(self, folder: Path) -> None:
        if self.folder is not None and self.is_as_read():  # also its lock and its probes
            if not (folder.exists() and folder.samefile(self.folder)):
                shutil.copytree(self.folder, folder, dirs_exist_ok=True)
            return
        if (folder / LAMINA_FILE).exists():
            message = f"{folder} has an adapter whose lock ({LAMINA_FILE}) would not fit this one"
            raise ConfigError(Problem("save_directory", message, "name a new folder"))
        folder.mkdir(parents=True, exist_ok=True)
        saved = saved_form(self._injection)
        config = with_names(self._injection, saved.config)
        write_peft(folder, peft_content(self._injection, config, self.origin.name), saved.tensors)

    def merge_and_unload(self, **others: Any) -> PreTrainedModel:
        """Returns the base with the adapter merged into its weights, as a model of transformers.

        Raises:
            AdapterError: The method cannot be merged.
        """
        with TemporaryDirectory() as temporary:
            source = Path(temporary) / "adapter"
            self._write(source)
            if self.origin.quantization is not None and not (source / LAMINA_FILE).exists():
                # Without a lock, the files do not say how the base was quantized.
                model = merge_and_unload(_load_for(self.base_model, source))
            else:
                if (bare := bases.bare(self.base_model)) is not None:
                    bases.check_weights(bare, find_model(self.origin.name))
                merged = merge(source, Path(temporary) / "merged", model=self.origin.name, dtype=self.origin.dtype)
                model = AutoModelForCausalLM.from_pretrained(merged.path)
        model.config._name_or_path = model.name_or_path = ""  # the folder is gone
        return model.eval()

    def follow(self, run: Run) -> None:
        """Takes the adapter of a finished run: its tensors, and its folder for saving."""
        found = read_adapter(run.adapter).tensors
        own = self._injection.saved_tensors()
        if {name: tensor.shape for name, tensor in own.items()} == {name: each.shape for name, each in found.items()}:
            self._injection.load_tensors(found)
        else:  # training has made another form of it, such as with other ranks
            source = find_model(run.config.model) if self.origin.quantization is None else None
            loaded = _load_for(self.base_model, run.path, source)
            self.base_model, self._injection = loaded.model, loaded.injection
            for tensor in loaded.injection.tensors().values():
                tensor.requires_grad_(True)
        self._take_from(run.adapter)
        self.origin.name = run.config.model


def _load_for(model: Any, place: str | Path, source: ModelSource | None = None) -> Loaded:
    """Loads an adapter on the weights of a model in memory, or, if they are not in its form, on a base that is read."""
    adapter, base = read_adapter(adapter_folder(place)), bases.in_memory(model, source)
    if base is not None and is_base_of(adapter, base):
        return load_on(adapter, base)
    return load_adapter(place, model=bases.name_of(model) if source is None else source.ref)


class AutoPeftModelForCausalLM:
    """Loads an adapter with the base that it names."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        adapter_name: str = DEFAULT,
        is_trainable: bool = False,
        *,
        dtype: Any = None,
        torch_dtype: Any = None,
        device_map: Any = None,
        **others: Any,
    ) -> PeftModel:
        """Loads a run directory or an adapter folder, on the base as it was trained on: quantized as it was then.

        Args:
            pretrained_model_name_or_path: The run or the folder.
            adapter_name, is_trainable: As for `PeftModel.from_pretrained`.
            dtype, torch_dtype: The base's dtype; None for that of training.
            device_map: One device; "auto" for the first GPU, or the CPU.
            others: peft's other arguments: about downloading and memory, they have no effect.

        Raises:
            AdapterError: It is missing or damaged, or the base that it names is not there.
            ConfigError: An argument has no counterpart.
        """
        check_arguments(others)
        chosen = bases.dtype_name(torch_dtype if dtype is None else dtype)
        device = bases.device_for(device_map)
        loaded = load_adapter(place_of(pretrained_model_name_or_path), dtype=chosen, device=device)
        return PeftModel.of_run(loaded, adapter_name, is_trainable)


def get_peft_model_state_dict(model: PeftModel, **others: Any) -> dict[str, torch.Tensor]:
    """Returns the adapter's tensors, by their names in peft's format; peft's other arguments have no effect."""
    return model.adapter_tensors()
