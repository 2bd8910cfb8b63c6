"""Exact attention over packed documents, through transformers' attention interface.

Registered as `lamina_packed`. Each document attends only to itself, causally, within a sliding window if the layer has
one. There is no padding and no mask over the whole sequence. `packed_attention(model)` switches a model to this
implementation, and back to its own afterwards.

Every argument that a layer passes to the interface is either honored or refused with `Unsupported`, never ignored. The
caller tests whether the model's outputs stay the same (`compute/fusion/exactness.py`).

On the CPU the kernels of `compute/kernels/attention.cpp` compute it, on CUDA FlashAttention (`compute/ops/flash.py`).
What they do not support runs document by document through torch's own kernels. There we use our own backward on CUDA,
because torch's adds up in any order, and for short documents on the CPU, because torch's takes several milliseconds
however short a document is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from lamina.compute.kernels import kernels_for, native
from lamina.compute.ops import flash
from lamina.compute.ops.flash import FlashCall, FlashState
from lamina.compute.ops.sequence import current_split, gather_heads, own_heads, whole_documents
from lamina.errors import ModelError
from lamina.machine.quiet import quiet_transformers
from lamina.structure.layers import text_decoder

NAME = "lamina_packed"

# Up to this many tokens our own backward is faster on the CPU (docs/benchmarks.md).
SHORT_DOCUMENT = 160

# Queries that our own backward handles at once: bounds the scores in memory, and skips the keys after the block.
QUERY_BLOCK = 256

# Arguments of other implementations that have no effect on packed documents without a cache: what is returned or
# cached, position ids (queries and keys are already rotated), and the layer's index.
_HARMLESS = frozenset(
    {"position_ids", "layer_idx", "use_cache", "output_attentions", "output_hidden_states", "output_router_logits"}
)


class Unsupported(Exception):
    """A layer asks the attention interface for something that is not implemented here; the message says what."""


@dataclass
class _Call:
    """The document lengths of the running forward, for layers that do not pass `document_lengths` on."""

    lengths: list[int] | None = None


# One for the process: attention runs inside the decoder's forward, also when checkpointing recomputes it.
_call = _Call()


@contextlib.contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Switches `model` to packed attention inside the block. A backward that recomputes layers must run inside it too.

    Raises:
        ModelError: The model does not go through transformers' attention interface.
    """

    def note_documents(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _call.lengths = kwargs.get("document_lengths")

    AttentionInterface.register(NAME, packed_attention_forward)
    own = model.config._attn_implementation
    with quiet_transformers():
        model.set_attn_implementation(NAME)
    called = {model, text_decoder(model)}
    handles = [module.register_forward_pre_hook(note_documents, with_kwargs=True) for module in called]
    try:
        if model.config._attn_implementation != NAME:
            raise ModelError(f"{type(model).__name__} does not go through transformers' attention interface")
        yield
    finally:
        for handle in handles:
            handle.remove()
        _call.lengths = None
        model.set_attn_implementation(own or "eager")


def packed_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    document_lengths: list[int] | None = None,
    attention_prefix: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Computes causal attention within each document.

    Args:
        module: The attention layer; its `layer_idx` selects the prefix.
        query: (1, query heads, T, head size).
        key: (1, key heads, T, head size); query heads are a multiple of key heads.
        value: Like `key`; its head size may be another.
        attention_mask: Must be None; packed sequences have none.
        dropout: Probability for the attention weights.
        scaling: Factor on query key^T; by default 1 / sqrt(head size).
        sliding_window: How many tokens a token sees, itself included; None for all.
        softcap: Attention scores become softcap * tanh(scores / softcap) (Gemma 2).
        s_aux: (query heads,), attention sinks: for each head a score in the softmax that belongs to no token (GPT-OSS).
        is_causal: Must be true; or None, if the layer's own `is_causal` is true.
        document_lengths: Tokens of each document; by default those that the decoder was called with, or one document.
        attention_prefix: For each layer, keys and values (1, key heads, n, head size) that are put before every
            document; they count toward the window.
        others: Arguments of other implementations, which must have no effect here.

    Returns:
        (1, T, query heads, value's head size), and None for the weights.

    Raises:
        Unsupported: The layer asks for more than that.
    """
    lengths = document_lengths or _call.lengths or [query.shape[2]]
    if (split := current_split()) is not None and attention_prefix is None:  # with a prefix, parts are refused below
        s_aux = None if s_aux is None else own_heads(s_aux, split)
        settings = (attention_mask, dropout, scaling, sliding_window, softcap, s_aux, is_causal, lengths)
        with whole_documents(query, key, value, split) as parts:
            return gather_heads(packed_attention_forward(module, *parts, *settings, **others)[0], split), None
    _check_call(module, query, attention_mask, lengths, is_causal, others)
    if attention_prefix is not None:
        layer: int = module.layer_idx  # pyright: ignore[reportAssignmentType]
        keys, values = attention_prefix[layer]
        longer = [keys.shape[2] + length for length in lengths]
        nothing = query.new_zeros(1, query.shape[1], keys.shape[2], query.shape[3])
        query, key, value = (
            _each_begins_with(rows.to(x.dtype), x, lengths)
            for rows, x in ((nothing, query), (keys, key), (values, value))
        )
        settings = (dropout, scaling, sliding_window, softcap, s_aux, is_causal, longer)
        out, _ = packed_attention_forward(module, query, key, value, None, *settings)
        return torch.cat([document[:, keys.shape[2] :] for document in out.split(longer, 1)], 1), None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    settings = AttentionSettings(lengths, scale, sliding_window, softcap)
    if dropout == 0.0 and (s_aux is None or _native(*_all_tokens_first(query, key, value))):
        return _PackedAttention.apply(query, key, value, s_aux, settings), None  # pyright: ignore[reportReturnType]
    outputs = [
        _attend(q, k, v, settings, dropout, s_aux)
        for q, k, v in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _check_call(
    module: nn.Module,
    query: torch.Tensor,
    attention_mask: torch.Tensor | None,
    lengths: list[int],
    is_causal: bool | None,
    others: dict[str, Any],
) -> None:
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    unknown = sorted(name for name, value in others.items() if value is not None and name not in _HARMLESS)
    if attention_mask is not None:
        raise Unsupported("its attention is given a mask of its own")
    if not causal:
        raise Unsupported("its attention is not causal")
    if unknown:
        raise Unsupported(f"its attention is given {', '.join(unknown)}, which lamina's does not know")
    if query.shape[0] != 1 or sum(lengths) != query.shape[2]:
        raise Unsupported(f"its attention has {query.shape[0]} x {query.shape[2]} tokens, not those of its documents")


def _each_begins_with(rows_1HND: torch.Tensor, x_1HTD: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Puts `rows` before each document. The heads of a token stay contiguous in memory, as the kernels require."""
    rows = rows_1HND.transpose(1, 2)
    documents = x_1HTD.transpose(1, 2).split(lengths, 1)
    return torch.cat([part for document in documents for part in (rows, document)], 1).transpose(1, 2)


@dataclass(frozen=True)
class AttentionSettings:
    lengths: list[int]
    scale: float
    window: int | None
    softcap: float | None

    def as_arguments(self) -> tuple[list[int], float, int | None, float | None]:
        """Lists the settings in the kernels' order."""
        return self.lengths, self.scale, self.window, self.softcap

    def as_flash_call(self) -> FlashCall:
        """For FlashAttention, which knows no softcap."""
        return FlashCall(self.lengths, self.scale, self.window)


def _native(q_THD: torch.Tensor, k_TJD: torch.Tensor, v_TJD: torch.Tensor) -> bool:
    return kernels_for(q_THD) is native and native.can_attend(q_THD, k_TJD, v_TJD)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    settings: AttentionSettings,
    dropout: float,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes one document with torch's own kernels: (1, H, L, D) in and out, sinks (H,)."""
    length, softcap, scale = query.shape[2], settings.softcap, settings.scale
    window = length if settings.window is None else min(settings.window, length)
    grouped = query.shape[1] != key.shape[1]
    if softcap is None and sinks is None and window == length:
        return F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=grouped
        )
    visible = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    if window < length:
        visible = visible.triu(1 - window)
    if softcap is None and sinks is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, dropout_p=dropout, scale=scale, enable_gqa=grouped
        )
    if grouped:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible, float("-inf")).float()
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)], -1)
    weights = scores.softmax(-1)[..., :length].to(query.dtype)
    return F.dropout(weights, dropout) @ value


class _PackedAttention(torch.autograd.Function):
    """Attention over a packed sequence, without dropout. Tensors are (1, heads, T, head size).

    Sinks (heads,) are added to the native kernel's softmax afterwards. With lse the kernel's logsumexp, and
    exp(lse') = exp(lse) + exp(sink), a sink gets the weight exp(sink - lse'), and the output is scaled by
    exp(lse - lse'). The backward of queries, keys and values is the kernel's own, with lse' in place of lse.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
        settings: AttentionSettings,
    ) -> torch.Tensor:
        q, k, v = _all_tokens_first(query, key, value)
        out = q.new_empty(*q.shape[:2], v.shape[-1])
        ctx.state = attention_forward(q, k, v, settings, out)
        if sinks is not None:
            lse_HT: Any = ctx.state
            ctx.state = torch.logaddexp(lse_HT, sinks.float()[:, None])
            out.mul_((lse_HT - ctx.state).exp_().T[..., None])
        ctx.save_for_backward(q, k, v, out, sinks)
        ctx.settings = settings
        return out[None]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, out, sinks = ctx.saved_tensors
        grad = grads[0][0].contiguous()
        results = tuple(tensor.new_empty(tensor.shape) for tensor in (q, k, v))
        attention_backward(q, k, v, out, grad, ctx.settings, ctx.state, results)
        grad_sinks = None
        if sinks is not None and ctx.needs_input_grad[3]:
            shares_HT = (sinks.float()[:, None] - ctx.state).exp_()
            grad_sinks = -(shares_HT * (grad.float() * out.float()).sum(-1).T).sum(1).to(sinks.dtype)
        return *(result.transpose(0, 1)[None] for result in results), grad_sinks, None


def _all_tokens_first(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(_tokens_first(tensor) for tensor in tensors)


def _tokens_first(x_1HTD: torch.Tensor) -> torch.Tensor:
    """Reshapes (1, heads, T, D) to (T, heads, D) with the heads of a token contiguous, as the kernels require."""
    x_THD = x_1HTD[0].transpose(0, 1)
    return x_THD if x_THD.stride()[1:] == (x_THD.shape[2], 1) else x_THD.contiguous()


def attention_forward(
    q_THD: torch.Tensor, k_TJD: torch.Tensor, v_TJD: torch.Tensor, settings: AttentionSettings, out_THD: torch.Tensor
) -> torch.Tensor | FlashState | None:
    """Computes attention over every document, without autograd.

    Args:
        q_THD: Queries, (T, query heads, head size).
        k_TJD: Keys, (T, key heads, head size).
        v_TJD: Values, like the keys.
        settings: Document lengths, scale, window and softcap.
        out_THD: Output.

    Returns:
        The state that `attention_backward` needs.
    """
    if flash.supports(q_THD, v_TJD, settings.softcap):
        out, state = flash.forward(q_THD, k_TJD, v_TJD, settings.as_flash_call())
        out_THD.copy_(out)
        return state
    if _native(q_THD, k_TJD, v_TJD):
        return native.attention(q_THD, k_TJD, v_TJD, *settings.as_arguments(), out_THD)
    for document in _documents(settings):
        q, k, v = (tensor[document].transpose(0, 1)[None] for tensor in (q_THD, k_TJD, v_TJD))
        out_THD[document] = _attend(q, k, v, settings, dropout=0.0)[0].transpose(0, 1)
    return None


def attention_backward(
    q_THD: torch.Tensor,
    k_TJD: torch.Tensor,
    v_TJD: torch.Tensor,
    out_THD: torch.Tensor,
    grad_THD: torch.Tensor,
    settings: AttentionSettings,
    state: torch.Tensor | FlashState | None,
    results: tuple[torch.Tensor, ...],
) -> None:
    """Writes the gradients of queries, keys and values into `results`; other arguments as in `attention_forward`."""
    if isinstance(state, FlashState):
        parts = flash.backward(q_THD, k_TJD, v_TJD, out_THD, grad_THD, settings.as_flash_call(), state)
        for result, part in zip(results, parts, strict=True):
            result.copy_(part)
        return
    if state is not None:
        native.attention_backward(q_THD, k_TJD, v_TJD, *settings.as_arguments(), out_THD, state, grad_THD, results)
        return
    for document in _documents(settings):
        q, k, v, out, grad = (x[document].transpose(0, 1) for x in (q_THD, k_TJD, v_TJD, out_THD, grad_THD))
        if q.shape[1] <= SHORT_DOCUMENT or q.device.type == "cuda":
            parts = _backward_in_blocks(q, k, v, out, grad, settings)
        else:
            parts = _backward_of_torch(q, k, v, grad, settings)
        for result, part in zip(results, parts, strict=True):
            result[document] = part.transpose(0, 1)


def _documents(settings: AttentionSettings) -> Iterator[slice]:
    begin = 0
    for length in settings.lengths:
        yield slice(begin, begin + length)
        begin += length


def _backward_of_torch(
    q_HLD: torch.Tensor, k_JLD: torch.Tensor, v_JLD: torch.Tensor, grad_HLD: torch.Tensor, settings: AttentionSettings
) -> tuple[torch.Tensor, ...]:
    """Recomputes torch's forward and runs its backward."""
    with torch.enable_grad():
        inputs = [tensor[None].detach().requires_grad_() for tensor in (q_HLD, k_JLD, v_JLD)]
        output = _attend(inputs[0], inputs[1], inputs[2], settings, dropout=0.0)
    return tuple(grad[0] for grad in torch.autograd.grad(output, inputs, grad_HLD[None]))


def _backward_in_blocks(
    q_HLD: torch.Tensor,
    k_JLD: torch.Tensor,
    v_JLD: torch.Tensor,
    out_HLD: torch.Tensor,
    grad_HLD: torch.Tensor,
    settings: AttentionSettings,
) -> tuple[torch.Tensor, ...]:
    """Computes the backward with batched products over blocks of queries.

    Shapes: H query heads, J key heads, G = H / J, L tokens, Q queries of a block, S keys that they see, D head size.
    The G query heads of a key head are stacked along the tokens, (J, G Q, D), so keys and values are never repeated.
    """
    heads, key_heads, length = q_HLD.shape[0], k_JLD.shape[0], q_HLD.shape[1]
    keys_JLD, values_JLD = k_JLD.float(), v_JLD.float()
    grad_q_HLD = torch.empty_like(q_HLD)
    grad_k_JLD, grad_v_JLD = torch.zeros_like(keys_JLD), torch.zeros_like(values_JLD)
    for first in range(0, length, QUERY_BLOCK):
        last = min(first + QUERY_BLOCK, length)
        start = 0 if settings.window is None else max(0, first - settings.window + 1)
        q, out, grad = (_stacked_heads(x[:, first:last], key_heads) for x in (q_HLD, out_HLD, grad_HLD))
        k, v = keys_JLD[:, start:last], values_JLD[:, start:last]

        hidden_NS = _hidden(first, last, start, settings.window, device=q.device).repeat(heads // key_heads, 1)
        scores_JNS = torch.bmm(q, k.transpose(1, 2)).mul_(settings.scale)
        if settings.softcap is not None:
            scores_JNS = scores_JNS.div_(settings.softcap).tanh_().mul_(settings.softcap)
        weights_JNS = scores_JNS.masked_fill(hidden_NS, float("-inf")).softmax(-1)
        grad_v_JLD[:, start:last] += torch.bmm(weights_JNS.transpose(1, 2), grad)
        # d scores = weights * (d weights - rowsum(d weights * weights)), and that row sum is grad . out.
        dscores_JNS = torch.bmm(grad, v.transpose(1, 2)).sub_((grad * out).sum(-1, keepdim=True)).mul_(weights_JNS)
        if settings.softcap is not None:
            dscores_JNS.mul_(1.0 - (scores_JNS / settings.softcap).square())
        dscores_JNS.mul_(settings.scale)
        grad_q_HLD[:, first:last] = torch.bmm(dscores_JNS, k).view(heads, last - first, -1)
        grad_k_JLD[:, start:last] += torch.bmm(dscores_JNS.transpose(1, 2), q)
    return grad_q_HLD, grad_k_JLD, grad_v_JLD


def _hidden(first: int, last: int, start: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Builds the mask (queries, keys), bool: True where query `first + i` must not see key `start + j`."""
    everything = torch.ones(last - first, last - start, dtype=torch.bool, device=device)
    hidden = everything.triu(first - start + 1)
    return hidden if window is None else hidden | everything.tril(first - start - window)


def _stacked_heads(x_HQD: torch.Tensor, key_heads: int) -> torch.Tensor:
    """Stacks the query heads of each key head: (H, Q, D) -> (J, G Q, D), float32."""
    return x_HQD.float().reshape(key_heads, -1, x_HQD.shape[-1])
