"""`gradient_checkpointing: auto` recomputes when the activations would not fit, and not before."""

from __future__ import annotations

import pytest
from tests.models_zoo import build_model

from lamina.fusion import FusionReport, fast_path
from lamina.plan import memory


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_auto_decides_by_what_fits(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(family)
    unfused, fused = (memory.activation_bytes(model, 1000, fused=fused) for fused in (False, True))
    assert fused < 0.7 * unfused
    between = (unfused + fused) / 2 / 0.6
    for free, expected in ((10 * unfused, (False, False)), (between, (True, False)), (fused, (True, True))):
        monkeypatch.setattr(memory, "available_bytes", lambda device, free=free: free)
        assert tuple(memory.wants_checkpointing("auto", model, 1000, fused=f) for f in (False, True)) == expected
        assert memory.wants_checkpointing(True, model, 1000, fused=True)
        assert not memory.wants_checkpointing(False, model, 1000, fused=False)


@pytest.mark.parametrize(("family", "complete"), [("llama", True), ("gpt2", False)])
def test_it_is_decided_once_the_fused_layers_are_known(family: str, complete: bool) -> None:
    asked: list[FusionReport] = []

    def decide(report: FusionReport) -> bool:
        asked.append(report)
        return True

    with fast_path(build_model(family), decide) as report:
        assert report.recompute
    assert [report.complete for report in asked] == [complete]
