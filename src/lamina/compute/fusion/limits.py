"""Finds what rules out lamina's attention or packing for long documents, which two short documents cannot show.

* Which tokens may see each other: lamina's attention implements causal attention and the sliding window that a layer
  passes. A model whose mask differs (chunked attention, a window that only the mask knows) is found here.
* Whether rotary positions depend on the length of the whole sequence (longrope, dynamic NTK), so that a long document
  would change the positions of the short ones in the same sequence.
* Whether attention itself numbers the tokens of the whole sequence (Llama 4's temperature, which is 1 for two short
  documents), so that a document's outputs depend on what comes before it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from lamina.compute.fusion.exactness import plain_model
from lamina.compute.fusion.recognize import first_line
from lamina.compute.ops.attention import packed_attention_forward

_NAME = "lamina_limits"
_TOKENS = 9

# Queries whose keys are compared: so many spread evenly over the longest document, the first ones, and those around a
# window's end.
_EVEN, _FIRST = 32, 40

# A position after all others of a sequence.
_FAR = 2**20

# (batch, head, query, key) -> whether the key is visible; transformers builds masks from such functions.
MaskFunction = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Limits:
    """Reasons against a layout; None where there is none.

    Attributes:
        attention: Why lamina's attention cannot be used.
        together: Why several documents cannot share a sequence.
        padded: Why documents cannot be rows of a padded batch.
    """

    attention: str | None = None
    together: str | None = None
    padded: str | None = None


@dataclass
class _Seen:
    """What one forward over a short document called."""

    masks: dict[int, tuple[MaskFunction, torch.Tensor]] = field(default_factory=dict)  # by the mask's data pointer
    calls: list[tuple[torch.Tensor | None, int | None]] = field(default_factory=list)  # mask and window of a layer
    rotary: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    numbers_tokens: list[str] = field(default_factory=list)  # attention that does so by itself


def find_limits(model: PreTrainedModel, longest: int) -> Limits:
    """Evaluates the model's mask functions and rotary positions for a document of `longest` tokens.

    If that fails, both are ruled out.
    """
    try:
        seen = _look(model)
    except Exception as error:  # of any kind: a model of unknown code may fail in any way
        reason = f"what its attention sees cannot be determined ({first_line(error)})"
        return Limits(reason, reason, reason)
    attention = next((reason for call in seen.calls if (reason := _mask_differs(seen, *call, longest))), None)
    together = padded = None
    if any(_depends_on_length(module, *call, longest) for module, call in seen.rotary.items()):
        together = padded = (
            f"its rotary positions depend on the longest document of a sequence (here up to {longest} tokens)"
        )
    elif seen.numbers_tokens:
        together = f"{seen.numbers_tokens[0]} numbers the tokens of the whole sequence, not of each document"
    return Limits(attention, together, padded)


@torch.no_grad()
def _look(model: PreTrainedModel) -> _Seen:
    seen = _Seen()
    asked: dict[nn.Module, tuple[torch.Tensor, ...]] = {}

    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        seen.calls.append((attention_mask, kwargs.get("sliding_window")))
        asked[module] = query, key, value
        return packed_attention_forward(module, query, key, value, None, *args, **kwargs)

    def build_mask(q_length: int, kv_length: int, mask_function: MaskFunction, **others: Any) -> torch.Tensor:
        mask = torch.ones(1, 1, q_length, kv_length, dtype=torch.bool, device=model.device)
        seen.masks[mask.untyped_storage().data_ptr()] = (mask_function, mask)
        return mask

    def rotary(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        angles = output if isinstance(output, tuple) else (output,)  # of complex numbers, there is one tensor
        is_asked = any(_is_positions(x) for x in (*args, *kwargs.values()))
        if is_asked and len(angles) <= 2 and all(_is_angles(angle) for angle in angles):
            seen.rotary[module] = (args, kwargs)

    def ask_far_off(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if module in asked:
            first, calls = asked.pop(module), len(seen.calls)
            try:
                with _FarOff():
                    module.forward(*args, **kwargs)
                same = all(torch.equal(a, b) for a, b in zip(asked.pop(module), first, strict=True))
            except Exception:  # of any kind, such as a position table that is too short
                same = False
            if not same:
                seen.numbers_tokens.append(type(module).__name__)
            del seen.calls[calls:]

    # Packed weights are buffers, so a quantized attention has no parameters either; but it has child modules.
    without_weights = (m for m in model.modules() if not any(m.children()) and next(m.parameters(), None) is None)
    handles = [module.register_forward_hook(rotary, with_kwargs=True) for module in without_weights]
    with_parts = (m for m in model.modules() if any(m.children()))
    handles += [module.register_forward_hook(ask_far_off, with_kwargs=True) for module in with_parts]
    own = model.config._attn_implementation
    AttentionInterface.register(_NAME, attention)
    AttentionMaskInterface.register(_NAME, build_mask)
    model.set_attn_implementation(_NAME)
    try:
        ids = torch.arange(1, _TOKENS + 1, device=model.device)[None] % model.config.get_text_config().vocab_size
        with plain_model(model):
            model(input_ids=ids, use_cache=False)
    finally:
        model.set_attn_implementation(own or "eager")
        for handle in handles:
            handle.remove()
    return seen


def _mask_differs(seen: _Seen, mask: Any, window: int | None, longest: int) -> str | None:
    known = seen.masks.get(mask.untyped_storage().data_ptr()) if isinstance(mask, torch.Tensor) else None
    if known is None:  # no mask, or one that the model made itself: lamina's attention is called with it and refuses it
        return None
    queries = {*range(min(longest, _FIRST)), *torch.linspace(0, longest - 1, _EVEN).long().tolist()}
    if window is not None:
        queries |= {q for q in range(window - 2, window + 2) if 0 <= q < longest}
    rows = torch.tensor(sorted(queries), device=mask.device)[:, None]
    columns = torch.arange(longest, device=mask.device)[None]
    expected = (columns <= rows) & (rows - columns < (longest if window is None else window))
    zero = torch.zeros((), dtype=torch.long, device=mask.device)
    try:
        visible = known[0](zero, zero, rows, columns).expand_as(expected)
    except Exception:  # a mask made for this document's tokens, which cannot be evaluated for a longer one
        return "its attention has a mask of its own"
    if torch.equal(visible, expected):
        return None
    what = "causal attention" if window is None else f"a sliding window of {window}"
    return f"its mask for {longest} tokens is not that of {what}"


class _FarOff(TorchFunctionMode):
    """Inside it, what numbers tokens by itself numbers them as if they stood far behind others."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result + _FAR if func is torch.arange else result


def _is_angles(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def _is_positions(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_floating_point() and value.shape[-1:] == (_TOKENS,)


@torch.no_grad()
def _depends_on_length(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], longest: int) -> bool:
    """Whether the angles of the first positions change if more positions follow."""

    def angles(length: int) -> list[torch.Tensor]:
        def longer(value: Any) -> Any:
            if not _is_positions(value):
                return value
            return torch.arange(length, device=value.device).expand(*value.shape[:-1], length)

        fresh = copy.deepcopy(module)  # such modules cache the longest sequence
        output = fresh(*map(longer, args), **{name: longer(value) for name, value in kwargs.items()})
        output = output if isinstance(output, tuple) else (output,)
        return [angle[..., :_TOKENS, :] for angle in output]

    if longest <= _TOKENS:
        return False
    return not all(torch.equal(a, b) for a, b in zip(angles(longest), angles(_TOKENS), strict=True))
