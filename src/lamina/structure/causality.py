"""Tests whether a model is causal: whether the logits of a token are independent of later tokens."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from lamina.errors import LaminaError, ModelError
from lamina.structure.plain_tokens import plain_tokens

# Texts of _TOKENS tokens that share their first _ALIKE; one text is compared with _OTHERS others.
_TOKENS, _ALIKE, _OTHERS = 16, 8, 3

# The allowed change of earlier logits, relative to the change at the changed tokens. A causal model shows none, except
# that experts multiply groups of other sizes, which makes up to 2e-5 in float32. Untrained BERTs show 5e-3, trained
# ones more. In 16 bits, that rounding may route a token to other experts, but hardly in each of several texts.
_ROUNDING = {torch.float32: 1e-3}
_ROUNDING_OF_16_BITS = 5e-2


@torch.no_grad()
def check_causal(model: PreTrainedModel) -> None:
    """Checks that the model runs and is causal, on short texts with a common beginning.

    Args:
        model: The model, with or without an adapter, with its own attention implementation.

    Raises:
        ModelError: The model sees later tokens, or cannot be run on text alone.
    """
    name, training = type(model).__name__, model.training
    model.eval()
    try:
        seen = _seen_before(model)
    except LaminaError:
        raise
    except Exception as error:  # of any kind: the model's own code failed
        raise ModelError(
            f"{name} cannot be run on a text: {type(error).__name__}: {error}. Fix: check that it runs in "
            "transformers; a model that needs more than tokens is not a language model."
        ) from error
    finally:
        model.train(training)
    if seen > 0.0:
        raise ModelError(
            f"{name} is not causal: a token changes the logits of the tokens before it (by {seen:.0%} of what it "
            "changes at its own position), so the model would read the answers that it should learn. Fix: name a "
            "causal language model; masked language models and embedding models, such as BERT, are not causal."
        )


def _seen_before(model: PreTrainedModel) -> float:
    """Measures how much changed tokens change earlier logits: the smallest over all texts; 0 if it is rounding."""
    first = plain_tokens(model, _TOKENS)
    allowed = _ROUNDING.get(model.dtype, _ROUNDING_OF_16_BITS)
    logits = model(input_ids=first, use_cache=False).logits[0].float()
    seen = float("inf")
    for seed in range(1, 1 + _OTHERS):
        other = plain_tokens(model, _TOKENS, seed)
        other[:, :_ALIKE] = first[:, :_ALIKE]
        change_T = (model(input_ids=other, use_cache=False).logits[0].float() - logits).norm(dim=-1)
        if not torch.isfinite(change_T).all():
            return 0.0  # a broken model; `find_head` raises the error
        own = max(float(change_T[_ALIKE:].median()), torch.finfo(torch.float32).tiny)
        seen = min(seen, float(change_T[:_ALIKE].max()) / own)
        if not seen > allowed:  # also if it is NaN
            return 0.0
    return seen
