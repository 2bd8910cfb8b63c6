"""No Python code that comes with a model is run, whatever its files ask for and whatever stdin answers."""

from __future__ import annotations

import ast
import io
import json
import shutil
from pathlib import Path

import pytest

import lamina
from lamina.errors import ModelError
from lamina.models.load import load_base

SOURCE = Path(lamina.__file__).parent


@pytest.fixture
def witness(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A model folder with code of its own, and the file that this code would write; stdin says yes to everything."""
    folder, written = tmp_path / "model", tmp_path / "it-ran"
    shutil.copytree(model_folder, folder)
    for name in ("configuration_own", "modeling_own", "tokenization_own"):
        (folder / f"{name}.py").write_text(f"open({str(written)!r}, 'w').write('x')\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    return folder, written


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_config_with_a_type_of_its_own_is_refused(witness: tuple[Path, Path]) -> None:
    folder, written = witness
    own = {"AutoConfig": "configuration_own.C", "AutoModelForCausalLM": "modeling_own.M"}
    change(folder / "config.json", model_type="own", architectures=["OwnForCausalLM"], auto_map=own)
    with pytest.raises(ModelError, match=r"auto_map.*which lamina does not run unless.*Fix: name a model"):
        load_base(str(folder), "float32")
    assert not written.exists()


def test_a_tokenizer_with_a_class_of_its_own_is_refused(witness: tuple[Path, Path]) -> None:
    folder, written = witness
    own = {"AutoTokenizer": ["tokenization_own.T", None]}
    change(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=own)
    change(folder / "config.json", model_type="llama")
    try:
        load_base(str(folder), "float32")
    except ModelError as error:
        assert "does not run unless you say so" in str(error)
    assert not written.exists()


def test_a_known_type_with_code_beside_it_is_read_by_transformers_own(witness: tuple[Path, Path]) -> None:
    folder, written = witness
    change(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_own.M"})
    assert type(load_base(str(folder), "float32").model).__module__.startswith("transformers.models.")
    assert not written.exists()


def test_every_call_says_so() -> None:
    """transformers asks on the terminal whether to run such code unless it is told not to."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("Auto") and node.keywords:
                if not ast.unparse(node.func).endswith(".from_pretrained"):
                    continue
                said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                allowed = ("False", "is_allowed(folder)", "code")
                assert said.get("trust_remote_code") in allowed, f"{path}:{node.lineno}"
