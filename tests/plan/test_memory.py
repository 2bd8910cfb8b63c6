"""`gradient_checkpointing: auto` recomputes when the activations would not fit, and not before."""

from __future__ import annotations

import pytest
from tests.models_zoo import build_model

from lamina.fusion import FusionReport, fast_path
from lamina.plan import memory


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
