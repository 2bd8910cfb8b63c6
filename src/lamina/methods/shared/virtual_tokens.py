"""Virtual tokens: rows before every sequence that the caller never sees.

What prompt tuning, P-tuning and prefix tuning share. Hooks on the decoder (the model without its head) make the call
longer by n rows a sequence, and cut the output back:

    plain call         [padding | document]             ->  [padding | n rows | document]
    packed call        [document | document | ...]      ->  [n rows | document | n rows | document | ...]
    with a full cache  the rows are in the cache; masks and positions count them

Rows stand after a sequence's padding, so that a padded sequence gives what it gives alone. They take the first n
positions.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from lamina.compute.ops.adapter import AdapterModule
from lamina.compute.ops.attention import NAME as PACKED
from lamina.compute.ops.shapes import repeating_size
from lamina.errors import AdapterError, ConfigError, ModelError, Problem
from lamina.structure.layers import text_decoder
from lamina.structure.probe_tokens import probe_tokens

# The one tensor that peft saves.
SAVED_NAME = "prompt_embeddings"

Finish = Callable[[ModelOutput], ModelOutput]


class VirtualTokens(AdapterModule):
    """Rows before every sequence of a model.

    Attributes:
        count: How many rows, n.
    """

    merges: ClassVar[bool] = False

    def __init__(self, model: PreTrainedModel, count: int) -> None:
        """
        Raises:
            ConfigError: The model has no decoder that takes embeddings alone, or one that takes finished masks.
        """
        super().__init__()
        decoder = find_decoder(model)
        _check_masks(model, decoder)
        self.count = count
        self._argument_names = list(inspect.signature(decoder.forward).parameters)
        self._finish: Finish | None = None

    @property
    def virtual_tokens(self) -> int:
        return self.count

    def hook_into(self, model: PreTrainedModel) -> None:
        """Takes part in the model's forward from now on."""
        model.add_module("virtual_tokens", self.train(model.training))
        decoder = find_decoder(model)
        decoder.register_forward_pre_hook(self._before, with_kwargs=True)
        decoder.register_forward_hook(self._after)

    @abstractmethod
    def pack(self, decoder: PreTrainedModel, call: dict[str, Any], lengths: list[int]) -> Finish:
        """Changes a packed call of documents of these lengths; what it returns is applied to the output."""

    @abstractmethod
    def begin(self, decoder: PreTrainedModel, call: dict[str, Any]) -> Finish:
        """Changes a plain call with no cache, or an empty one."""

    def embedding_tensors(self) -> list[str]:
        return [key for key in self.adapter_tensors() if key in (SAVED_NAME, "embedding.weight")]

    def fold_in(self, model: PreTrainedModel, name: str) -> None:
        raise AdapterError("virtual tokens cannot be folded into weights. Fix: use the adapter as it is.")

    def _before(self, decoder: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._finish = None
        if not self.enabled:
            return None
        call = {**dict(zip(self._argument_names, args, strict=False)), **kwargs}
        lengths, cache = call.get("document_lengths"), call.get("past_key_values")
        if lengths is not None or decoder.config._attn_implementation == PACKED:
            self._finish = self.pack(decoder, call, lengths or [_tokens(call)])
        elif cache is None or cache.get_seq_length() == 0:
            _check_plain(call)
            self._finish = self.begin(decoder, call)
        else:
            _check_plain(call)
            if call.get("position_ids") is not None:
                call["position_ids"] = call["position_ids"] + self.count
            if call.get("attention_mask") is not None:
                call["attention_mask"] = _longer_mask(call["attention_mask"], self.count)
        return (), call

    def _after(self, decoder: nn.Module, args: tuple[Any, ...], output: ModelOutput) -> ModelOutput:
        finish, self._finish = self._finish, None
        return output if finish is None else finish(output)


def find_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its head.

    Raises:
        ConfigError: It has none that can be called with embeddings.
    """
    decoder = text_decoder(model)
    takes = inspect.signature(decoder.forward).parameters
    if decoder is model or not isinstance(decoder, PreTrainedModel) or "inputs_embeds" not in takes:
        raise ConfigError(
            Problem(
                "method.type",
                f"{type(model).__name__} has no decoder that takes embeddings, so nothing can be put before a text.",
                "use a method that adapts layers, such as lora",
            )
        )
    return decoder


@torch.no_grad()
def _check_masks(model: PreTrainedModel, decoder: PreTrainedModel) -> None:
    """A model with other inputs than text may make its masks itself, by what it was given."""
    if model.device.type == "meta":  # the structure of one that was looked at
        return
    calls: list[dict[str, Any]] = []
    tokens = probe_tokens(model, 4)
    handle = decoder.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    training = model.training
    try:
        model.eval()(input_ids=tokens, use_cache=False)
    finally:
        model.train(training)
        handle.remove()
    if not all(_is_plain(call.get("attention_mask")) for call in calls):
        message = f"{type(model).__name__} makes the masks of its decoder itself, so nothing can be put before a text."
        raise ConfigError(Problem("method.type", message, "use a method that adapts layers, such as lora"))
    try:
        # Some look up which tokens they are.
        decoder(inputs_embeds=decoder.get_input_embeddings()(tokens) + 1.0, use_cache=False)
    except Exception as error:  # of any kind: it is the model's own code that does not run
        message = f"{type(model).__name__} does not run on embeddings alone, so nothing can be put before a text."
        raise ConfigError(Problem("method.type", message, "use a method that adapts layers, such as lora")) from error


def embed(decoder: PreTrainedModel, call: dict[str, Any]) -> torch.Tensor:
    """The call's embeddings, (B, T, D), scaled as the model scales its own."""
    embeddings = call.get("inputs_embeds")
    return decoder.get_input_embeddings()(call["input_ids"]) if embeddings is None else embeddings


def insert_rows(decoder: PreTrainedModel, call: dict[str, Any], rows_ND: torch.Tensor) -> tuple[torch.Tensor, Finish]:
    """Puts rows into a plain call, after each sequence's padding.

    Args:
        decoder: The model without its head.
        call: Its arguments; embeddings, mask and positions are replaced.
        rows_ND: The rows, of any dtype.

    Returns:
        The order of the longer sequences, (B, n + T): indices into [rows | sequence]. And what cuts the output back.
    """
    x_BTD = embed(decoder, call)
    (batch, tokens, _), count = x_BTD.shape, rows_ND.shape[0]
    mask, positions = call.get("attention_mask"), call.get("position_ids")
    padding = torch.zeros(batch, 1, dtype=torch.long, device=x_BTD.device) if mask is None else _leading_zeros(mask)
    order = _order(padding, count, tokens)
    rows = rows_ND.to(x_BTD.dtype).expand(batch, -1, -1)
    call["input_ids"] = None
    call["inputs_embeds"] = torch.cat([rows, x_BTD], 1).take_along_dim(order[..., None], 1)
    if mask is not None:
        call["attention_mask"] = _longer_mask(mask, count)
    if positions is not None:
        first = torch.arange(count, device=positions.device).expand(batch, -1)
        both = torch.cat([first, positions.expand(batch, -1) + count], 1)
        call["position_ids"] = both.take_along_dim(order, 1)
    column = torch.arange(tokens, device=x_BTD.device)
    kept = torch.where(column < padding, column, column + count)[..., None]
    return order, lambda output: _cut(output, lambda hidden: hidden.take_along_dim(kept, 1))


def pack_rows(decoder: PreTrainedModel, call: dict[str, Any], lengths: Sequence[int], rows_ND: torch.Tensor) -> Finish:
    """Puts rows before each document of a packed call; embeddings, positions and lengths are replaced.

    Args:
        decoder: The model without its head.
        call: Its arguments.
        lengths: Tokens of each document.
        rows_ND: The rows, of any dtype.

    Returns:
        What cuts the output back.
    """
    x_1TD, count = embed(decoder, call), rows_ND.shape[0]
    rows = rows_ND.to(x_1TD.dtype)[None]
    positions, first = packed_positions(call, lengths, x_1TD.device), torch.arange(count, device=x_1TD.device)[None]
    longer = [count + length for length in lengths]
    pieces = [piece for document in x_1TD.split(list(lengths), 1) for piece in (rows, document)]
    places = [piece for document in positions.split(list(lengths), 1) for piece in (first, document + count)]
    total = sum(longer)
    filler = repeating_size(total) - total if x_1TD.device.type == "cpu" else 0
    if filler:  # a last document that nobody asks for; see `compute/ops/shapes.py`
        pieces.append(x_1TD.new_zeros(1, filler, x_1TD.shape[2]))
        places.append(torch.arange(filler, device=x_1TD.device)[None])
    call["input_ids"] = None
    call["inputs_embeds"] = torch.cat(pieces, 1)
    call["position_ids"] = torch.cat(places, 1)
    call["document_lengths"] = [*longer, filler] if filler else longer
    return lambda output: _cut(output, lambda hidden: without_rows(hidden[:, :total], longer, count))


def packed_positions(call: dict[str, Any], lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """(1, T): the positions of a packed call, which start again at each document."""
    if call.get("position_ids") is not None:
        return call["position_ids"]
    return torch.cat([torch.arange(length, device=device) for length in lengths])[None]


def without_rows(hidden_1TD: torch.Tensor, longer: Sequence[int], count: int) -> torch.Tensor:
    """A packed output without the first `count` rows of each document."""
    return torch.cat([document[:, count:] for document in hidden_1TD.split(list(longer), 1)], 1)


def _tokens(call: dict[str, Any]) -> int:
    tensor = call["input_ids"] if call.get("inputs_embeds") is None else call["inputs_embeds"]
    return tensor.shape[1]


def _check_plain(call: dict[str, Any]) -> None:
    if not _is_plain(call.get("attention_mask")):
        raise ModelError(
            "virtual tokens need an attention mask of shape (batch, tokens), which they can make longer; a static "
            "cache, or the caller, made a finished one. Fix: use the default (dynamic) cache, and such a mask."
        )
    if call.get("token_type_ids") is not None:
        raise ModelError("virtual tokens have no token types. Fix: leave token_type_ids out.")


def _is_plain(mask: Any) -> bool:
    """Whether a mask is none, or says of each token alone whether it is there."""
    return mask is None or (isinstance(mask, torch.Tensor) and mask.ndim == 2)


def _leading_zeros(mask_BT: torch.Tensor) -> torch.Tensor:
    """(B, 1): how much padding a sequence begins with."""
    return (mask_BT.long().cumsum(1) == 0).sum(1, keepdim=True)


def _order(padding_B1: torch.Tensor, count: int, tokens: int) -> torch.Tensor:
    """(B, n + T): indices into [n rows | T tokens] that put the rows after the padding."""
    column = torch.arange(count + tokens, device=padding_B1.device)
    after_padding = torch.where(column < padding_B1 + count, column - padding_B1, column)
    return torch.where(column < padding_B1, column + count, after_padding)


def _longer_mask(mask_BT: torch.Tensor, count: int) -> torch.Tensor:
    both = torch.cat([mask_BT.new_ones(mask_BT.shape[0], count), mask_BT], 1)
    return both.take_along_dim(_order(_leading_zeros(mask_BT), count, mask_BT.shape[1]), 1)


def _cut(output: ModelOutput, cut: Callable[[torch.Tensor], torch.Tensor]) -> ModelOutput:
    output["last_hidden_state"] = cut(output["last_hidden_state"])
    if output.get("hidden_states") is not None:
        output["hidden_states"] = tuple(cut(hidden) for hidden in output["hidden_states"])
    return output
