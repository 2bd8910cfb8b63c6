"""Versions that never change, aliases that move by evidence, and the history of both."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lamina.errors import AdapterError, ConfigError, ConflictError, EvidenceError, RegistryError
from lamina.registry.evidence import Side, write_record
from lamina.registry.registry import Registry
from tests.support.registry import make_adapter, make_record, make_run


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """An empty registry in a folder."""
    return Registry(tmp_path / "registry", who="ada@test")


def filled(registry: Registry, tmp_path: Path, count: int = 3) -> Registry:
    """The same with versions of `support`."""
    for seed in range(count):
        registry.add(make_adapter(tmp_path / f"a{seed}", seed), "support")
    return registry


def test_a_run_becomes_a_version_and_the_same_again_is_the_same(registry: Registry, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    first = registry.add(run, "support", license="apache-2.0", tags={"owner": "ada"})
    again = registry.add(run / "adapter", "support", license="apache-2.0")
    assert first.is_new and not again.is_new
    assert again.version.ref == "support:1" and again.version.digest == first.version.digest
    moved = make_run(tmp_path / "elsewhere")
    (moved / "config.yaml").write_text((run / "config.yaml").read_text())
    assert not registry.add(moved, "support", license="apache-2.0").is_new  # nothing of a place is in it
    manifest = registry.show("support").manifest
    assert manifest.data[0]["rows"] == 20 and manifest.config is not None and manifest.config["seed"] == 0
    assert manifest.run == {"dtype": "float32", "summary": {"eval_loss": 1.5, "steps": 8, "loss": None}}
    assert manifest.probes is not None and manifest.probes["count"] == 1
    assert registry.find("support").tags == {"owner": "ada"}
    assert registry.add(run, "support").version.number == 2  # without a license it is another


def test_references(registry: Registry, tmp_path: Path) -> None:
    filled(registry, tmp_path)
    registry.set_alias("support:2", "canary")
    second = registry.find("support:2")
    assert registry.find("support").number == 3
    for ref in ("support@canary", f"support@{second.digest}", f"support@{second.digest[:20]}"):
        assert registry.find(ref) == second
    assert second.aliases == ("canary",)


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("suport", "Did you mean 'support'?"),
        ("support@canari", "Did you mean 'canary'?"),
        ("support:9", "its newest is support:1"),
        ("support@sha256:000000", "no such digest"),
        ("support@sha256:xyz", "no digest after"),
        ("support:01", "in the place of a version's number"),
        ("support:", "in the place of a version's number"),
        ("../support", "is not a name"),
        ("a/b", "is not a name"),
        ("support@../x", "is not a name of an alias"),
        ("", "is not a name"),
        ("-x", "is not a name"),
        ("x" * 129, "is not a name"),
        ("support@1", "is not a name of an alias"),
    ],
)
def test_names_that_are_not_there(registry: Registry, tmp_path: Path, ref: str, said: str) -> None:
    filled(registry, tmp_path, 1).set_alias("support:1", "canary")
    with pytest.raises(ConfigError) as error:
        registry.find(ref)
    assert said in str(error.value)


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", "a b", "a@b", "a:1", "\0", "ä"])
def test_no_entry_gets_a_name_that_is_none(registry: Registry, tmp_path: Path, name: str) -> None:
    adapter = make_adapter(tmp_path / "a")
    with pytest.raises(ConfigError):
        registry.add(adapter, name)
    assert registry.entries() == ([], 0)


def test_a_changed_adapter_does_not_become_a_version(registry: Registry, tmp_path: Path) -> None:
    path = make_adapter(tmp_path / "a") / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(AdapterError, match="changed after training"):
        registry.add(tmp_path / "a", "support")
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(AdapterError, match="damaged"):
        registry.add(tmp_path / "a", "support")
    assert registry.entries() == ([], 0)


def test_what_is_no_adapter(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "running").mkdir()
    (tmp_path / "running" / "config.yaml").write_text("model: x\n")
    for name, said in (("none", "no such run"), ("empty", "holds no adapter"), ("running", "no adapter yet")):
        with pytest.raises(AdapterError, match=said):
            registry.add(tmp_path / name, "support")


def test_an_adapter_of_peft_needs_its_digest(registry: Registry, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a")
    (folder / "lamina.json").unlink()
    with pytest.raises(AdapterError, match="adapter_digest"):
        registry.add(folder, "support")
    digest = "sha256:" + "a" * 64
    version = registry.add(folder, "support", adapter_digest=digest).version
    assert version.adapter_digest == digest and version.base_ref == "tiny" and version.base_digest is None


def test_promotion_takes_a_passing_record_for_exactly_this_pair(registry: Registry, tmp_path: Path) -> None:
    filled(registry, tmp_path)
    one, two, three = (registry.find(f"support:{number}") for number in (1, 2, 3))
    with pytest.raises(EvidenceError, match=r"bare base.*--against base --gate"):  # as `lamina gate` calls it
        registry.promote("support:1", "prod")
    first = registry.store_record(make_record(one))
    assert registry.store_record(make_record(one)) == first
    moved = registry.promote("support:1", "prod")
    assert (moved.before, moved.after, moved.evidence) == (None, registry.find("support:1"), first)
    registry.store_record(make_record(two))  # against the base, which is not what prod points at
    with pytest.raises(EvidenceError, match=r"no gate record for support:2 against support:1 .*the bare base"):
        registry.promote("support:2", "prod")
    registry.store_record(make_record(two, three))
    with pytest.raises(EvidenceError, match="newest record is against support:3"):
        registry.promote("support:2", "prod")
    other = registry.store_record(make_record(three, one))
    with pytest.raises(EvidenceError, match="is of another pair"):
        registry.promote("support:2", "prod", record=other)
    registry.store_record(make_record(two, one))
    held = registry.store_record(make_record(two, one, "hold"))
    with pytest.raises(EvidenceError, match="HOLD: better routing"):  # the newest counts
        registry.promote("support:2", "prod")
    assert registry.find_record(two.adapter_digest, one.adapter_digest) == (held, make_record(two, one, "hold"))
    registry.store_record(make_record(two, one, "not_enough_rows"))
    with pytest.raises(EvidenceError, match="NOT ENOUGH ROWS"):
        registry.promote("support:2", "prod")
    assert registry.find("support@prod").number == 1
    passed = registry.store_record(make_record(two, one, created="later"))
    assert registry.promote("support:2", "prod", why="better").evidence == passed
    assert not registry.promote("support:2", "prod").changed
    change = registry.history("support@prod")[0]
    assert (change.before, change.after, change.who, change.why) == (1, 2, "ada@test", "better")
    assert registry.verify().passed


def test_a_record_on_another_base_is_refused(registry: Registry, tmp_path: Path) -> None:
    one = filled(registry, tmp_path, 1).find("support:1")
    for side in ("candidate", "against"):
        of = replace(getattr(make_record(one), side), base_digest="sha256:" + "e" * 64)
        registry.store_record(make_record(one, **{side: of}))  # type: ignore[arg-type]
        with pytest.raises(EvidenceError, match="another base"):
            registry.promote("support:1", "prod")


def test_a_record_against_the_base_in_another_quantization_is_refused(registry: Registry, tmp_path: Path) -> None:
    one = filled(registry, tmp_path, 1).find("support:1")
    packed = replace(make_record(one).candidate, packed_digest="sha256:" + "e" * 64)
    registry.store_record(make_record(one, candidate=packed))
    with pytest.raises(EvidenceError, match=r"against the base in another quantization than support:1.*--against base"):
        registry.promote("support:1", "prod")
    own = replace(make_record(one).against, packed_digest=packed.packed_digest)
    registry.store_record(make_record(one, candidate=packed, against=own))
    assert registry.promote("support:1", "prod").changed


def test_an_edited_record_is_refused(registry: Registry, tmp_path: Path) -> None:
    filled(registry, tmp_path)
    one, two = registry.find("support:1"), registry.find("support:2")
    file = write_record(make_record(one), tmp_path / "records")
    held = write_record(make_record(two, one, "hold"), tmp_path / "records")
    assert registry.promote("support:1", "prod", record=file).changed
    content = held.read_bytes()
    for edited in (
        content.replace(b'"hold"', b'"promote"'),
        content.replace(b'"hold"', b'"promote"').replace(b"false", b"true"),
        content[:-1],
        content + b" ",
        content.replace(b"0.05", b"0.06"),
    ):
        held.write_bytes(edited)
        with pytest.raises(EvidenceError, match="edited"):
            registry.promote("support:2", "prod", record=held)
    (tmp_path / "gate.json").write_bytes(content)
    with pytest.raises(EvidenceError, match="called by its digest"):
        registry.promote("support:2", "prod", record=tmp_path / "gate.json")
    digest = registry.store_record(make_record(two, one))
    blob = next(tmp_path.glob(f"registry/blobs/sha256/*/{digest[7:]}"))
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes().replace(b"0.05", b"0.06"))
    for record in (None, digest):
        with pytest.raises(EvidenceError, match="edited"):
            registry.promote("support:2", "prod", record=record)
    assert registry.find("support@prod").number == 1
    assert [problem for problem in registry.verify().problems if digest in problem]


def test_no_alias_is_pointed_at_a_version_with_an_edited_byte(registry: Registry, tmp_path: Path) -> None:
    filled(registry, tmp_path)
    registry.promote("support:2", "prod", override="the first")
    registry.promote("support:1", "prod", override="the second")
    two = registry.find("support:2")
    registry.store_record(make_record(two, registry.find("support:1")))
    for file in registry.manifest(two).files:
        blob = next(path for path in (tmp_path / "registry").rglob("*") if path.name in file.sha256 and path.is_file())
        whole = blob.read_bytes()
        blob.chmod(0o644)
        blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        for change in (
            lambda: registry.promote("support:2", "prod"),
            lambda: registry.promote("support:2", "prod", override="insisted"),
            lambda: registry.rollback("support@prod"),
            lambda: registry.set_alias("support:2", "canary"),
        ):
            with pytest.raises(RegistryError, match=rf"support:2: {file.name}: .*were changed, so no alias"):
                change()
        blob.write_bytes(whole)
    assert len(registry.history("support")) == 2
    assert registry.promote("support:2", "prod").evidence is not None


def test_an_override_stays_visible_for_ever(registry: Registry, tmp_path: Path) -> None:
    filled(registry, tmp_path)
    with pytest.raises(ConfigError, match="--override"):
        registry.promote("support:1", "prod", override=" ")
    registry.promote("support:1", "prod", override="the old one leaks")
    assert registry.aliases("support")[0].override == "the old one leaks"
    one, two = registry.find("support:1"), registry.find("support:2")
    registry.store_record(make_record(two, one))
    registry.promote("support:2", "prod")
    assert registry.aliases("support")[0].override is None
    assert registry.entries()[0][0].overrides == 1
    assert [change.override for change in registry.show("support:1").history] == [None, "the old one leaks"]


def test_rollback_goes_back_step_by_step(registry: Registry, tmp_path: Path) -> None:
    filled(registry, tmp_path, 4)
    for number in (1, 2, 3):
        registry.promote(f"support:{number}", "prod", override="test")
    assert registry.rollback("support@prod", why="it fails").after == registry.find("support:2")
    assert registry.rollback("support@prod").after == registry.find("support:1")
    with pytest.raises(RegistryError, match="no way back"):
        registry.rollback("support@prod")
    registry.promote("support:4", "prod", override="test")
    assert registry.rollback("support@prod").after == registry.find("support:1")
    actions = [(change.action, change.before, change.after) for change in registry.history("support@prod")]
    assert actions[:2] == [("rollback", 4, 1), ("promote", 1, 4)]
    with pytest.raises(ConfigError, match="names no alias"):
        registry.rollback("support")
    assert registry.verify().passed


def test_a_gated_alias_moves_by_evidence_alone(registry: Registry, tmp_path: Path) -> None:
    filled(registry, tmp_path)
    with pytest.raises(ConfigError, match="moves by evidence alone"):
        registry.set_alias("support:1", "prod")
    registry.set_alias("support:1", "stage")
    registry.set_alias("support:2", "stage", why="to look at")
    registry.promote("support:3", "stage", override="test")
    for change in (lambda: registry.set_alias("support:1", "stage"), lambda: registry.delete_alias("support@stage")):
        with pytest.raises(ConfigError, match="moves by evidence alone"):
            change()
    assert registry.delete_alias("support@stage", override="no longer used").after is None
    with pytest.raises(ConfigError, match="has no alias 'stage'"):
        registry.find("support@stage")
    with pytest.raises(ConfigError, match="moves by evidence alone"):  # its history remembers
        registry.set_alias("support:1", "stage")
    assert [change.after for change in registry.history("support@stage")] == [None, 3, 2, 1]
    assert registry.verify().passed


def test_an_alias_that_was_moved_in_the_meantime(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(registry, tmp_path)
    registry.promote("support:1", "prod", override="test")
    other = Registry(tmp_path / "registry", who="bob@elsewhere")
    moved = Registry._moved

    def interrupted(*arguments: object) -> object:
        monkeypatch.setattr(Registry, "_moved", moved)
        other.promote("support:2", "prod", override="bob was first")
        return moved(registry, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Registry, "_moved", lambda self, *arguments: interrupted(*arguments))
    with pytest.raises(ConflictError, match="bob@elsewhere has moved support@prod to support:2"):
        registry.promote("support:3", "prod", override="test")
    assert registry.find("support@prod").number == 2
    assert len(registry.history("support@prod")) == 2


def test_differences_of_two_versions(registry: Registry, tmp_path: Path) -> None:
    filled(registry, tmp_path)
    found = registry.diff("support:1", "support:2")
    assert found["settings.seed"] == (0, 1)
    assert "files.adapter_model.safetensors.sha256" in found and "base.tensors" not in found
    assert registry.diff("support:1", "support:1") == {}


@pytest.mark.parametrize("text", ["caf\udce9", "a\0b"], ids=["not-utf-8", "nul"])
def test_texts_that_no_database_keeps_are_refused_before_anything_is_written(
    registry: Registry, tmp_path: Path, text: str
) -> None:
    filled(registry, tmp_path)
    registry.promote("support:1", "prod", override="the first")
    registry.set_alias("support:1", "canary")
    files = sorted((tmp_path / "registry" / "blobs").rglob("*"))
    refused = [
        lambda: registry.promote("support:2", "prod", override=text),
        lambda: registry.promote("support:2", "prod", override="x", why=text),
        lambda: registry.rollback("support@prod", why=text),
        lambda: registry.set_alias("support:2", "canary", why=text),
        lambda: registry.set_alias("support:2", "prod", override=text),
        lambda: registry.delete_alias("support@canary", why=text),
        lambda: registry.tag("support:1", {"owner": text}),
        lambda: registry.entries(prefix=text),
        lambda: registry.add(make_adapter(tmp_path / "new", 9), "support", tags={"owner": text}),
        lambda: registry.add(tmp_path / "new", "support", license=text),
        lambda: registry.add(tmp_path / "new", "support", evaluations=[text]),
        lambda: Registry(tmp_path / "registry", who=text),
    ]
    for change in refused:
        with pytest.raises(ConfigError, match=r"not UTF-8|holds NUL|no SPDX name|no digest"):
            change()
    assert registry.find("support@prod").number == registry.find("support@canary").number == 1
    assert len(registry.history("support")) == 2 and registry.find("support").number == 3
    assert sorted((tmp_path / "registry" / "blobs").rglob("*")) == files


def test_a_base_at_a_path_that_is_not_utf_8_is_named(registry: Registry, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a")
    about = json.loads((folder / "lamina.json").read_text())
    about["lock"]["base"] = "/models/caf\udce9"
    (folder / "lamina.json").write_text(json.dumps(about))
    with pytest.raises(RegistryError, match=r"names '/models/caf\\udce9', which is not UTF-8"):
        registry.add(folder, "support")


def test_tags(registry: Registry, tmp_path: Path) -> None:
    filled(registry, tmp_path, 1)
    assert registry.tag("support", {"owner": "ada", "team/x": "1"}).tags == {"owner": "ada", "team/x": "1"}
    assert registry.tag("support", {"owner": None, "team/x": "2"}).tags == {"team/x": "2"}
    for key, value in (("", "x"), ("a b", "x"), ("../x", "y"), ("a", "x" * 1001)):
        with pytest.raises(ConfigError):
            registry.tag("support", {key: value})


def test_the_history_only_grows(registry: Registry, tmp_path: Path) -> None:
    filled(registry, tmp_path, 1).set_alias("support:1", "canary")
    for statement in ("UPDATE history SET who = 'x'", "DELETE FROM history"):
        with pytest.raises(RegistryError, match="only grows"), registry.records.writing() as tx:
            tx.run(statement)
    assert registry.history("support")[0].who == "ada@test"


def test_records_that_contradict_themselves_are_not_stored(registry: Registry, tmp_path: Path) -> None:
    one = filled(registry, tmp_path, 1).find("support:1")
    wrong = make_record(one, None, "hold")
    for record in (
        replace(wrong, verdict="promote"),
        replace(make_record(one), checks=()),
        replace(wrong, verdict="perhaps"),  # type: ignore[arg-type]
        replace(wrong, candidate=Side(None)),
        replace(wrong, evaluations=("x",)),
        replace(wrong, checks=(replace(wrong.checks[0], low="much"),)),  # type: ignore[arg-type]
    ):
        with pytest.raises(EvidenceError):
            registry.store_record(record)


def test_versions_are_told_as_json(registry: Registry, tmp_path: Path) -> None:
    filled(registry, tmp_path, 1).promote("support:1", "prod", override="test")
    shown = json.loads(json.dumps(registry.show("support@prod").as_json()))
    assert shown["ref"] == "support:1" and shown["aliases"] == ["prod"] and shown["version"] == 1
    assert shown["history"][0].items() >= {"from": None, "to": 1, "override": "test"}.items()
    assert shown["manifest"]["adapter_digest"] == shown["adapter_digest"]
