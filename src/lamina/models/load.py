"""Loads a frozen base model and its tokenizer, in the dtype that suits the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lamina.config.quantization import QuantizationConfig
from lamina.errors import ConfigError, ModelError, Problem
from lamina.machine.hardware import bound_product_cache, choose_dtype, default_device, find_device
from lamina.machine.quiet import quiet_transformers
from lamina.models.fingerprint import BaseFingerprint, fingerprint_base, weight_files
from lamina.models.new_tokens import AddedTokens, NewTokens, add_rows, add_to_tokenizer
from lamina.models.offload import leave_on_disk, wants_offload
from lamina.models.read import read_model
from lamina.models.remote_code import allow_code, is_allowed, refusal
from lamina.models.source import ModelSource, find_model
from lamina.models.stored import agreed, stored_quantization
from lamina.models.weights import find_packing, packed_modules
from lamina.progress import Notify
from lamina.quantization.report import ENOUGH, Packing
from lamina.structure.causality import check_causal

if TYPE_CHECKING:
    from lamina.models.quantized.load import PlanLoftq


@dataclass(frozen=True)
class Base:
    """A frozen base model.

    Attributes:
        model: A causal language model of transformers in evaluation mode; no parameter requires a gradient.
        tokenizer: The model's tokenizer.
        source: Where the model came from.
        dtype: The dtype of the weights, or, if they are quantized, the dtype that they are dequantized to.
        quantization: How the weights are quantized; None if they are not.
        packed_digest: Digest of the packed weights; None if `fingerprint` covers them.
        packing: How much of the model is quantized; None if nothing is.
        rounding_errors: Module -> |W - Q| / |W| (Frobenius norms), and with LoftQ |W - Q - s B A| / |W| after each
            round. Empty without quantization, or if the original weights are not known.
        added: The tokens that were added to tokenizer, embedding and head; None for none.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: ModelSource
    dtype: torch.dtype
    quantization: QuantizationConfig | None = None
    packed_digest: str | None = None
    packing: Packing | None = None
    rounding_errors: Mapping[str, list[float]] = field(default_factory=dict)
    added: AddedTokens | None = None

    @cached_property
    def fingerprint(self) -> BaseFingerprint:
        """Digests of the model's tensors and config on disk."""
        return fingerprint_base(self.source.folder)


def load_base(
    ref: str | Path,
    dtype: str = "auto",
    device: torch.device | str | None = None,
    notify: Notify = lambda message: None,
    quantization: QuantizationConfig | None = None,
    plan_loftq: PlanLoftq | None = None,
    offload: bool | Literal["auto"] = "auto",
    tokens: NewTokens | None = None,
    trust_remote_code: bool = False,
) -> Base:
    """Loads a base model.

    Args:
        ref: An alias, a folder, a `.gguf` file, or a hub id.
        dtype: `auto`, `bfloat16`, `float16` or `float32`.
        device: The device to load it on, or its name; by default CUDA if there is one.
        notify: Called with a message before anything that takes a while.
        quantization: Quantizes the weights of linear layers to 4 or 8 bits, one by one as they are read.
        plan_loftq: Computes which weights LoftQ splits before they are quantized; None without LoftQ.
        offload: Whether the layers' weights stay on disk; `auto` leaves them there if the base does not fit in memory.
        tokens: Tokens to add to tokenizer, embedding and head.
        trust_remote_code: Allow Python code that comes with the model, as it is now; see `remote_code.py`.

    Raises:
        ConfigError: No model can have that name, there is no such device, or quantization or tokens do not fit the
            model.
        ModelError: The model cannot be downloaded or loaded, or it is not a causal language model, by its config.json,
            by its weights, or because it sees later tokens.
    """
    bound_product_cache()
    source = find_model(ref, notify, code=trust_remote_code)
    if trust_remote_code and (meaning := allow_code(source.folder)):
        notify(meaning)
    device = (find_device(device) if isinstance(device, str) else device) or default_device()
    if quantization is not None and quantization.compute_dtype != "auto":
        dtype = quantization.compute_dtype
    chosen = choose_dtype(dtype, device)
    tokenizer = load_tokenizer(source)
    known = add_to_tokenizer(tokenizer, tokens or NewTokens())
    weight_files(source.folder)
    stored = stored_quantization(source.folder)
    if quantization is None and stored is None:
        model = read_model(source.folder, chosen, notify).to(device)  # pyright: ignore[reportArgumentType]
        base = Base(model, tokenizer, source, chosen)
        files = weight_files(source.folder)
    else:
        from lamina.models.quantized.load import load_packed

        quantization = agreed(quantization, stored, source.folder)
        if stored is not None and plan_loftq is not None:
            message = f"'loftq' needs the original weights, but {source.folder} is already quantized."
            raise ConfigError(Problem("method.init_lora_weights", message, "name the model in 16 bits"))
        packed = load_packed(source.folder, quantization, stored is not None, chosen, device, notify, plan_loftq)
        packing = find_packing(packed.model, packed_modules(packed.model))
        if stored is not None and packing.share < ENOUGH:
            notify(packing.line())
        base = Base(packed.model, tokenizer, source, chosen, quantization, packed.digest, packing, packed.errors)
        files = packed.files
    if tokens:
        base = replace(base, added=add_rows(base.model, tokenizer, tokens, known))
    base.model.requires_grad_(False).eval()
    check_causal(base.model)
    if wants_offload(offload, files, device):
        notify(leave_on_disk(base.model, files).line())
    return base


def load_tokenizer_in(folder: Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer that lies in a folder without a model.

    Raises:
        ModelError: It cannot be loaded.
    """
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: its tokenizer cannot be loaded: {error}") from error


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Loads only a model's tokenizer.

    Raises:
        ModelError: The tokenizer is missing or cannot be loaded.
    """
    try:
        code = is_allowed(source.folder)
        AutoConfig.from_pretrained(source.folder, local_files_only=True, trust_remote_code=code)
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(source.folder, local_files_only=True, trust_remote_code=code)
    except (OSError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(refusal(source.folder)) from error
        raise ModelError(f"{source.folder}: its config or tokenizer cannot be loaded: {error}") from error
