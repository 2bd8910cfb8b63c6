"""`quantize`: saves a base in 4 bits, calibrated on the inputs that its layers have on real documents (GPTQ).

Rounding to nearest considers only the weights. Here the base in 16 bits first runs on training documents, and each
layer's weights are rounded so that its outputs change least (`quantization/gptq.py`). The result is an ordinary folder
in the format of transformers and bitsandbytes, of the same size, which `model:` accepts like any other.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from lamina import files
from lamina.chat.template import template_of
from lamina.compute.fusion import fast_path
from lamina.compute.weights import FrozenLinear, PackedLinear, freeze_linear
from lamina.compute.weights.packed import bitsandbytes
from lamina.config import Config, load_config
from lamina.config.quantization import QuantizationConfig
from lamina.data.batch import build_batch
from lamina.data.dataset import build_dataset
from lamina.data.example import EncodedExample
from lamina.errors import ConfigError, ModelError, Problem
from lamina.losses.base import build_loss
from lamina.losses.cross_entropy import CrossEntropy
from lamina.machine.hardware import dtype_name
from lamina.machine.memory import available_bytes
from lamina.models.folder import Ends, complete_folder
from lamina.models.load import Base, load_base
from lamina.models.quantized.load import write_quantized
from lamina.models.quantized.quantizers import check_packs_enough, converted_modules
from lamina.models.vocabulary import check_vocabulary
from lamina.progress import Notify, Progress
from lamina.quantization.gptq import round_for_inputs
from lamina.structure.head import find_head
from lamina.structure.inputs import run_once, with_same_input
from lamina.structure.positions import declared_positions
from lamina.training.record import data_digests
from lamina.training.setup import check_positions
from lamina.training.step import evaluate_loss

# Tokens of training documents for calibration, by default.
DEFAULT_TOKENS = 32_768

# Maximum number of held-out documents on which the loss is measured before and after.
_EVAL_DOCUMENTS = 64
_EVAL_BATCH = 8

# The share of free memory for the inputs' second moments. If they need more, the documents are run several times.
_SHARE_FOR_MOMENTS = 0.25

REPORT_FILE = "quantization_report.json"


@dataclass(frozen=True)
class QuantizedFolder:
    """A base in 4 bits on disk.

    Attributes:
        path: A folder that `model:` accepts.
        bits_per_weight: Bits per weight of the quantized layers, including scales.
        modules: Number of quantized layers.
        documents, tokens: Number of training documents and tokens that the base was run on.
        nearest: |X (W - Q)^T| / |X W^T| with rounding to nearest, root mean square over the layers; X is a layer's
            input.
        error: The same for the saved weights.
        loss_before: Loss of the base in 16 bits on held-out documents; None if there are none.
        loss: Loss of the saved model on the same documents.
    """

    path: Path
    bits_per_weight: float
    modules: int
    documents: int
    tokens: int
    nearest: float
    error: float
    loss_before: float | None
    loss: float | None

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "path": str(self.path)}

    def line(self) -> str:
        """A sentence for the terminal."""
        text = (
            f"{self.modules} layers, {self.bits_per_weight:.3f} bits a weight; error of their outputs {self.error:.2%},"
            f" with rounding to nearest {self.nearest:.2%} (on {self.documents} documents of {self.tokens} tokens)"
        )
        if self.loss is not None and self.loss_before is not None:
            text += f"; loss on held-out documents {self.loss:.4f}, in 16 bits {self.loss_before:.4f}"
        return text


def quantize(
    config: Config | Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    tokens: int = DEFAULT_TOKENS,
    overrides: Iterable[str] = (),
    progress: Progress = lambda what, done, total: None,
    notify: Notify = lambda message: None,
) -> QuantizedFolder:
    """Quantizes a configuration's base for its training data.

    Args:
        config: A `Config`, or what `load_config` takes. `model`, `dtype`, `offload`, `data`, `seed` and `quantization`
            (without it, 4 bits with its defaults) count.
        out: The folder to write, which must not exist yet.
        tokens: About how many tokens of training documents to run the base on.
        overrides: `key.sub=value` strings that override the configuration.
        progress: Called with what is being done, how much of it is done, and the total.
        notify: Called with a message before anything that takes a while.

    Raises:
        ConfigError: `out` exists, or the settings do not fit: not 4 bits, the base is already quantized, no layer is
            left to quantize, or documents are longer than the base's table of positions.
        DataError: The data cannot be used.
        ModelError: The base cannot be loaded, or has values that are not finite.
        StorageError: The folder could not be written; nothing is left at `out`.
    """
    out, config = Path(out), load_config(config, overrides)
    settings = config.quantization or QuantizationConfig()
    _check_request(out, tokens, settings)
    bitsandbytes()
    notify(f"Loading {config.model} ...")
    dtype = config.dtype if settings.compute_dtype == "auto" else settings.compute_dtype
    base = load_base(config.model, dtype, notify=notify, offload=config.offload)
    if base.quantization is not None:
        message = f"{base.source.folder} is already quantized, so its original weights are lost."
        raise ConfigError(Problem("model", message, "name the model in 16 bits"))
    layers = converted_modules(base.model, settings)
    if not layers:
        message = f"it leaves no linear layer of {base.source.folder} to quantize."
        raise ConfigError(Problem("quantization.modules_to_not_convert", message, "name fewer modules"))
    check_packs_enough(base.model, settings, experts=False)
    notify("Reading the data ...")
    template = template_of(base.tokenizer, config.data)
    sequences = build_loss(config.loss).sequences
    batch_size = config.train.per_device_train_batch_size
    positions = declared_positions(base.model)
    dataset = build_dataset(config.data, template, batch_size, config.seed, notify, sequences, positions)
    check_vocabulary(dataset, base.model, template)
    check_positions(dataset, base.model, notify)
    documents = _some_documents(dataset.train, tokens, config.seed)
    held_out = list(dataset.eval[:_EVAL_DOCUMENTS])
    found = sum(map(len, documents))
    _note_few_tokens(found, layers.values(), notify)
    with files.new_folder(out, replace=False) as folder:
        loss_before = _loss(base, held_out, "loss in 16 bits", progress)
        rounded = _round(base, layers, settings, documents, folder / "rounded", progress)
        about = {
            "base": {"ref": base.source.ref, **base.fingerprint.as_json()},
            "data": data_digests(dataset),
            "output_errors": {name: {"nearest": pair[0], "written": pair[1]} for name, pair in rounded.items()},
        }
        source, base_dtype, ends = base.source.folder, base.dtype, Ends.of(base.model)
        del base, layers  # frees the base before it is loaded again to be saved in 4 bits
        notify("Writing the quantized base ...")
        write_quantized(source, settings, base_dtype, folder / "rounded", folder)
        shutil.rmtree(folder / "rounded")
        packing = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
        changes = {"dtype": dtype_name(base_dtype), "quantization_config": packing}
        complete_folder(folder, source, ends, template, changes, notify=notify)
        written = load_base(str(folder), dtype, notify=notify, offload=config.offload)
        result = QuantizedFolder(
            path=out,
            bits_per_weight=_bits_per_weight(written.model, rounded),
            modules=len(rounded),
            documents=len(documents),
            tokens=found,
            nearest=_mean(nearest for nearest, _ in rounded.values()),
            error=_mean(error for _, error in rounded.values()),
            loss_before=loss_before,
            loss=_loss(written, held_out, "loss in 4 bits", progress),
        )
        files.write_json(folder / REPORT_FILE, {**result.as_json(), **about})
    return result


def _check_request(out: Path, tokens: int, settings: QuantizationConfig) -> None:
    if out.exists():
        raise ConfigError(Problem("--out", f"{out} already exists.", "choose another, or delete it"))
    if tokens < 1:
        fix = f"use 1 at least, or the usual {DEFAULT_TOKENS}"
        raise ConfigError(Problem("--tokens", f"{tokens} is too few.", fix))
    if settings.bits != 4:
        message = "rounding to 8 bits loses almost nothing, so calibration has nothing to improve."
        raise ConfigError(Problem("quantization.bits", message, "set it to 4, or train with bits: 8 directly"))


def _note_few_tokens(found: int, layers: Iterable[nn.Module], notify: Notify) -> None:
    widest = max(_frozen(layer).in_features for layer in layers)
    if found < widest:
        notify(
            f"{found} tokens are few for layers with up to {widest} inputs: on other text, the result may be no better"
            " than rounding to nearest. More data helps, or more --tokens."
        )


def _some_documents(train: Sequence[EncodedExample], tokens: int, seed: int) -> list[EncodedExample]:
    """Draws documents in random order until they have `tokens` tokens, or all of them."""
    chosen, found = [], 0
    for place in torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist():
        if found >= tokens:
            break
        chosen.append(train[place])
        found += len(chosen[-1])
    return chosen


def _round(
    base: Base,
    layers: Mapping[str, nn.Module],
    config: QuantizationConfig,
    documents: Sequence[EncodedExample],
    folder: Path,
    progress: Progress,
) -> dict[str, tuple[float, float]]:
    """Quantizes every layer, and writes each one's packed weights to a separate file in `folder`.

    Returns:
        Module -> error of its outputs with rounding to nearest, and with the saved weights.
    """
    folder.mkdir()
    batches = [build_batch([document]).to(base.model.device).input_ids for document in documents]
    groups = with_same_input(base.model, layers, batches[0])
    errors: dict[str, tuple[float, float]] = {}
    rounds = _rounds(groups, layers, base.model.device)
    for number, together in enumerate(rounds):
        takers = {layers[names[0]]: _Moments() for names in together}
        for done, batch in enumerate(batches, 1):
            run_once(base.model, batch, {layer: moments.take for layer, moments in takers.items()})
            progress("documents run over", number * len(batches) + done, len(rounds) * len(batches))
        for names in together:
            moments = takers.pop(layers[names[0]]).value
            if not bool(moments.isfinite().all()):
                raise ModelError(f"{base.source.folder}: the input of {names[0]} is not finite, so the base is broken.")
            weights = [_frozen(layers[name]).weight(base.dtype).cpu() for name in names]
            for name, weight in zip(names, weights, strict=True):
                if not bool(weight.isfinite().all()):
                    raise ModelError(
                        f"{base.source.folder}: the weight of {name} is not finite, so the base is broken."
                    )
            for name, (layer, nearest, error) in zip(names, round_for_inputs(weights, moments, config), strict=True):
                save_file({"packed": layer.packed}, folder / f"{name}.safetensors")
                errors[name] = nearest, error
            progress("layers rounded", len(errors), sum(map(len, groups)))
    return errors


class _Moments:
    """Accumulates X^T X / T over all documents."""

    def __init__(self) -> None:
        self._sum: torch.Tensor | None = None
        self._rows = 0

    def take(self, given: torch.Tensor) -> None:
        x = given.flatten(0, -2).float()
        self._sum = x.T @ x if self._sum is None else self._sum.addmm_(x.T, x)
        self._rows += len(x)

    @property
    def value(self) -> torch.Tensor:
        """(in_features, in_features), float32, on the CPU."""
        assert self._sum is not None
        return (self._sum / self._rows).cpu()


def _rounds(
    groups: Sequence[list[str]], layers: Mapping[str, nn.Module], device: torch.device
) -> list[list[list[str]]]:
    """Splits the groups of layers into rounds whose moments fit in memory. The result does not depend on it."""
    available = _SHARE_FOR_MOMENTS * available_bytes(device)
    rounds: list[list[list[str]]] = [[]]
    taken = 0
    for names in groups:
        size = 4 * _frozen(layers[names[0]]).in_features ** 2
        if rounds[-1] and taken + size > available:
            rounds.append([])
            taken = 0
        rounds[-1].append(names)
        taken += size
    return rounds


def _frozen(layer: nn.Module) -> FrozenLinear:
    frozen = freeze_linear(layer)
    assert frozen is not None
    return frozen


def _loss(base: Base, documents: Sequence[EncodedExample], what: str, progress: Progress) -> float | None:
    if not documents:
        return None
    report = lambda done: progress(what, done, len(documents))  # noqa: E731
    head = find_head(base.model)
    with fast_path(base.model, longest=max(document.longest for document in documents)) as path:
        parts = (base.model, head, CrossEntropy())
        return evaluate_loss(*parts, documents, _EVAL_BATCH, progress=report, layout=path.layout).loss


def _bits_per_weight(model: nn.Module, quantized: Iterable[str]) -> float:
    packed = [module for module in map(model.get_submodule, quantized) if isinstance(module, PackedLinear)]
    weights = sum(layer.in_features * layer.out_features for layer in packed)
    return 8 * sum(layer.packed_bytes() for layer in packed) / weights


def _mean(errors: Iterable[float]) -> float:
    squares = [error * error for error in errors]
    return math.sqrt(sum(squares) / len(squares))
