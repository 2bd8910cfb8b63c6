"""`verify` is green where all is well, and red on the right line when any one of its subjects is broken by hand."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lamina
from lamina import Event, Verification
from lamina.compute.fusion import exactness
from lamina.compute.kernels import native, plain
from lamina.compute.ops import attention, linear_group, lora_linear
from lamina.compute.ops.dropout import MaskedDropout
from lamina.compute.weights import DenseLinear
from lamina.data.example import EncodedExample
from lamina.errors import ConfigError, Interrupted
from lamina.methods.lora import LoraLinear
from lamina.methods.shared.base import Injection
from lamina.quickstart.task import build_task
from lamina.training import backward, checkpoint
from lamina.verification.report import Skipped, VerifyCheck
from tests.support.training import notes_into
from tests.support.verification import tiny_config

LINES = (
    "adapter = formula",
    "chunked loss = transformers' loss",
    "packed = one at a time",
    "accumulation = full batch",
    "checkpointed = not",
    "compiled = eager",
    "saved = loaded",
    "merged = adapter",
    "resumed = unbroken",
)


def failed(result: Verification) -> set[str]:
    return {check.name for check in result.checks if check.passed is False}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt2"])
def test_green(family: str, dtype: str, tmp_path: Path) -> None:
    result = lamina.verify(tiny_config(tmp_path, family, dtype))
    assert result.passed, result.checks
    assert tuple(check.name for check in result.checks) == LINES
    skipped = {"compiled = eager"} if family == "gpt2" else set()  # whose layers have no fused form
    assert {check.name for check in result.checks if check.passed is None} == skipped
    for check in result.checks:
        assert check.compared
        assert check.why
        if check.passed:
            assert check.difference is not None
            assert check.tolerance is not None
            # Tight enough that the two ways can only be the same one; rounding in bfloat16 is what is left.
            assert check.tolerance < (0.5 if check.name == "merged = adapter" else 5e-6 if dtype == "float32" else 0.05)


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("llama", {"init_lora_weights": "pissa"}),
        ("llama", {"lora_fa": True, "init_lora_weights": "eva"}),
        ("qwen2", {"bias": "all", "modules_to_save": ["lm_head"]}),
    ],
)
def test_green_for_loras_relatives(family: str, method: dict[str, Any], tmp_path: Path) -> None:
    settings = {"type": "lora", "r": 4, "lora_dropout": 0.1, **method}
    result = lamina.verify(tiny_config(tmp_path, family, method=settings))
    assert result.passed, result.checks


@pytest.mark.parametrize(
    ("family", "method"), [("llama", {"type": "adalora", "tinit": 1000, "lora_dropout": 0.1}), ("phi", {"type": "ia3"})]
)
def test_green_with_a_schedule_and_with_scaled_biases(family: str, method: dict[str, object], tmp_path: Path) -> None:
    result = lamina.verify(tiny_config(tmp_path, family, method=method))
    assert result.passed, result.checks


@pytest.mark.parametrize("optim", ["apollo_adamw", "badam"])
def test_green_for_optimizers_of_all_weights(optim: str, tmp_path: Path) -> None:
    """BAdam's steps show one layer's gradients, so that two steps of one each would not be comparable."""
    section = {"apollo": {"rank": 8}} if optim == "apollo_adamw" else {"badam": {"switch_interval": 1}}
    train = {"optim": optim, "learning_rate": 5e-3, **section}
    result = lamina.verify(tiny_config(tmp_path, method={"type": "full"}, train=train))
    assert result.passed, result.checks


@pytest.mark.real
@pytest.mark.slow
def test_green_on_the_real_model(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    short = sorted(build_task(0, 60, 1).train, key=lambda request: len(request.text))[:2]
    rows.write_text("".join(json.dumps({"messages": request.messages()}) + "\n" for request in short))
    torch.set_num_threads(2)
    try:
        result = lamina.verify({"data": {"train": str(rows)}, "dtype": "auto"})
    finally:
        torch.set_num_threads(1)
    assert result.passed, result.checks
    assert result.documents == 2


Patch = pytest.MonkeyPatch


def break_adapter_scale(patch: Patch) -> None:
    real = lora_linear.lora_linear
    for module in ("lamina.methods.shared.low_rank", "lamina.methods.lora"):
        patch.setattr(f"{module}.lora_linear", lambda x, f, A, B, s, p=0.0, c=None: real(x, f, A, B, 1.1 * s, p, c))


def break_adapter_gradient(patch: Patch) -> None:
    """The forward is right, and so is all of the backward but the gradient of A."""
    real = lora_linear._LoraLinear.backward

    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        grad_x, grad_A, *rest = real(ctx, grad)
        return grad_x, 1.1 * grad_A, *rest

    patch.setattr(lora_linear._LoraLinear, "backward", staticmethod(backward))


def break_loss(patch: Patch) -> None:
    """One supervised token is forgotten."""
    from lamina.losses import cross_entropy as losses

    real = losses.token_log_probs
    patch.setattr(losses, "token_log_probs", lambda *given: real(*given)[1:])


def break_loss_gradient(patch: Patch) -> None:
    def wrong(real: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def cross_entropy_(logits: torch.Tensor, *arguments: Any) -> torch.Tensor:
            loss = real(logits, *arguments)
            logits.mul_(1.2)  # its gradient by then
            return loss

        return cross_entropy_

    for kernels in (native, plain):
        patch.setattr(kernels, "cross_entropy_", wrong(kernels.cross_entropy_))


def break_packing(patch: Patch) -> None:
    """Documents see the ones before them."""
    real = attention.AttentionSettings.as_arguments
    patch.setattr(attention, "_documents", lambda settings: iter([slice(0, sum(settings.lengths))]))
    patch.setattr(attention.AttentionSettings, "as_arguments", lambda self: ([sum(self.lengths)], *real(self)[1:]))


def break_attention_gradient(patch: Patch) -> None:
    real = attention.attention_backward

    def backward(*arguments: Any) -> None:
        real(*arguments)
        arguments[-1][2].mul_(1.2)  # the values' gradient

    patch.setattr(attention, "attention_backward", backward)
    patch.setattr("lamina.compute.fusion.layer.attention_backward", backward)


def break_accumulation(patch: Patch) -> None:
    """Micro-batches that count differently, as where each is divided by its own tokens."""
    real = backward.Parts.__call__

    def call(parts: Any, place: int, *rest: Any) -> Iterator[torch.Tensor]:
        for part in real(parts, place, *rest):
            yield part / (place + 1)

    patch.setattr(backward.Parts, "__call__", call)


def break_checkpointing(patch: Patch) -> None:
    """Dropout that is drawn from a generator of its own, so that a layer which runs again draws anew."""
    generator, real = torch.Generator().manual_seed(0), lora_linear.lora_linear

    def own_dropout(
        x: torch.Tensor, frozen: Any, A: Any, B: Any, scaling: float, dropout: float, columns: Any
    ) -> torch.Tensor:
        if dropout > 0.0:
            x = x * torch.empty_like(x).bernoulli_(1.0 - dropout, generator=generator)
        return real(x, frozen, A, B, scaling, columns=columns)

    def own_mask(x: torch.Tensor, dropout: float) -> MaskedDropout:
        kept = torch.empty(x.shape, dtype=torch.bool).bernoulli_(1.0 - dropout, generator=generator)
        return MaskedDropout(kept, 1.0 / (1.0 - dropout))

    patch.setattr("lamina.methods.shared.low_rank.lora_linear", own_dropout)
    patch.setattr(linear_group, "draw_dropout", own_mask)


def break_fused_layers(patch: Patch) -> None:
    """The backward of a norm is wrong in the fused layers, and nowhere else."""

    def wrong(real: Callable[..., None]) -> Callable[..., None]:
        def rms_norm_backward(*arguments: Any) -> None:
            real(*arguments)
            arguments[-1].mul_(1.1)

        return rms_norm_backward

    for kernels in (native, plain):
        patch.setattr(kernels, "rms_norm_backward", wrong(kernels.rms_norm_backward))


def break_saving(patch: Patch) -> None:
    """Tensors are rounded on their way to the disk, which reading them finds out."""
    from lamina.adapters import adapter

    real = adapter.write_peft
    rounded: Callable[..., None] = lambda folder, config, tensors, stored=None: real(  # noqa: E731
        folder, config, {name: tensor.detach().bfloat16() for name, tensor in tensors.items()}
    )
    patch.setattr(adapter, "write_peft", rounded)


def break_loading(patch: Patch) -> None:
    """Loading leaves one tensor as it was."""
    real = Injection.load_tensors

    def load_tensors(self: Injection, tensors: dict[str, torch.Tensor]) -> None:
        name, own = next(iter(self.tensors().items()))
        real(self, {**tensors, name: own.detach().clone()})

    patch.setattr(Injection, "load_tensors", load_tensors)


def break_merging(patch: Patch) -> None:
    """The merged weight never gets to the disk."""
    patch.setattr(DenseLinear, "set_weight", lambda self, weight: None)


def break_merging_of_a_layer(patch: Patch) -> None:
    """One layer of many is merged with half of its adapter."""
    real = LoraLinear.delta_weight

    def delta_weight(self: LoraLinear) -> torch.Tensor:
        return real(self) * (0.5 if not torch.is_grad_enabled() and self.frozen.out_features == 80 else 1.0)

    patch.setattr(LoraLinear, "delta_weight", delta_weight)


def break_resuming_of_the_optimizer(patch: Patch) -> None:
    real = checkpoint.put_back

    def put_back(content: Any, path: Path, tensors: Any, optimizer: torch.optim.Optimizer, *rest: Any) -> Any:
        result = real(content, path, tensors, optimizer, *rest)
        optimizer.state.clear()
        return result

    patch.setattr("lamina.training.opening.put_back", put_back)


def break_seeding(patch: Patch) -> None:
    """Random numbers go by what this process did before, not by seed and step."""
    calls = itertools.count()
    patch.setattr("lamina.training.backward.seed_of", lambda *places: next(calls))


def break_resuming_of_the_place_in_the_data(patch: Patch) -> None:
    from lamina.training.setup import Session

    real = Session.epoch_plan
    epochs: list[int] = []

    def epoch_plan(self: Session, epoch: int) -> list[list[EncodedExample]]:
        epochs.append(epoch)
        return real(self, len(epochs))

    patch.setattr(Session, "epoch_plan", epoch_plan)


Break = Callable[[Patch], None]

BREAKS_IN_MEMORY: dict[Break, set[str]] = {
    break_adapter_scale: {"adapter = formula", "compiled = eager"},
    break_adapter_gradient: {"adapter = formula", "compiled = eager"},
    break_loss: {"chunked loss = transformers' loss", "packed = one at a time", "accumulation = full batch"},
    break_loss_gradient: {"chunked loss = transformers' loss"},
    break_packing: {"packed = one at a time", "accumulation = full batch"},
    break_attention_gradient: {"packed = one at a time"},
    break_accumulation: {"accumulation = full batch"},
    break_checkpointing: {"checkpointed = not"},
    break_fused_layers: {"compiled = eager"},
}
BREAKS_ON_DISK: dict[Break, set[str]] = {
    break_saving: {"saved = loaded", "merged = adapter"},
    break_loading: {"saved = loaded", "merged = adapter"},
    break_merging: {"merged = adapter"},
    break_merging_of_a_layer: {"merged = adapter"},
    break_resuming_of_the_optimizer: {"resumed = unbroken"},
    break_seeding: {"resumed = unbroken"},
    break_resuming_of_the_place_in_the_data: {"resumed = unbroken"},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("broken", BREAKS_IN_MEMORY, ids=lambda broken: broken.__name__)
def test_red_when_broken_in_memory(broken: Break, dtype: str, tmp_path: Path, monkeypatch: Patch) -> None:
    """Also in bfloat16, where rounding must not hide it, and where the check before training does not see it."""
    values = tiny_config(tmp_path, dtype=dtype)
    leave_out_the_disk(monkeypatch)
    monkeypatch.setattr(exactness.Reference, "difference", lambda self, layout: None)
    broken(monkeypatch)
    assert failed(lamina.verify(values)) == BREAKS_IN_MEMORY[broken]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("broken", [break_packing, break_fused_layers], ids=lambda broken: broken.__name__)
def test_what_is_broken_in_the_hot_path_is_not_taken(
    broken: Break, dtype: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Training goes another way, which is exact, and says so."""
    values = tiny_config(tmp_path, dtype=dtype)
    leave_out_the_disk(monkeypatch)
    broken(monkeypatch)
    notes: list[str] = []
    result = lamina.verify(values, notes_into(notes))
    assert result.passed, result.checks
    assert ("influence each other" if broken is break_packing else "gradients are not its own") in " ".join(notes)


@pytest.mark.parametrize("broken", BREAKS_ON_DISK, ids=lambda broken: broken.__name__)
def test_red_when_broken_on_disk(broken: Break, tmp_path: Path, monkeypatch: Patch) -> None:
    values = tiny_config(tmp_path)
    broken(monkeypatch)
    result = lamina.verify(values)
    assert failed(result) == BREAKS_ON_DISK[broken], result.checks
    assert not result.passed


def test_every_line_has_been_seen_red() -> None:
    assert set().union(*BREAKS_IN_MEMORY.values(), *BREAKS_ON_DISK.values()) == set(LINES)


def test_an_error_of_a_broken_subject_is_its_line(tmp_path: Path, monkeypatch: Patch) -> None:
    break_saving(monkeypatch)
    checks = {check.name: check for check in lamina.verify(tiny_config(tmp_path)).checks}
    assert "were changed after training" in checks["saved = loaded"].why
    assert checks["saved = loaded"].difference is None


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: Patch) -> None:
    values = tiny_config(tmp_path)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before, state = sorted(tmp_path.iterdir()), torch.get_rng_state()
    lamina.verify(values)
    assert sorted(tmp_path.iterdir()) == before  # no output_dir either
    assert not list(temporary.iterdir())
    assert torch.equal(torch.get_rng_state(), state)


def test_events_tell_each_check_as_it_is_made(tmp_path: Path, monkeypatch: Patch) -> None:
    leave_out_the_disk(monkeypatch)
    events: list[Event] = []
    result = lamina.verify(tiny_config(tmp_path), events.append)
    told = [event.as_json() for event in events if isinstance(event, VerifyCheck)]
    assert [event.check for event in events if isinstance(event, VerifyCheck)] == result.checks
    for number, (line, check) in enumerate(zip(told, result.as_json()["checks"], strict=True), start=1):
        assert line.items() >= {"event": "check", "step": number, **check}.items()
    assert {event.kind for event in events} == {"note", "check"}
    json.dumps(result.as_json(), allow_nan=False)


def test_overrides_alone_are_laid_over_the_quickstart(tmp_path: Path, monkeypatch: Patch) -> None:
    leave_out_the_disk(monkeypatch)
    values = tiny_config(tmp_path, "gpt2")
    changes = [f"model={values['model']}", "dtype=float32", "data.train_on=completions"]
    monkeypatch.setattr("lamina.verification.sample.write_rows", lambda path, rows: path.write_text(ROWS))
    assert lamina.verify(overrides=changes).passed


ROWS = "".join(json.dumps({"prompt": f"say {i}", "completion": "so " * (1 + i % 4)}) + "\n" for i in range(20))


def test_a_mistake_is_the_error_that_training_gives(tmp_path: Path) -> None:
    values = tiny_config(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.train.*nope\.jsonl does not exist"):
        lamina.verify(values, overrides=["data.train=nope.jsonl"])
    with pytest.raises(ConfigError, match="matches no module"):
        lamina.verify(values, overrides=["method.target_modules=[nope]"])


def test_an_interruption_does_not_speak_of_resuming(tmp_path: Path, monkeypatch: Patch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise Interrupted("Go on with: lamina train /tmp/gone --resume")

    monkeypatch.setattr("lamina.verification.artefacts.train", stopped)
    with pytest.raises(Interrupted, match="nothing was left behind"):
        lamina.verify(tiny_config(tmp_path))


def leave_out_the_disk(patch: Patch) -> None:
    """Saves the time of checks that a test has nothing to do with."""

    def skipped(*_: object) -> None:
        raise Skipped("left out of this test")

    for name in ("saved_is_loaded", "merged_is_adapter", "resumed_is_unbroken"):
        patch.setattr(f"lamina.verification.verify.{name}", skipped)
