"""`lamina verify`: one JSON object or a table on stdout, progress on stderr, and an exit code for scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lamina.compute.ops.linear_group import LinearGroup
from lamina.compute.weights import DenseLinear
from tests.support.cli import Cli


def test_json(cli: Cli, config: Path, tmp_path: Path) -> None:
    result = cli("verify", config, "method.r=4", "--json")
    verification = result.json()
    assert (result.code, verification["passed"]) == (0, True), verification
    assert (verification["dtype"], verification["method"], verification["documents"]) == ("float32", "lora", 5)
    assert len(verification["checks"]) == 9
    for check in verification["checks"]:
        assert check.keys() == {"name", "compared", "worst", "difference", "tolerance", "why", "passed"}
        assert check["name"] in result.err  # as it was made
    assert not (tmp_path / "run").exists()


def test_a_failed_check_is_exit_code_1(cli: Cli, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DenseLinear, "set_weight", lambda self, weight: None)
    result = cli("verify", config, "--json")
    verification = result.json()
    assert (result.code, verification["passed"]) == (1, False)
    assert [check["name"] for check in verification["checks"] if check["passed"] is False] == ["merged = adapter"]


def test_for_people(cli: Cli, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DenseLinear, "matmul_t", lambda self, grad: torch.full_like(grad @ self._matrix(), torch.nan))
    real = LinearGroup.backward_input

    def not_finite(self: LinearGroup, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        dx, gh = real(self, *arguments)
        return torch.full_like(dx, torch.nan), gh

    monkeypatch.setattr(LinearGroup, "backward_input", not_finite)
    result = cli("verify", config)
    assert result.code == 1
    for words in ("packed = one at a time", "FAIL", "not finite", "dropout off"):
        assert words in result.out
    assert "with lora in float32: " in result.out
    assert "Traceback" not in result.err


def test_without_a_config_overrides_are_laid_over_the_quickstart(
    cli: Cli, model_folder: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamina.verification.sample.LONGEST", 64)
    changes = [f"model={model_folder}", f"data.train={rows}", "dtype=float32", "method.r=2"]
    assert cli("verify", *changes, "--json").json()["model"] == str(model_folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope.yaml"], "nope.yaml does not exist"),
        (["CONFIG", "methd.r=4"], "'method'"),
        (["methd.r=4"], "'method'"),
        (["CONFIG", "data.train=nope.jsonl"], "nope.jsonl does not exist"),
        (["CONFIG", "method.target_modules=[q_porj]"], "'q_proj'"),
        (["CONFIG", "method.r=4000"], "narrower than the rank 4000"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(arguments: list[str], words: str, cli: Cli, config: Path) -> None:
    given = [str(config) if argument == "CONFIG" else argument for argument in arguments]
    result = cli("verify", *given, "--json")
    assert result.code == 2
    assert words in result.error()
    assert json.loads(result.out)["error"]["type"] == "ConfigError"
