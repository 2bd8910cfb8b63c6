"""Finds how a causal language model computes logits from hidden states, so that the loss can compute only a few."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.errors import ModelError
from lamina.structure.layers import text_decoder
from lamina.structure.plain_tokens import plain_tokens

# Allowed difference in units of eps times the largest logit: a factor may be applied in another order.
_ROUNDINGS = 8
_TOKENS = 8


@dataclass(frozen=True)
class LogitTransform:
    """How logits follow from the product of hidden state and head weight.

    logits = softcap * tanh(multiplier * product / softcap), or just multiplier * product without a softcap.

    Attributes:
        multiplier: Granite's 1 / logits_scaling, Cohere's logit_scale; 1 for most models.
        softcap: Gemma 2's final_logit_softcapping, RecurrentGemma's logits_soft_cap, or None.
    """

    multiplier: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Applies the transform in the logits' own dtype, as transformers does."""
        if self.multiplier != 1.0:
            logits = logits * self.multiplier
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


@dataclass(frozen=True)
class Head:
    """The parts of a causal language model that the loss needs.

    Attributes:
        decoder: The module that computes the last hidden states.
        linear: The module that multiplies them by the head's weight (possibly wrapped by an adapter).
        transform: How logits follow from that product.
        whole_model: Whether these parts do not reproduce the model's own logits, so that the loss has to call the whole
            model (correct, but with more memory).
    """

    decoder: nn.Module
    linear: nn.Module
    transform: LogitTransform
    whole_model: bool


def find_head(model: PreTrainedModel) -> Head:
    """Finds the head's parts, and tests on a few tokens that they reproduce the model's own logits.

    Raises:
        ModelError: The logits are not finite: the base itself is broken.
    """
    decoder, linear = text_decoder(model), model.get_output_embeddings()
    text_config = model.config.get_text_config()
    scaling = getattr(text_config, "logits_scaling", None)
    transform = LogitTransform(
        multiplier=1.0 / scaling if scaling else float(getattr(text_config, "logit_scale", None) or 1.0),
        softcap=getattr(text_config, "final_logit_softcapping", None) or getattr(text_config, "logits_soft_cap", None),
    )
    if decoder is model or linear is None or not _parts_agree(model, decoder, linear, transform):
        return Head(model, nn.Identity(), transform, whole_model=True)
    return Head(decoder, linear, transform, whole_model=False)


@torch.no_grad()
def _parts_agree(model: PreTrainedModel, decoder: nn.Module, linear: nn.Module, transform: LogitTransform) -> bool:
    ids = plain_tokens(model, _TOKENS)
    training = model.training
    model.eval()
    try:
        theirs = model(input_ids=ids, use_cache=False).logits.float()
        try:
            ours = transform(linear(decoder(input_ids=ids, use_cache=False).last_hidden_state)).float()
        except Exception:  # of any kind: the parts do not fit together
            ours = None
    finally:
        model.train(training)
    if not torch.isfinite(theirs).all():
        raise ModelError(
            "the base model's own logits are not finite, before any training. Fix: its weights are damaged; fetch or "
            "convert the model again."
        )
    if ours is None or ours.shape != theirs.shape:
        return False
    return float((ours - theirs).abs().max()) <= _ROUNDINGS * torch.finfo(model.dtype).eps * float(theirs.abs().max())
