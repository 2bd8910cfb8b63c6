"""The last lines of `lamina train`."""

from __future__ import annotations

import pytest

from lamina.cli.training import print_summary
from lamina.runs.summary import Summary


def summary(before: float, after: float, **figures: float) -> Summary:
    """A summary with evaluation losses, and with metrics that grew tenfold."""
    whole = dict.fromkeys(("steps", "skipped_steps", "tokens", "supervised_tokens", "adapter_step"), 1)
    sizes = dict.fromkeys(("peak_memory_bytes", "trainable_parameters", "total_parameters"), 1)
    return Summary(
        run="run",
        adapter="run/adapter",
        adapter_digest="sha256:0",
        train_loss_first=1.0,
        train_loss_last=1.0,
        eval_loss_first=before,
        eval_loss=after,
        tokens_per_second=None,
        step_seconds_median=None,
        eval_metrics_first=figures,
        eval_metrics={name: 10 * value for name, value in figures.items()},
        **whole,
        **sizes,
    )


def test_a_loss_that_was_0_has_no_share_of_change(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(summary(0.0, 0.25))
    assert "eval loss 0.0000 (bare base) -> 0.2500\n" in capsys.readouterr().err
    print_summary(summary(0.5, 0.25))
    assert "eval loss 0.5000 (bare base) -> 0.2500 (-50.0%)\n" in capsys.readouterr().err


def test_what_tells_more_than_the_loss_is_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(summary(0.01, 0.02, probability=0.05, nll_loss=0.3, entropy=0.1))
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert lines[2:4] == ["nll_loss 0.3000 -> 3.0000", "probability 0.0500 -> 0.5000"]
    assert not [line for line in lines if line.startswith("entropy")]
