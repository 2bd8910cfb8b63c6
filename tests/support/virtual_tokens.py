"""What the tests of methods with virtual tokens share: peft beside lamina with the same tensors, and generation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch

import lamina
from lamina.config import MethodConfig
from lamina.methods.shared.base import Injection, inject
from tests.support.models_zoo import build_model, build_tokenizer

IDS = torch.tensor(
    [[5, 9, 17, 33, 4, 101, 7, 60, 21, 8, 90, 41, 3, 77], [9, 4, 4, 31, 66, 2, 18, 5, 5, 70, 71, 12, 6, 30]]
)


def ours(family: str, config: MethodConfig) -> Injection:
    return inject(build_model(family, vocab_size=259), config, seed=0)


def theirs_with_our_tensors(family: str, injection: Injection, config: peft.PeftConfig) -> Any:
    """peft's own model, whose encoder has the tensors of ours."""
    model: Any = peft.get_peft_model(build_model(family, vocab_size=259), config)
    encoder = model.prompt_encoder["default"]
    names = {"prompt_embeddings": "embedding.weight"}
    tensors = {names.get(name, name): tensor.detach().clone() for name, tensor in injection.tensors().items()}
    encoder.load_state_dict(tensors)  # which checks that the names are peft's
    return model.eval()


def their_tensors(model: Any, injection: Injection) -> dict[str, torch.nn.Parameter]:
    parameters = dict(model.prompt_encoder["default"].named_parameters())
    return {name: parameters.get(name, parameters["embedding.weight"]) for name in injection.tensors()}


def logits(model: Any, ids: torch.Tensor = IDS, **inputs: Any) -> torch.Tensor:
    """Of the sequence's own tokens; peft leaves virtual ones in its output."""
    return model(input_ids=ids, **inputs).logits[:, -ids.shape[1] :]


def check_ten_steps(family: str, config: MethodConfig, peft_config: peft.PeftConfig) -> None:
    """The same forward, the same gradients, and after ten steps of AdamW the same tensors."""
    injection = ours(family, config)
    theirs = theirs_with_our_tensors(family, injection, peft_config)
    pairs = [(name, injection.tensors()[name], tensor) for name, tensor in their_tensors(theirs, injection).items()]
    optimizers = [torch.optim.AdamW([pair[side] for pair in pairs], lr=1e-3) for side in (1, 2)]
    for step in range(10):
        outputs = [logits(injection.model), logits(theirs)]
        torch.testing.assert_close(*outputs, rtol=1e-5, atol=2e-5)
        for output, optimizer in zip(outputs, optimizers, strict=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(output[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
        if step == 0:
            for name, mine, other in pairs:
                assert mine.grad is not None and other.grad is not None, name
                atol = 1e-5 * float(other.grad.abs().max())
                torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=atol, msg=name)
        for optimizer in optimizers:
            optimizer.step()
    for name, mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5, msg=name)


def check_loads_from_peft(family: str, peft_config: peft.PeftConfig, folder: Path) -> lamina.adapters.load.Loaded:
    """What peft trained and saved gives peft's logits."""
    base = build_model(family, vocab_size=259)
    base.save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "base")
    base.config._name_or_path = base.name_or_path = str(folder / "base")
    theirs: Any = peft.get_peft_model(base, peft_config)
    theirs.eval().save_pretrained(folder / "adapter")
    loaded = lamina.load(folder / "adapter", dtype="float32")
    with torch.no_grad():
        torch.testing.assert_close(logits(loaded.model), logits(theirs), rtol=1e-5, atol=2e-5)
    return loaded


@dataclass(frozen=True)
class Answers:
    """Greedy tokens (B, N) and the logits (B, N, V) that they came from."""

    tokens: torch.Tensor
    logits: torch.Tensor


def answers(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None) -> Answers:
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids) if mask is None else mask,
        max_new_tokens=16,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return Answers(out.sequences[:, ids.shape[1] :], torch.stack(out.logits, 1))


def check_generation(family: str, config: MethodConfig, peft_config: peft.PeftConfig) -> None:
    """With a cache as without one, padded as alone, and as peft."""
    injection = ours(family, config)
    model = injection.model
    theirs = theirs_with_our_tensors(family, injection, peft_config)
    short = IDS[1:, :6]
    padded = torch.cat([IDS[:1], torch.nn.functional.pad(short, (8, 0), value=2)])
    mask = torch.ones_like(padded)
    mask[1, :8] = 0
    together = answers(model, padded, mask)
    for row, ids in enumerate((IDS[:1], short)):
        alone, of_peft = answers(model, ids), answers(theirs, ids)
        close = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(together.logits[row], alone.logits[0], **close)
        torch.testing.assert_close(of_peft.logits, alone.logits, **close)
        with torch.no_grad():
            whole = logits(model, torch.cat([ids, alone.tokens], 1), use_cache=False)
        torch.testing.assert_close(whole[:, ids.shape[1] - 1 : -1], alone.logits, **close)
    with injection.disabled():
        assert (answers(model, padded, mask).logits - together.logits).abs().max() > 0.1


def check_right_padding(family: str, config: MethodConfig, peft_config: peft.PeftConfig) -> None:
    injection = ours(family, config)
    theirs = theirs_with_our_tensors(family, injection, peft_config)
    mask = torch.ones_like(IDS)
    mask[1, 9:] = 0
    with torch.no_grad():
        both = [logits(model, attention_mask=mask)[mask.bool()] for model in (injection.model, theirs)]
    torch.testing.assert_close(*both, rtol=1e-5, atol=2e-5)
