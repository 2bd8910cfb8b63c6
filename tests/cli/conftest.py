"""Fixtures of the command-line tests: a call of `main` in this process, and a trained adapter."""

from __future__ import annotations

import io
import signal
from pathlib import Path

import pytest

import lamina
from lamina.cli.app import main
from lamina.runs import Run
from tests.support.cli import ROWS, Cli, Result, write_rows


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Runs a command in an empty working directory."""

    def run(*arguments: object, stdin: str = "") -> Result:
        monkeypatch.setattr("sys.argv", ["lamina", *map(str, arguments)])
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        written = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, written.out, written.err)

    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A small valid data file."""
    return write_rows(tmp_path / "rows.jsonl", ROWS)


@pytest.fixture
def config(tmp_path: Path, model_folder: Path, rows: Path) -> Path:
    """A configuration of two steps on the two-layer model, which would succeed."""
    path = tmp_path / "config.yaml"
    text = f"""
    model: {model_folder}
    data: {{train: {rows}, eval: 0.2, max_length: 64}}
    method: {{r: 2}}
    train: {{max_steps: 2, learning_rate: 1e-2}}
    dtype: float32
    output_dir: {tmp_path / "run"}
    """
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Run:
    """A run whose adapter answers differently from its base model. Do not change it."""
    folder = tmp_path_factory.mktemp("trained")
    return lamina.train(
        {
            "model": str(model_folder),
            "data": {"train": str(write_rows(folder / "rows.jsonl", ROWS)), "eval": 0.2, "max_length": 64},
            "method": {"r": 4, "lora_alpha": 16},
            "train": {"max_steps": 4, "learning_rate": 5e-2},
            "dtype": "float32",
            "output_dir": str(folder / "run"),
        }
    )
