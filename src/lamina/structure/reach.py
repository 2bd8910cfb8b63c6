"""Which modules of a model a text reaches: those that run when it is given tokens and nothing else.

A vision tower, an audio tower, cross attention to an encoder take no part in it, so an adapter there is never trained.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.structure.layers import decoder_layers
from lamina.structure.plain_tokens import plain_tokens

_TOKENS = 8


def modules_out_of_reach(model: PreTrainedModel) -> set[str]:
    """Names of the modules without anything in them that runs over a text.

    One of several that are chosen by what they are given, as a mixture's experts are, counts as reached where any of
    them is. Empty where it cannot be found out, because a model without weights cannot be run.
    """
    ran = _modules_that_run(model)
    if not ran:
        return set()
    layers = {id(layer) for layer in decoder_layers(model)}
    silent: set[str] = set()
    for name, module in model.named_modules():
        parent, _, _ = name.rpartition(".")
        if parent in silent:
            silent.add(name)
        elif not any(id(part) in ran for part in module.modules()):
            chosen = isinstance(model.get_submodule(parent), nn.ModuleList) and id(module) not in layers
            if not (chosen and any(id(part) in ran for part in model.get_submodule(parent).modules())):
                silent.add(name)
    return silent


@torch.no_grad()
def _modules_that_run(model: PreTrainedModel) -> set[int]:
    ran: set[int] = set()
    modules = list(model.modules())
    handles = [module.register_forward_pre_hook(lambda module, args: ran.add(id(module))) for module in modules]
    training = model.training
    model.eval()
    try:
        model(input_ids=plain_tokens(model, _TOKENS), use_cache=False)
    except Exception:  # of any kind: on the meta device, whatever looks at a number
        return set()
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return ran
