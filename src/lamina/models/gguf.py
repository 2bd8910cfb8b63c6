"""Converts a GGUF file to a transformers folder, dequantized to bfloat16, with transformers' own reader.

Conversion is tensor by tensor where possible, so that only one shard is in memory. If a GGUF tensor is not one tensor
of the model (mixtures of experts have another layout), the whole model is loaded.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf as gguf_package
import torch
from gguf import GGUFReader, dequantize, get_tensor_name_map
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import modeling_gguf_pytorch_utils as reading

from lamina.chat.template import ChatTemplate, build_template
from lamina.errors import LaminaError, ModelError
from lamina.machine.quiet import quiet_transformers
from lamina.models.folder import Ends, complete_converted
from lamina.models.shards import ShardWriter


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Writes config, safetensors and tokenizer of `gguf` into `folder`.

    The weights are stored in bfloat16 on every machine, so that the base's digest is the same everywhere.

    Raises:
        ModelError: transformers cannot read the file.
        OSError: The folder cannot be written to.
    """
    try:
        # The GGUF reader draws its own progress bar, which no setting disables.
        with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()), _read_once(gguf) as reader:
            model = _convert_streaming(gguf, reader, folder) or _convert_whole(gguf, folder)
            tokenizer = AutoTokenizer.from_pretrained(
                gguf.parent, gguf_file=gguf.name, local_files_only=True, trust_remote_code=False
            )
            tokenizer.save_pretrained(folder)
            complete_converted(folder, Ends.of(model), tokenizer, _template(tokenizer))
    except LaminaError:
        raise
    except Exception as error:  # readers raise any kind, the tokenizer's even a plain `Exception`
        if isinstance(error, OSError) and error.errno is not None:  # an error of the disk
            raise
        raise ModelError(f"{gguf}: transformers cannot read this GGUF file: {error}") from error


def _template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate | None:
    """Returns the model's own chat template; None if it is unusable, since the user may name another."""
    try:
        return build_template(tokenizer)
    except LaminaError:
        return None


@contextlib.contextmanager
def _read_once(gguf: Path) -> Iterator[GGUFReader]:
    """Inside the block, whoever opens the file gets one reader, and whoever asks for the names of tensors one table.

    transformers opens the file for the configuration, for the weights and for the tokenizer, and makes the table anew
    for every module. Each reader takes seconds for a large vocabulary, and the tables do together.
    """
    package: Any = gguf_package
    reader, name_map = GGUFReader(gguf), get_tensor_name_map

    def opened(path: Any, *rest: Any) -> GGUFReader:
        return reader if Path(path).samefile(gguf) else GGUFReader(path, *rest)

    package.GGUFReader, package.get_tensor_name_map = opened, functools.cache(name_map)
    try:
        yield reader
    finally:
        package.GGUFReader, package.get_tensor_name_map = GGUFReader, name_map


def _convert_streaming(gguf: Path, reader: GGUFReader, folder: Path) -> PreTrainedModel | None:
    """Converts config and weights tensor by tensor.

    Returns:
        The model without its weights; None, with nothing written, if the tensors do not correspond one to one.
    """
    config = AutoConfig.from_pretrained(
        gguf.parent, gguf_file=gguf.name, local_files_only=True, trust_remote_code=False
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    about = reading.load_gguf_checkpoint(str(gguf))
    architecture = reading.read_field(reader, "general.architecture")[0]
    processor = reading.TENSOR_PROCESSORS.get(architecture, reading.TensorProcessor)(config=about["config"])
    names: dict[str, str] = reading.get_gguf_hf_weights_map(model, processor)
    shapes = _shapes(model)
    writer = ShardWriter(folder)
    for tensor in reader.tensors:
        weights: Any = dequantize(tensor.data, tensor.tensor_type)
        processed = processor.process(
            weights=weights, name=tensor.name, tensor_key_mapping=names, parsed_parameters={"tensors": {}}
        )
        name = names.get(processed.name)
        if name in shapes and processed.weights.shape == shapes[name]:
            writer.add(name, torch.from_numpy(processed.weights.copy()).to(torch.bfloat16))
    if writer.names != shapes.keys():
        writer.discard()
        return None
    writer.close()
    _save_config(model, folder)
    return model


def _shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    """Returns the shapes of the tensors in the model's files; tied tensors once."""
    tied = model.all_tied_weights_keys
    return {name: tensor.shape for name, tensor in model.state_dict().items() if name not in tied}


def _convert_whole(gguf: Path, folder: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        local_files_only=True,
        trust_remote_code=False,
    )
    # The saved model is neither GGUF nor quantized any more.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # pyright: ignore[reportAttributeAccessIssue]
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    return model


def _save_config(model: PreTrainedModel, folder: Path) -> None:
    model.config._name_or_path = ""
    model.config.dtype = torch.bfloat16
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
