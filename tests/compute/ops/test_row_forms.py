"""Row forms say what every method's adapter does: applied in plain torch to the bare base, they give its outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from transformers import DynamicCache

from lamina.compute.ops import row_forms
from lamina.compute.ops.adapter import AdapterModule
from lamina.config import METHOD_CONFIGS
from tests.support.method_cases import CASES, attached, config_of
from tests.support.models_zoo import build_model

IDS = torch.tensor([[5, 9, 17, 33, 4, 101, 7, 7, 60, 21]])
SHAPES = ("llama", "gemma3", "gpt2")
EVERY_FORM = set(row_forms.RowForm.__args__)


def apply(form: Any, module: nn.Module, y: torch.Tensor, args: Any, kwargs: Any) -> torch.Tensor:
    """The whole of what a form means, on the bare base's `module`: y is its output of `args` and `kwargs`."""
    x = args[0] if args else next(iter(kwargs.values()), None)
    match form:
        case row_forms.LowRank(A, B, scaling, _, columns):
            bias = 0.0 if module.bias is None else module.bias
            return (y - bias + scaling * x @ A.T @ B.T) * (1.0 if columns is None else columns) + bias
        case row_forms.Scales(inputs, outputs):
            return (y if inputs is None else module(x * inputs)) * (1.0 if outputs is None else outputs)
        case row_forms.Delta(weight):
            return y + x @ weight.T
        case row_forms.Bias(added):
            return y + added
        case row_forms.Parameters(values):
            return functional_call(module, dict(values), args, kwargs)
        case row_forms.Bottleneck(D, d, U, u, scaling, activation, parallel):
            function = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}[activation]
            return y + scaling * F.linear(function(F.linear(x if parallel else y, D, d)), U, u)
        case _:
            raise AssertionError(form)


def note(name: str, seen: dict[str, torch.Tensor]) -> Any:
    """A hook that keeps a module's output."""
    return lambda module, inputs, output: seen.update({name: output[0] if isinstance(output, tuple) else output})


def run_with_forms(model: Any, forms: dict[str, tuple[Any, ...]]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits of the bare base with the forms of one adapter, and what the modules with forms gave."""
    outputs: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Any:
        def change(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            y = output[0] if isinstance(output, tuple) else output
            with torch.no_grad():
                for form in forms[name]:
                    handles[name].remove()  # `apply` may call the module
                    y = apply(form, module, y, args, kwargs)
            outputs[name] = y
            return (y, *output[1:]) if isinstance(output, tuple) else y

        return change

    handles = {
        name: model.get_submodule(name).register_forward_hook(hook(name), with_kwargs=True) for name in forms if name
    }
    (whole,) = forms.get("", (None,))
    with torch.no_grad():
        if isinstance(whole, row_forms.SoftPrompt):
            embedded = torch.cat([whole.rows[None], model.get_input_embeddings()(IDS)], 1)
            return model(inputs_embeds=embedded).logits[:, len(whole.rows) :], outputs
        if isinstance(whole, row_forms.Prefix):
            cache = DynamicCache(config=model.config)
            for layer, (keys, values) in enumerate(whole.keys_and_values):
                cache.update(keys[None], values[None], layer)
            return model(input_ids=IDS, past_key_values=cache).logits, outputs
        return model(input_ids=IDS).logits, outputs


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", [case for case in CASES if case != "peft"])
def test_forms_on_the_bare_base_are_the_adapter(case: str, shape: str) -> None:
    injection = attached(case, shape)
    seen: dict[str, torch.Tensor] = {}
    for name, layer in injection.layers.items():
        layer.register_forward_hook(note(name, seen))
    with torch.no_grad():
        expected = injection.model(input_ids=IDS).logits
    forms = injection.row_forms()
    logits, outputs = run_with_forms(build_model(shape, vocab_size=259).eval(), forms)
    assert outputs.keys() == seen.keys() == {name for name in forms if name}
    for name, output in outputs.items():
        torch.testing.assert_close(output, seen[name], rtol=1e-4, atol=1e-4 * float(seen[name].abs().max()), msg=name)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    bare, _ = run_with_forms(build_model(shape, vocab_size=259).eval(), {})
    assert (bare - expected).abs().max() > 0.01


def test_the_cases_are_every_method_and_every_form() -> None:
    assert {config_of(case).type for case in CASES} == set(METHOD_CONFIGS)
    forms = {
        type(form)
        for case in CASES
        for own in attached(case, "gpt2" if case == "bitfit" else "llama").row_forms().values()
        for form in own
    } | {type(form) for own in attached("lora of many settings", "gpt2").row_forms().values() for form in own}
    assert forms == EVERY_FORM


def test_forms_are_those_of_evaluation_and_of_an_adapter_that_is_switched_off_too() -> None:
    for case in ("lora of many settings", "loha", "p_tuning with an LSTM", "dora"):
        injection = attached(case, "llama")
        wanted = injection.row_forms()
        injection.model.train()
        with injection.disabled():
            found = injection.row_forms()
        assert wanted.keys() == found.keys()
        for name, forms in wanted.items():
            for form, other in zip(forms, found[name], strict=True):
                assert vars(form).keys() == vars(other).keys()
                for one, two in zip(vars(form).values(), vars(other).values(), strict=True):
                    assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
        assert injection.model.training


def test_what_cannot_be_mixed_says_why() -> None:
    forms = attached("peft", "llama").row_forms()
    assert forms
    for (form,) in forms.values():
        assert isinstance(form, row_forms.NotMixable) and "peft" in form.reason

    class Own(AdapterModule):
        def adapter_tensors(self) -> dict[str, nn.Parameter]:
            return {}

        def fold_in(self, model: Any, name: str) -> None: ...

    (form,) = Own().row_forms()
    assert isinstance(form, row_forms.NotMixable) and "Own" in form.reason
