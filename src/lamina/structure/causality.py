"""Whether a model is causal: whether a later token leaves an earlier token's logits as they are."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from lamina.errors import LaminaError, ModelError
from lamina.structure.plain_tokens import plain_tokens

# Texts of so many tokens that begin alike, the first of them against each other one.
_TOKENS, _ALIKE, _OTHERS = 16, 8, 3

# How much of the change that other tokens make at their own places may be seen before them. A causal model shows none,
# but that experts multiply groups of other sizes: up to 2e-5 in float32. Untrained BERTs show 5e-3, trained ones more.
# In 16 bits a token may go to other experts for it, but hardly so with each of several texts.
_ROUNDING = {torch.float32: 1e-3}
_ROUNDING_OF_16_BITS = 5e-2


@torch.no_grad()
def check_causal(model: PreTrainedModel) -> None:
    """Checks on short texts, which begin alike and go on differently, that the model is causal and runs at all.

    Args:
        model: With or without an adapter; its own attention is what is asked.

    Raises:
        ModelError: It sees later tokens, or cannot be run on a text alone.
    """
    name, training = type(model).__name__, model.training
    model.eval()
    try:
        seen = _seen_before(model)
    except LaminaError:
        raise
    except Exception as error:  # of any kind: it is the model's own code that does not run
        raise ModelError(
            f"{name} cannot be run on a text: {type(error).__name__}: {error}. Fix: check that it runs in "
            "transformers; a model that wants more than tokens is no language model."
        ) from error
    finally:
        model.train(training)
    if seen > 0.0:
        raise ModelError(
            f"{name} is not causal: another token changes the logits of the tokens before it (by {seen:.0%} of what it "
            "changes at its own place), so it would read the answers that it is to learn. Fix: name a causal language "
            "model; models that fill masks or make embeddings, such as BERT, are none."
        )


def _seen_before(model: PreTrainedModel) -> float:
    """How much of a change is seen before it, by the smallest with other tokens; 0 if that is rounding."""
    first = plain_tokens(model, _TOKENS)
    allowed = _ROUNDING.get(model.dtype, _ROUNDING_OF_16_BITS)
    logits = model(input_ids=first, use_cache=False).logits[0].float()
    seen = float("inf")
    for seed in range(1, 1 + _OTHERS):
        other = plain_tokens(model, _TOKENS, seed)
        other[:, :_ALIKE] = first[:, :_ALIKE]
        change_T = (model(input_ids=other, use_cache=False).logits[0].float() - logits).norm(dim=-1)
        if not torch.isfinite(change_T).all():
            return 0.0  # a broken model, which says nothing of what it sees; taking its head apart says so
        own = max(float(change_T[_ALIKE:].median()), torch.finfo(torch.float32).tiny)
        seen = min(seen, float(change_T[:_ALIKE].max()) / own)
        if not seen > allowed:  # nor if it is no number, which is found elsewhere
            return 0.0
    return seen
