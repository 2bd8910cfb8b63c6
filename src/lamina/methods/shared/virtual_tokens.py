"""Virtual tokens: n rows that are inserted before every sequence, invisibly to the caller.

Shared by prompt tuning, P-tuning and prefix tuning. Hooks on the decoder (the model without its head) insert n rows per
sequence into a call, and remove them from the output:

    plain call         [padding | document]             ->  [padding | n rows | document]
    packed call        [document | document | ...]      ->  [n rows | document | n rows | document | ...]
    with a filled cache  the rows are in the cache; masks and positions count them

The rows are inserted after a sequence's padding, so that a padded sequence has the same output as alone. They take the
first n positions.
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
from lamina.structure.plain_tokens import plain_tokens

# The one tensor that peft saves.
SAVED_NAME = "prompt_embeddings"

Finish = Callable[[ModelOutput], ModelOutput]


class VirtualTokens(AdapterModule):
    """Rows before every sequence of a model.

    Attributes:
        count: Number of rows, n.
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
        """Registers the hooks on the model's decoder."""
        model.add_module("virtual_tokens", self.train(model.training))
        decoder = find_decoder(model)
        decoder.register_forward_pre_hook(self._before, with_kwargs=True)
        decoder.register_forward_hook(self._after)

    @abstractmethod
    def pack(self, decoder: PreTrainedModel, call: dict[str, Any], lengths: list[int]) -> Finish:
        """Changes the arguments of a packed call of documents of these lengths. The result is applied to the output."""

    @abstractmethod
    def begin(self, decoder: PreTrainedModel, call: dict[str, Any]) -> Finish:
        """Changes the arguments of a plain call without a cache or with an empty one."""

    def embedding_tensors(self) -> list[str]:
        return [key for key in self.adapter_tensors() if key in (SAVED_NAME, "embedding.weight")]

    def fold_in(self, model: PreTrainedModel, name: str) -> None:
        raise AdapterError("virtual tokens cannot be merged into weights. Fix: use them as an adapter.")

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
    """Finds the decoder, the model without its head.

    Raises:
        ConfigError: The model has no decoder that accepts embeddings.
    """
    decoder = text_decoder(model)
    takes = inspect.signature(decoder.forward).parameters
    if decoder is model or not isinstance(decoder, PreTrainedModel) or "inputs_embeds" not in takes:
        raise ConfigError(
            Problem(
                "method.type",
                f"{type(model).__name__} has no decoder that accepts embeddings, so no rows can be put before a text.",
                "use a method that adapts layers, such as lora",
            )
        )
    return decoder


@torch.no_grad()
def _check_masks(model: PreTrainedModel, decoder: PreTrainedModel) -> None:
    """Checks that the model does not build its decoder's masks itself, as some multimodal models do."""
    if model.device.type == "meta":  # a skeleton of a model that was already checked
        return
    calls: list[dict[str, Any]] = []
    tokens = plain_tokens(model, 4)
    handle = decoder.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    training = model.training
    try:
        model.eval()(input_ids=tokens, use_cache=False)
    finally:
        model.train(training)
        handle.remove()
    if not all(_is_plain(call.get("attention_mask")) for call in calls):
        message = f"{type(model).__name__} builds its decoder's masks itself, so no rows can be put before a text."
        raise ConfigError(Problem("method.type", message, "use a method that adapts layers, such as lora"))
    try:
        # Some look up which tokens they are.
        decoder(inputs_embeds=decoder.get_input_embeddings()(tokens) + 1.0, use_cache=False)
    except Exception as error:  # of any kind: it is the model's own code that does not run
        message = f"{type(model).__name__} does not run on embeddings alone, so nothing can be put before a text."
        raise ConfigError(Problem("method.type", message, "use a method that adapts layers, such as lora")) from error


def embed(decoder: PreTrainedModel, call: dict[str, Any]) -> torch.Tensor:
    """Computes the call's embeddings, (B, T, D), scaled as the model scales its own."""
    embeddings = call.get("inputs_embeds")
    return decoder.get_input_embeddings()(call["input_ids"]) if embeddings is None else embeddings


def insert_rows(decoder: PreTrainedModel, call: dict[str, Any], rows_ND: torch.Tensor) -> tuple[torch.Tensor, Finish]:
    """Inserts rows into a plain call, after each sequence's padding.

    Args:
        decoder: The model without its head.
        call: The call's arguments; embeddings, mask and positions are replaced.
        rows_ND: The rows, of any dtype.

    Returns:
        The order of the longer sequences, (B, n + T), as indices into [rows | sequence]; and a function that removes
        the rows from the output.
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
    """Inserts rows before each document of a packed call; embeddings, positions and lengths are replaced.

    Args:
        decoder: The model without its head.
        call: The call's arguments.
        lengths: Tokens of each document.
        rows_ND: The rows, of any dtype.

    Returns:
        A function that removes the rows from the output.
    """
    x_1TD, count = embed(decoder, call), rows_ND.shape[0]
    rows = rows_ND.to(x_1TD.dtype)[None]
    positions, first = packed_positions(call, lengths, x_1TD.device), torch.arange(count, device=x_1TD.device)[None]
    longer = [count + length for length in lengths]
    pieces = [piece for document in x_1TD.split(list(lengths), 1) for piece in (rows, document)]
    places = [piece for document in positions.split(list(lengths), 1) for piece in (first, document + count)]
    total = sum(longer)
    filler = repeating_size(total) - total if x_1TD.device.type == "cpu" else 0
    if filler:  # a filler document rounds the length up to one that repeats; see `compute/ops/shapes.py`
        pieces.append(x_1TD.new_zeros(1, filler, x_1TD.shape[2]))
        places.append(torch.arange(filler, device=x_1TD.device)[None])
    call["input_ids"] = None
    call["inputs_embeds"] = torch.cat(pieces, 1)
    call["position_ids"] = torch.cat(places, 1)
    call["document_lengths"] = [*longer, filler] if filler else longer
    return lambda output: _cut(output, lambda hidden: without_rows(hidden[:, :total], longer, count))


def packed_positions(call: dict[str, Any], lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """Returns the positions of a packed call, (1, T), which restart at each document."""
    if call.get("position_ids") is not None:
        return call["position_ids"]
    return torch.cat([torch.arange(length, device=device) for length in lengths])[None]


def without_rows(hidden_1TD: torch.Tensor, longer: Sequence[int], count: int) -> torch.Tensor:
    """Removes the first `count` rows of each document from a packed output."""
    return torch.cat([document[:, count:] for document in hidden_1TD.split(list(longer), 1)], 1)


def _tokens(call: dict[str, Any]) -> int:
    tensor = call["input_ids"] if call.get("inputs_embeds") is None else call["inputs_embeds"]
    return tensor.shape[1]


def _check_plain(call: dict[str, Any]) -> None:
    if not _is_plain(call.get("attention_mask")):
        raise ModelError(
            "virtual tokens need an attention mask of shape (batch, tokens), which they can extend, but a static cache "
            "or the caller passed a mask of another shape. Fix: use the default (dynamic) cache, and such a mask."
        )
    if call.get("token_type_ids") is not None:
        raise ModelError("virtual tokens have no token types. Fix: do not pass token_type_ids.")


def _is_plain(mask: Any) -> bool:
    """Whether a mask is None or has the shape (batch, tokens)."""
    return mask is None or (isinstance(mask, torch.Tensor) and mask.ndim == 2)


def _leading_zeros(mask_BT: torch.Tensor) -> torch.Tensor:
    """Counts the padding at the start of each sequence: (B, 1)."""
    return (mask_BT.long().cumsum(1) == 0).sum(1, keepdim=True)


def _order(padding_B1: torch.Tensor, count: int, tokens: int) -> torch.Tensor:
    """Computes indices into [n rows | T tokens] that move the rows after the padding: (B, n + T)."""
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
