"""Golden files: what an earlier version wrote, every later one reads, with the same digests and the same numbers."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lamina
from lamina.adapters.adapter import FORMAT, adapter_digest, read_adapter
from lamina.adapters.hf_peft import read_tensors
from lamina.config import METHOD_CONFIGS
from lamina.config.methods.lora import LoraConfig
from lamina.errors import AdapterError, NewerVersionError
from lamina.runs.events import Note, Unknown, event_lines
from lamina.training import checkpoint
from lamina.version import __version__

HERE = Path(__file__).parent
FIRST_METHODS = (
    "adalora bitfit bottleneck dora full ia3 ln_tuning loha lokr lora p_tuning peft prefix_tuning prompt_tuning vera"
)
FORMATS = sorted(path.name.removesuffix(".tar.xz") for path in HERE.glob("*.tar.xz"))


@pytest.fixture(scope="module", params=FORMATS)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    with tarfile.open(HERE / f"{request.param}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def adapters(golden: Path) -> list[Path]:
    return [*sorted((golden / "adapters").iterdir()), golden / "runs" / "finished" / "adapter"]


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_there_are_golden_files_of_every_format() -> None:
    assert [f"format-{number}" for number in range(1, FORMAT + 1)] == FORMATS


def test_every_method_is_there(golden: Path) -> None:
    """Of the first version's; a method that comes later belongs to the next format's files."""
    found = {json.loads((path / "lamina.json").read_text())["method"]["type"] for path in adapters(golden)}
    first = set(FIRST_METHODS.split())
    assert first <= found <= METHOD_CONFIGS.keys()


def test_adapters_are_read_with_the_digest_that_they_were_written_with(golden: Path) -> None:
    for path in adapters(golden):
        recorded = json.loads((path / "lamina.json").read_text())["digest"]
        adapter = read_adapter(path)
        assert adapter.digest == recorded
        assert adapter.settings == json.loads((path / "lamina.json").read_text())["method"]
        # The digest is over what is stored, whatever the configuration's class makes of it.
        assert adapter_digest(adapter.settings, read_tensors(path)) == recorded


def test_adapters_give_the_logits_that_they_gave(golden: Path) -> None:
    for path in adapters(golden):
        if json.loads((path / "lamina.json").read_text())["lock"]["quantization"]:
            pytest.importorskip("bitsandbytes")
        loaded = lamina.load(path, model=str(golden / "base"), dtype="float32")
        assert loaded.notes == [], path
        assert loaded.certify().passed, path


@pytest.mark.parametrize("name", ["", "-adalora"])
def test_checkpoints_are_resumed_to_the_adapter_of_the_run_that_was_not_stopped(
    name: str, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(golden, tmp_path / "golden")
    monkeypatch.chdir(tmp_path / "golden")
    run = lamina.train(f"runs/unfinished{name}/config.yaml", resume=True)
    notes = [note.message for note in run.events(Note)]
    assert "Resumed from step 5 of 8." in notes
    assert run.summary is not None
    before = lamina.Run(Path(f"runs/finished{name}"))
    assert before.summary is not None
    assert run.summary.tokens == before.summary.tokens
    ours = load_file(run.adapter / "adapter_model.safetensors")
    theirs = load_file(before.adapter / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    for key in ours:  # another machine and other versions of torch round otherwise
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-5)


def test_a_finished_run_is_finished(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(golden, tmp_path / "golden")
    monkeypatch.chdir(tmp_path / "golden")
    run = lamina.train("runs/finished/config.yaml", resume=True)
    assert run.summary is not None
    assert run.summary.as_json() == json.loads((golden / "runs/finished/manifest.json").read_text())["summary"]


def test_logs_and_manifests_are_read_and_would_be_written_the_same(golden: Path) -> None:
    for path in sorted((golden / "runs").iterdir()):
        run = lamina.Run(path)
        lines = list(event_lines(run.metrics_path))
        assert "".join(f"{line}\n" for line, _ in lines) == run.metrics_path.read_text()
        assert [json.dumps(event.as_json(), ensure_ascii=False) for _, event in lines] == [line for line, _ in lines]
        assert not list(run.events(Unknown))
        manifest = json.loads(run.manifest_path.read_text())
        assert {"format": manifest.get("format"), **run.manifest.as_json()} == {"format": None, **manifest}
        assert (run.summary is not None) == path.name.startswith("finished")


def test_a_new_setting_leaves_old_adapters_readable(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(LoraConfig):
        """With a field that did not exist."""

        new_setting: int = 7

    monkeypatch.setitem(METHOD_CONFIGS, "lora", Later)
    path = golden / "adapters" / "lora"
    adapter = read_adapter(path)
    assert adapter.digest == json.loads((path / "lamina.json").read_text())["digest"]
    assert adapter.config.model_dump()["new_setting"] == 7


@pytest.fixture
def adapter(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden / "adapters" / "lora", tmp_path / "adapter"))


def with_digest(path: Path, change: Any) -> None:
    """Writes an adapter as a version would whose settings are these."""

    def both(about: dict[str, Any]) -> None:
        change(about)
        about["digest"] = adapter_digest(about["method"], read_tensors(path))

    edit(path / "lamina.json", both)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda about: about.update(format=FORMAT + 1),
            f"its format is {FORMAT + 1}, and this version reads formats up to {FORMAT}",
        ),
        (lambda about: about["method"].update(new_setting=1), r"settings are not known here \(new_setting\)"),
        (lambda about: about["method"].update(bias="some"), r"settings are not known here \(bias\)"),
        (lambda about: about["method"].update(type="novel"), "its method 'novel' is not known here"),
        (lambda about: about["lock"].update(new_digest="sha256:0"), "its lock has new_digest, not known here"),
    ],
)
@pytest.mark.parametrize("version", ["9.9.0", __version__])
def test_what_a_newer_version_wrote_names_both_versions_and_the_fix(
    change: Any, words: str, version: str, adapter: Path
) -> None:
    def newer(about: dict[str, Any]) -> None:
        about["lock"]["lamina"] = version
        change(about)

    with_digest(adapter, newer)
    with pytest.raises(NewerVersionError, match=words) as raised:
        read_adapter(adapter)
    message = str(raised.value)
    assert f"lamina {version}" in message
    assert __version__ in message
    assert "Fix: pip install --upgrade " in message
    assert ("a newer version than this one" in message) == (version == "9.9.0")
    assert raised.value.details()["written_by"] == version


def test_keys_beside_those_that_are_read_may_be_there(adapter: Path) -> None:
    edit(adapter / "lamina.json", lambda about: about.update(made_on="a Tuesday"))
    assert read_adapter(adapter).lock is not None


@pytest.mark.parametrize("found", [None, "1", 0, -1, True, 1.0])
def test_no_format_at_all_is_a_damaged_file(found: object, adapter: Path) -> None:
    edit(adapter / "lamina.json", lambda about: about.update(format=found))
    with pytest.raises(AdapterError, match=r"is not readable.*Fix: copy the adapter again"):
        read_adapter(adapter)


def test_settings_changed_by_hand_are_still_found(adapter: Path) -> None:
    for change in ({"r": 4}, {"new_setting": 1}, {"lora_alpha": 4.5}):
        edit(adapter / "lamina.json", lambda about, change=change: about["method"].update(change))
        with pytest.raises(AdapterError, match="were changed after training"):
            read_adapter(adapter)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": checkpoint.FORMAT + 1}, f"its format is {checkpoint.FORMAT + 1}"),
        ({"state": {"step": 5, "novelty": 1}}, "its state has novelty, not known here"),
    ],
)
def test_a_checkpoint_of_a_newer_version(
    change: dict[str, Any], words: str, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(golden, tmp_path / "golden")
    monkeypatch.chdir(tmp_path / "golden")
    state = Path("runs/unfinished/checkpoints/step-00000005/state.json")
    edit(state, lambda about: about.update({"lamina": "9.9.0", **change}))
    with pytest.raises(NewerVersionError, match=words):
        lamina.train("runs/unfinished/config.yaml", resume=True)
