"""`lamina registry`: each command as people and as programs call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lamina.registry.evidence import write_record
from lamina.registry.registry import Registry
from tests.support.cli import Cli
from tests.support.registry import make_adapter, make_record, make_run


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMINA_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "cache"))
    for seed in range(3):
        make_run(tmp_path / f"run{seed}", seed)


def done(cli: Cli, *arguments: object) -> Any:
    """The JSON of a command that succeeded."""
    result = cli(*arguments, "--json")
    assert result.code == 0, result.err
    return result.json()


def test_from_a_run_to_production_and_back(cli: Cli, tmp_path: Path) -> None:
    added = [done(cli, "registry", "add", f"run{seed}", "--name", "support") for seed in range(2)]
    assert [(each["ref"], each["new"]) for each in added] == [("support:1", True), ("support:2", True)]
    assert done(cli, "registry", "add", "run0", "--name", "support")["new"] is False

    refused = cli("promote", "support:1", "--to", "prod", "--json")
    assert refused.code == 1 and refused.json()["error"]["type"] == "EvidenceError"
    with Registry() as registry:
        first = make_record(registry.find("support:1"))
        second = make_record(registry.find("support:2"), registry.find("support:1"))
    file = write_record(first, tmp_path)
    assert done(cli, "promote", "support:1", "--to", "prod", "--record", file)["to"] == "support:1"
    with Registry() as registry:
        digest = registry.store_record(second)
    moved = done(cli, "registry", "promote", "support:2", "--to", "prod", "--why", "better")
    assert (moved["from"], moved["to"], moved["evidence"], moved["changed"]) == ("support:1", "support:2", digest, True)
    assert done(cli, "rollback", "support@prod", "--why", "it fails")["to"] == "support:1"
    forced = done(cli, "promote", "support:2", "--to", "prod", "--override", "no time [to wait]")
    assert forced["override"] == "no time [to wait]" and forced["evidence"] is None
    changes = done(cli, "registry", "history", "support@prod")["changes"]
    assert [(change["action"], change["from"], change["to"]) for change in changes] == [
        ("promote", 1, 2),
        ("rollback", 2, 1),
        ("promote", 1, 2),
        ("promote", None, 1),
    ]
    for words in (["history", "support"], ["show", "support@prod"], ["ls", "support"]):
        assert "no time [to wait]" in cli("registry", *words).out
    listed = done(cli, "registry", "ls")
    assert listed["entries"][0].items() >= {"name": "support", "aliases": {"prod": 2}, "overrides": 1}.items()
    assert done(cli, "registry", "verify") == {
        "passed": True,
        "versions": 2,
        "blobs": 9,
        "aliases": 1,
        "records": 2,
        "problems": [],
    }


def test_a_colleague(cli: Cli, tmp_path: Path) -> None:
    version = done(cli, "registry", "add", "run0", "--name", "support", "--tag", "owner=ada", "--license", "mit")
    cli("promote", "support:1", "--to", "prod", "--override", "first")
    exported = done(cli, "registry", "export", "support", "--out", "x.tar")
    assert exported["versions"] == ["support:1"]
    there = ["--registry", tmp_path / "there"]
    assert done(cli, "registry", "import", "x.tar", "--aliases", *there)["aliases"] == ["support@prod"]
    shown = done(cli, "registry", "show", "support@prod", *there)
    assert (shown["digest"], shown["tags"]) == (version["digest"], {"owner": "ada"})
    assert shown["manifest"]["license"] == "mit"
    assert done(cli, "registry", "import", "x.tar", *there)["added"] == []


def test_for_people(cli: Cli) -> None:
    cli("registry", "add", "run0", "--name", "support")
    cli("registry", "add", "run1", "--name", "support")
    assert cli("registry", "alias", "support:1", "canary").out == "support@canary: nothing -> support:1\n"
    assert cli("registry", "alias", "support:1", "canary").out == "support@canary already points at support:1\n"
    assert "owner=ada" in cli("registry", "tag", "support:1", "owner=ada").out
    assert "settings.seed" in cli("registry", "diff", "support:1", "support:2").out
    assert cli("registry", "diff", "support:1", "support:1").out == "no differences\n"
    assert "canary -> 1" in cli("registry", "ls").out
    assert "all is well: 2 versions" in cli("registry", "verify").out
    assert "0 versions and 0 files removed" in cli("registry", "gc").out
    assert "would be uploaded to acme/x" in cli("registry", "push", "support", "acme/x", "--dry-run").out
    assert cli("registry", "alias", "support@canary", "--delete").out == "support@canary: support:1 -> nothing\n"


def test_damage_is_exit_1_and_says_what(cli: Cli, tmp_path: Path) -> None:
    done(cli, "registry", "add", "run0", "--name", "support")
    blob = next(path for path in (tmp_path / "registry" / "blobs").rglob("*") if path.is_file())
    blob.unlink()
    result = cli("registry", "verify", "--json")
    assert result.code == 1 and blob.name in result.json()["problems"][0]
    assert result.json()["passed"] is False


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["registry", "ls", "suport"], 2, "Did you mean 'support'?"),
        (["registry", "show", "support:7"], 2, "its newest is support:1"),
        (["registry", "show", "../x"], 2, "is not a name"),
        (["registry", "add", "none", "--name", "x"], 1, "no such run"),
        (["registry", "add", "run0", "--name", "a/b"], 2, "is not a name"),
        (["registry", "alias", "support:1", "prod"], 2, "moves by evidence alone"),
        (["registry", "alias", "support:1"], 2, "--delete"),
        (["registry", "tag", "support:1", "owner"], 2, "KEY=VALUE"),
        (["registry", "add", "run0", "--name", "x", "--tag", "owner"], 2, "KEY=VALUE"),
        (["registry", "add", "run0", "--name", "x", "--license", "a/b"], 2, "--license: 'a/b' is no SPDX name"),
        (["registry", "add", "run0", "--name", "x", "--evaluation", "e1"], 2, "--evaluation: 'e1' is no digest"),
        (
            ["promote", "support:1", "--to", "prod", "--override", "caf\udce9"],
            2,
            "--override: 'caf\\udce9' is not UTF-8",
        ),
        (["rollback", "support@prod", "--why", "caf\udce9"], 2, "--why: 'caf\\udce9' is not UTF-8"),
        (["rollback", "support"], 2, "names no alias"),
        (["rollback", "support@prod"], 2, "has no alias 'prod'"),
        (["promote", "support:1", "--to", "a b"], 2, "not a name of an alias"),
        (["promote", "support:1", "--to", "prod", "--record", "gate.json"], 1, "called by its digest"),
        (["promote", "support:1", "--to", "prod", "--record", f"sha256:{'0' * 64}"], 1, "no such gate record"),
        (["registry", "import", "nothing.tar"], 2, "is no file"),
        (["registry", "ls", "--registry", "s3://x"], 2, "no records"),
        (["registry", "ls", "--registry", "elsewhere"], 1, "there is no registry"),
        (["registry", "push", "support", "x", "--dry-run"], 2, "OWNER/NAME"),
        (["eval", "support@prod"], 2, "has no alias 'prod'"),
        (["merge", "suport:1", "--out", "x"], 2, "Did you mean 'support'?"),
    ],
)
def test_mistakes(cli: Cli, arguments: list[str], code: int, words: str) -> None:
    done(cli, "registry", "add", "run0", "--name", "support")
    result = cli(*arguments, "--json")
    assert result.code == code, result.err
    assert words in result.json()["error"]["message"]
    assert words in result.error()


def test_an_adapter_of_peft(cli: Cli, tmp_path: Path) -> None:
    """Its digest is computed by reading it, as `lamina eval` and the gate do."""
    from lamina.adapters.adapter import read_adapter

    folder = make_adapter(tmp_path / "peft")
    (folder / "lamina.json").unlink()
    config = {"peft_type": "LORA", "base_model_name_or_path": "tiny", "r": 4, "lora_alpha": 8, "target_modules": ["q"]}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "task_type": "CAUSAL_LM"}))
    added = done(cli, "registry", "add", folder, "--name", "support")
    assert added["adapter_digest"] == read_adapter(folder).digest


def test_no_torch_and_no_sqlalchemy_once_there_is_a_registry(cli: Cli, tmp_path: Path) -> None:
    done(cli, "registry", "add", "run0", "--name", "support")
    code = (
        "import sys; sys.argv[0] = 'lamina'\nfrom lamina.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'transformers', 'sqlalchemy', 'fsspec', 'alembic') if name in sys.modules])"
    )
    calls = (
        ["registry", "ls"],
        ["registry", "show", "support"],
        ["registry", "add", "run1", "--name", "support"],
        ["promote", "support:1", "--to", "prod", "--override", "test"],
        ["rollback", "support@prod"],
        ["registry", "verify"],
    )
    for arguments in calls:
        command = [sys.executable, "-c", code, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ))
        assert result.stdout.splitlines()[-1] == "[]", result
