"""Finds the modules that run when a model is given token ids and nothing else.

A vision tower, an audio tower or cross attention to an encoder does not run, so an adapter there is never trained.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.machine.seeding import kept_generators
from lamina.structure.layers import decoder_layers
from lamina.structure.plain_tokens import plain_tokens

_TOKENS = 8

# What was found, by the classes and names of a model's modules and its configuration: loading one adapter after the
# other asks for the same again.
_MOST_FOUND = 16
_found: dict[str, frozenset[str]] = {}


def modules_out_of_reach(model: PreTrainedModel) -> set[str]:
    """Finds the modules that do not run on a text, and contain no module that does.

    An expert of a mixture counts as run if any expert in its list runs, since routing depends on the input. Returns an
    empty set if the model cannot be run, because it has no weights.
    """
    structure = _structure(model)
    if structure in _found:
        return set(_found[structure])
    ran = _modules_that_run(model)
    if not ran:
        return set()
    silent = _silent(model, ran)
    while len(_found) >= _MOST_FOUND:
        _found.pop(next(iter(_found)), None)
    _found[structure] = frozenset(silent)
    return silent


def _structure(model: PreTrainedModel) -> str:
    """A digest of everything that determines which modules run."""
    modules = "\n".join(f"{name} {type(module).__qualname__}" for name, module in model.named_modules())
    return hashlib.sha256(f"{model.config.to_json_string(use_diff=False)}\n{modules}".encode()).hexdigest()


def _silent(model: PreTrainedModel, ran: set[int]) -> set[str]:
    """The modules that contain none that ran."""
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


def _modules_that_run(model: PreTrainedModel) -> set[int]:
    """Those that run in evaluation mode, and in training mode too: Gemma 3n's AltUp reads a weight itself there."""
    evaluated = _run(model, training=False)
    return evaluated & (_run(model, training=True) or evaluated)


@torch.no_grad()
def _run(model: PreTrainedModel, training: bool) -> set[int]:
    """Ids of the modules that run in a mode; empty if the model cannot be run in it."""
    ran: set[int] = set()
    modes = {module: module.training for module in model.modules()}
    handles = [module.register_forward_pre_hook(lambda module, args: ran.add(id(module))) for module in modes]
    model.train(training)
    try:
        with kept_generators(model.device):
            model(input_ids=plain_tokens(model, _TOKENS), use_cache=False)
    except Exception:  # of any kind: on the meta device, any code that reads a value
        return set()
    finally:
        for module, mode in modes.items():
            module.training = mode
        for handle in handles:
            handle.remove()
    return ran
