"""HF peft as the oracle of a method: the same tensors in both, and what each makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import peft
import torch

import lamina
from lamina.adapters.adapter import save_adapter
from lamina.adapters.lock import build_lock
from lamina.chat.template import build_template
from lamina.config import MethodConfig
from lamina.methods.shared.base import Injection, inject
from lamina.models.load import load_base
from tests.support.models_zoo import build_model, build_tokenizer

IDS = torch.tensor([[5, 9, 17, 33, 4, 101, 7, 60], [12, 3, 44, 2, 98, 31, 8, 70]])
TOLERANCE = 1e-5

Term = Callable[[], torch.Tensor | None]


def pair(family: str, ours: MethodConfig, theirs: peft.PeftConfig) -> tuple[Injection, peft.PeftModel]:
    """Both on the same base in training mode, with the same tensors, which are not those of the start."""
    injection = inject(build_model(family, vocab_size=259), ours, seed=0)
    disturb(injection.tensors())
    model = peft.get_peft_model(build_model(family, vocab_size=259), theirs)
    peft.set_peft_model_state_dict(model, {name: t.detach() for name, t in injection.saved_tensors().items()})
    injection.model.train()
    model.train()
    names = {name for name, _ in peft_tensors(model)}
    assert names == injection.tensors().keys()
    return injection, model


@torch.no_grad()
def disturb(tensors: dict[str, torch.nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(3)
    for tensor in tensors.values():
        tensor += 0.1 * torch.randn(tensor.shape, generator=generator)


def peft_tensors(model: peft.PeftModel) -> list[tuple[str, torch.nn.Parameter]]:
    """peft's trained tensors by their names on disk."""
    return [(name.replace(".default", ""), p) for name, p in model.named_parameters() if p.requires_grad]


def check_same_training(injection: Injection, model: peft.PeftModel, penalty: Term = lambda: None) -> None:
    """Same logits, same gradients, same tensors after ten steps of AdamW."""
    ours, theirs = injection.tensors(), dict(peft_tensors(model))
    optimizers = [torch.optim.AdamW(tensors.values(), lr=1e-3) for tensors in (ours, theirs)]
    for step in range(10):
        result, expected = injection.model(input_ids=IDS, labels=IDS), model(input_ids=IDS, labels=IDS)
        term = penalty()
        loss = result.loss if term is None else result.loss + term
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        expected.loss.backward()
        if step == 0:
            close(result.logits, expected.logits, "logits")
            close(loss, expected.loss, "loss")
            for name, tensor in ours.items():
                assert tensor.grad is not None and theirs[name].grad is not None, name
                close(tensor.grad, theirs[name].grad, f"gradient of {name}")
        for optimizer in optimizers:
            optimizer.step()
    for name, tensor in ours.items():
        close(tensor, theirs[name], f"{name} after ten steps")


def close(ours: torch.Tensor, theirs: torch.Tensor, what: str) -> None:
    """Equal to 1e-5 of the largest element."""
    scale = float(theirs.detach().abs().max())
    torch.testing.assert_close(
        ours.detach(), theirs.detach(), rtol=TOLERANCE, atol=TOLERANCE * scale, msg=lambda text: f"{what}: {text}"
    )


def check_loads_what_peft_saved(family: str, folder: Path, config: peft.PeftConfig) -> lamina.adapters.load.Loaded:
    """`lamina.load` gives the logits of an adapter that peft saved."""
    base = build_model(family, vocab_size=259)
    base.save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "base")
    base.config._name_or_path = base.name_or_path = str(folder / "base")
    model = peft.get_peft_model(base, config)
    disturb(dict(peft_tensors(model)))
    model.save_pretrained(folder / "adapter")
    with torch.no_grad():
        expected = model.eval()(input_ids=IDS).logits
    loaded = lamina.load(folder / "adapter", dtype="float32")
    with torch.no_grad():
        close(loaded.model(input_ids=IDS).logits, expected, "logits")
    return loaded


def check_peft_loads_what_lamina_saved(family: str, folder: Path, injection: Injection) -> peft.PeftModel:
    """peft gives the logits of an adapter that lamina saved."""
    build_model(family, vocab_size=259).save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "base")
    base = load_base(str(folder / "base"), "float32")
    save_adapter(folder / "adapter", injection, base, build_lock(base, build_template(base.tokenizer), []), [])
    model = peft.PeftModel.from_pretrained(build_model(family, vocab_size=259), folder / "adapter").eval()
    with torch.no_grad():
        close(injection.model.eval()(input_ids=IDS).logits, model(input_ids=IDS).logits, "logits")
    return model
