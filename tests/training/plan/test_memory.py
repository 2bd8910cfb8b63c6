"""`gradient_checkpointing: auto` recomputes when the activations would not fit, and not before."""

from __future__ import annotations

import pytest

from lamina.compute.fusion import FusionReport, fast_path
from lamina.training.plan import memory
from tests.support.architectures import ARCHITECTURES, build_architecture, build_vision_language
from tests.support.models_zoo import build_model


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_auto_recomputes_as_little_as_fits(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(family)
    unfused, fused, selective = (memory.activation_bytes(model, 1000, how) for how in ("unfused", "fused", "selective"))
    assert selective < fused < 0.7 * unfused
    for fits, expected in (
        (10 * unfused, (False, False)),
        (fused, (True, False)),
        (selective, (True, "selective")),
        (selective - 1, (True, True)),
    ):
        monkeypatch.setattr(memory, "available_bytes", lambda device, fits=fits: fits / 0.6 + 1)
        assert tuple(memory.choose_checkpointing("auto", model, 1000, fused=f) for f in (False, True)) == expected
        for told in (True, False, "selective"):
            assert memory.choose_checkpointing(told, model, 1000, fused=True) == told


@pytest.mark.parametrize(("family", "complete"), [("llama", True), ("gpt2", False)])
def test_it_is_decided_once_the_fused_layers_are_known(family: str, complete: bool) -> None:
    asked: list[FusionReport] = []

    def decide(report: FusionReport) -> bool:
        asked.append(report)
        return True

    with fast_path(build_model(family), decide) as report:
        assert report.recompute
    assert [report.complete for report in asked] == [complete]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_an_estimate(architecture: str) -> None:
    """It grows with tokens, layers and widths, wherever these are written down."""
    model = build_architecture(architecture, weights=False)
    estimate = memory.activation_bytes(model, 100, "unfused")
    assert estimate > memory.activation_bytes(model, 100, "fused") >= memory.activation_bytes(model, 100, "selective")
    assert memory.activation_bytes(model, 200, "unfused") == 2 * estimate > 0
    # A layer saves its input at least twenty times, and the input is as wide as the embeddings, or half of them.
    width = model.get_input_embeddings().weight.shape[1]
    assert estimate >= 20 * 2 * 100 * width * 4 / 2


def test_the_estimate_is_of_the_text_and_of_each_layers_own_width() -> None:
    text = build_architecture("gemma3_text")
    assert memory.activation_bytes(build_vision_language(2, 5), 100, "unfused") == memory.activation_bytes(
        text, 100, "unfused"
    )
    each, mean = (
        build_architecture("gemma3n_text", weights=False, intermediate_size=sizes) for sizes in ([64, 192], [128, 128])
    )
    assert memory.activation_bytes(each, 100, "unfused") == memory.activation_bytes(mean, 100, "unfused")
    few, many = (build_architecture("mixtral", weights=False, num_experts_per_tok=count) for count in (1, 4))
    assert memory.activation_bytes(few, 100, "unfused") < memory.activation_bytes(many, 100, "unfused")
