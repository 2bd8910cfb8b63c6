"""Whether a model is causal: whether a later token leaves an earlier token's logits as they are."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from lamina.errors import LaminaError, ModelError
from lamina.models.probe_tokens import probe_tokens

# Two texts of so many tokens that begin alike.
_TOKENS, _ALIKE = 16, 8

# How much of the change that other tokens make at their own places may be seen before them. A causal model shows none,
# but that experts multiply groups of other sizes: up to 1e-5 in float32. Untrained BERTs show 5e-3, trained ones more.
_ROUNDING = {torch.float32: 1e-3}
_ROUNDING_OF_16_BITS = 5e-2


@torch.no_grad()
def check_causal(model: PreTrainedModel) -> None:
    """Checks on two short texts, which begin alike and go on differently, that the model is causal and runs at all.

    Args:
        model: With or without an adapter; its own attention is what is asked.

    Raises:
        ModelError: It sees later tokens, or cannot be run on a text alone.
    """
    first, other = probe_tokens(model, _TOKENS), probe_tokens(model, _TOKENS, seed=1)
    other[:, :_ALIKE] = first[:, :_ALIKE]
    name, training = type(model).__name__, model.training
    model.eval()
    try:
        one, two = (model(input_ids=ids, use_cache=False).logits[0].float() for ids in (first, other))
        change_T = (one - two).norm(dim=-1)
    except LaminaError:
        raise
    except Exception as error:  # of any kind: it is the model's own code that does not run
        raise ModelError(
            f"{name} cannot be run on a text: {type(error).__name__}: {error}. Fix: check that it runs in "
            "transformers; a model that wants more than tokens is no language model."
        ) from error
    finally:
        model.train(training)
    seen = float(change_T[:_ALIKE].median()) / max(float(change_T[_ALIKE:].median()), torch.finfo(torch.float32).tiny)
    if seen > _ROUNDING.get(model.dtype, _ROUNDING_OF_16_BITS):
        raise ModelError(
            f"{name} is not causal: another token changes the logits of the tokens before it (by {seen:.0%} of what it "
            "changes at its own place), so it would read the answers that it is to learn. Fix: name a causal language "
            "model; models that fill masks or make embeddings, such as BERT, are none."
        )
