"""A run knows its own folder, and finds what it was started with: moved, renamed, or looked at from somewhere else."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import lamina
from lamina.adapters.load import load
from lamina.errors import AdapterError, ConfigError, DataError, Interrupted, NewerVersionError, RunError
from lamina.runs import Run
from lamina.runs.events import Event, Note
from tests.support.models_zoo import CHATML, build_model
from tests.support.training import notes_into, settings, write_rows

STEPS = {"max_steps": 4, "eval_steps": 2, "save_steps": 2}


class PulledPlug(BaseException):
    """Stands for a death of the process: nothing in lamina may catch it."""


def values(name: str = "runs/mine", **changes: Any) -> dict[str, Any]:
    """A run whose places are all relative."""
    made = settings(Path(), Path("base"), name, train=STEPS)
    for section, change in changes.items():
        made[section] = {**made[section], **change} if isinstance(change, dict) else change
    return made


def digest(run: Run) -> str:
    assert run.summary is not None
    return run.summary.adapter_digest


def cut(given: Any, **more: Any) -> None:
    def on_event(event: Event) -> None:
        if event.kind == "step" and event.step == 3:
            raise PulledPlug

    with pytest.raises(PulledPlug):
        lamina.train(given, on_event, **more)


@pytest.fixture(scope="module")
def pristine(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a base, rows, a run that is finished and one that was cut after its first checkpoint."""
    project = tmp_path_factory.mktemp("pristine") / "project"
    shutil.copytree(model_folder, project / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        lamina.train(values("runs/whole"))
        Path("run.yaml").write_text(yaml.safe_dump(values()))
        cut("run.yaml")
    return project


@pytest.fixture
def project(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project, moved to where it was not when its runs were started; the old place is gone for it."""
    copied = Path(shutil.copytree(pristine, tmp_path / "project"))
    for manifest in copied.glob("runs/*/manifest.json"):
        manifest.write_text(manifest.read_text().replace(str(pristine), str(tmp_path / "project")))
    for config in copied.glob("runs/*/adapter/adapter_config.json"):
        config.write_text(config.read_text().replace(str(pristine), str(tmp_path / "project")))
    monkeypatch.chdir(copied)
    return copied


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


def whole(project: Path) -> str:
    return digest(Run(project / "runs" / "whole"))


def resumed(config: str | Path) -> Run:
    notes: list[str] = []
    run = lamina.train(config, notes_into(notes), resume=True)
    assert "Resumed from step 2 of 4." in notes
    return run


def test_a_moved_run_goes_on_where_it_is(project: Path) -> None:
    Path("disk2").mkdir()
    shutil.move("runs/mine", "disk2/mine")
    run = resumed("disk2/mine/config.yaml")
    assert run.path == Path("disk2/mine")
    assert digest(run) == whole(project)
    assert not Path("runs/mine").exists()
    assert run.summary is not None
    assert run.summary.adapter == "disk2/mine/adapter"


def test_a_run_goes_on_from_another_working_directory(
    project: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(elsewhere)
    for config in (project / "runs/mine/config.yaml", "../project/runs/mine/config.yaml"):
        before = Path(shutil.copytree(project / "runs/mine", elsewhere / "kept"))
        assert digest(resumed(config)) == whole(project)
        shutil.rmtree(project / "runs/mine")
        shutil.move(before, project / "runs/mine")
    assert list(elsewhere.iterdir()) == []


def test_a_project_that_moved_as_a_whole_goes_on(
    project: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(project, elsewhere / "moved")
    monkeypatch.chdir(elsewhere)
    run = resumed("moved/runs/mine/config.yaml")
    assert digest(run) == whole(elsewhere / "moved")
    assert run.manifest.directory == str(elsewhere / "moved")
    assert lamina.evaluate(run.path).rows > 0


def test_the_command_that_an_interrupted_run_prints_works_from_anywhere(
    project: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(event: Event) -> None:
        if event.kind == "step" and event.step == 3:
            raise BrokenPipeError(32, "closed")

    with pytest.raises(Interrupted) as stopped:
        lamina.train("runs/mine/config.yaml", closed, resume=True)
    command = stopped.value.details()["resume"]
    assert str(command) in str(stopped.value)
    program, verb, config, option = shlex.split(str(command))
    assert (program, verb, option) == ("lamina", "train", "--resume")
    monkeypatch.chdir(elsewhere)
    assert digest(lamina.train(config, resume=True)) == whole(project)


def test_base_and_data_that_moved_are_accepted_if_they_are_the_same(
    project: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move("base", elsewhere / "renamed")
    shutil.move("rows.jsonl", elsewhere / "other-rows.jsonl")
    with pytest.raises(ConfigError, match="model: 'base' is not an alias"):
        lamina.train("runs/mine/config.yaml", resume=True)
    monkeypatch.chdir(elsewhere)
    own = project / "runs/mine/config.yaml"
    run = lamina.train(lamina.load_config(own, ["model=renamed", "data.train=other-rows.jsonl"]), resume=True)
    assert digest(run) == whole(project)
    # It knows them from now on, wherever it is asked.
    monkeypatch.chdir(project)
    assert run.config.model == str(elsewhere / "renamed")
    assert lamina.evaluate("runs/mine").rows > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model=other", r"the base's weights in other \(sha256:\w+ then, sha256:\w+ now\)"),
        ("data.train=other.jsonl", r"data file other\.jsonl \(\w+, 24 rows then, \w+, 30 rows now\)"),
    ],
)
def test_another_base_or_other_data_are_named(change: str, words: str, project: Path) -> None:
    shutil.copytree("base", "other")
    other = build_model("llama", vocab_size=259)
    other.model.embed_tokens.weight.data.mul_(1.01)
    other.save_pretrained("other")
    write_rows(Path("other.jsonl"), 30)
    before = Path("runs/mine/config.yaml").read_text()
    with pytest.raises(RunError, match=f"changed since it was started: {words}") as raised:
        lamina.train(lamina.load_config("runs/mine/config.yaml", [change]), resume=True)
    assert "the base's config" not in str(raised.value)
    assert Path("runs/mine/config.yaml").read_text() == before
    assert digest(resumed("runs/mine/config.yaml")) == whole(project)


def test_a_template_file_is_found_and_compared_too(
    project: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("t.jinja").write_text(CHATML)
    cut(values("runs/file", data={"chat_template": "t.jinja"}))
    monkeypatch.chdir(elsewhere)
    (project / "t.jinja").write_text(CHATML.replace("assistant", "answer"))
    with pytest.raises(RunError, match=r"the chat template /.*/t\.jinja \(sha256"):
        lamina.train(project / "runs/file/config.yaml", resume=True)
    (project / "t.jinja").write_text(CHATML)
    assert digest(resumed(project / "runs/file/config.yaml")) == whole(project)


@pytest.mark.parametrize("same_package", [True, False])
def test_another_tokenizer_is_told_from_another_version_of_the_package(same_package: bool, project: Path) -> None:
    run = Run(Path("runs/mine"))
    assert run.manifest.versions is not None
    versions = run.manifest.versions | ({} if same_package else {"tokenizers": "0.1"})
    run.record(tokenizer="sha256:0", versions=versions)
    if same_package:
        with pytest.raises(RunError, match=r"the tokenizer \(sha256:0 then"):
            lamina.train("runs/mine/config.yaml", resume=True)
        return
    assert digest(resumed("runs/mine/config.yaml")) == whole(project)


def test_other_settings_are_still_refused_and_shown_as_they_are(project: Path) -> None:
    changes = ["train.learning_rate=0.1", "data.eval=rows.jsonl"]
    with pytest.raises(RunError, match=r"data\.eval: 0\.2 -> 'rows\.jsonl'; train\.learning_rate: 0\.005 -> 0\.1"):
        lamina.train(lamina.load_config("runs/mine/config.yaml", changes), resume=True)


@pytest.mark.parametrize("output_dir", ["runs/nothing", "runs", "base"])
def test_resume_that_finds_nothing_says_where_it_looked_and_makes_nothing(output_dir: str, project: Path) -> None:
    before = sorted(project.rglob("*"))
    looked = f"resume: finds no run to go on with in {project / output_dir}"
    with pytest.raises(ConfigError, match=looked) as raised:
        lamina.train(lamina.load_config("run.yaml", [f"output_dir={output_dir}"]), resume=True)
    assert raised.value.exit_code == 2
    assert sorted(project.rglob("*")) == before


def test_a_runs_own_configuration_is_of_its_own_folder_without_resume_too(project: Path) -> None:
    """Else a moved run's would begin anew in the old place."""
    shutil.move("runs/mine", "moved")
    with pytest.raises(RunError, match=r"moved: already holds a run \(killed\)\. Fix: pass resume=True"):
        lamina.train("moved/config.yaml")
    assert lamina.load_config("moved/config.yaml", ["output_dir=runs/other"]).output_dir == "runs/other"


def test_a_run_that_never_began_may_be_started_again_and_taken_up(project: Path) -> None:
    Path("broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\nbroken\n')
    broken = values("runs/new", data={"train": "broken.jsonl"})
    with pytest.raises(DataError, match="broken"):
        lamina.train(broken)
    assert Run(Path("runs/new")).status == "failed"
    for resume in (False, True):
        with pytest.raises(DataError, match="broken"):
            lamina.train(broken, resume=resume)
    assert digest(lamina.train(values("runs/new"))) == whole(project)


def test_a_configuration_that_is_no_runs_is_never_written_over(project: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine" / "config.yaml"
    own.parent.mkdir()
    own.write_text(yaml.safe_dump(values(str(own.parent))))
    before = own.read_text()
    with pytest.raises(RunError, match="a folder with other files in it and no run"):
        lamina.train(own)
    assert own.read_text() == before
    assert sorted(path.name for path in own.parent.iterdir()) == ["config.yaml"]


def test_a_second_start_into_the_same_folder_changes_nothing_while_the_first_loads(project: Path) -> None:
    seen: list[str] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Note) and event.message.startswith("Loading"):
            before = {path.name: path.read_bytes() for path in Path("runs/new").iterdir()}
            for resume in (False, True):
                with pytest.raises(RunError, match="another process is training into this run"):
                    lamina.train(values("runs/new", train={"max_steps": 1}), resume=resume)
            assert {path.name: path.read_bytes() for path in Path("runs/new").iterdir()} == before
            seen.append(event.message)

    run = lamina.train(values("runs/new"), on_event)
    assert seen
    assert run.config.train.max_steps == 4


def test_an_adapter_finds_its_base_from_anywhere(
    project: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (project, elsewhere):
        monkeypatch.chdir(place)
        assert load(project / "runs/whole").certify().passed
        # Copied alone it has the path in full, in peft's own file.
        alone = shutil.copytree(project / "runs/whole/adapter", place / "alone")
        assert load(alone).certify().passed
    shutil.move(project, elsewhere / "moved")
    assert load("moved/runs/whole").certify().passed
    assert lamina.merge("moved/runs/whole", "merged").certificate.passed


def test_of_two_bases_with_the_name_the_locked_one_is_taken(
    project: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = shutil.copytree("runs/whole/adapter", elsewhere / "alone")
    other = build_model("llama", vocab_size=259)
    other.model.embed_tokens.weight.data.mul_(1.01)
    shutil.copytree("base", elsewhere / "base")
    other.save_pretrained(elsewhere / "base")
    monkeypatch.chdir(elsewhere)
    assert load(alone).certify().passed
    shutil.move(elsewhere / "base", elsewhere / "kept")
    shutil.move(project / "base", elsewhere / "base")
    shutil.move(elsewhere / "kept", project / "base")
    assert load(alone).certify().passed


def test_a_base_that_is_not_where_it_was(project: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.move("base", elsewhere / "renamed")
    absolute = json.loads(Path("runs/whole/adapter/lamina.json").read_text())
    for wanted in ("base", str(project / "base")):
        absolute["lock"]["base"] = wanted
        Path("runs/whole/adapter/lamina.json").write_text(json.dumps(absolute))
        with pytest.raises(AdapterError) as raised:
            load("runs/whole")
        message = str(raised.value)
        assert message.startswith(f"runs/whole/adapter: was trained on the base {wanted!r}")
        assert str(project) in message
        assert "Fix: say where it is with --model" in message
    monkeypatch.chdir(elsewhere)
    assert load(project / "runs/whole", model="renamed").certify().passed


def test_a_run_without_an_adapter_says_how_it_ended_and_how_to_go_on(project: Path) -> None:
    with pytest.raises(AdapterError, match=r"no adapter yet \(killed\)\. Fix: finish it with: lamina train /.*config"):
        load("runs/mine")
    assert Run(Path("runs/mine")).manifest.status == "killed"


@pytest.mark.parametrize(
    ("change", "words"), [({"format": 2}, "its format is 2"), ({"lamina": "9.9.0"}, "new_setting: unknown key")]
)
def test_a_run_of_a_newer_version(change: dict[str, Any], words: str, project: Path) -> None:
    run = Run(Path("runs/mine"))
    run.record(**change)
    if "lamina" in change:
        run.config_path.write_text(run.config_path.read_text() + "new_setting: 1\n")
    with pytest.raises(NewerVersionError, match=words):
        lamina.train("runs/mine/config.yaml", resume=True)


def test_a_damaged_manifest_is_no_new_run(project: Path) -> None:
    Path("runs/mine/manifest.json").write_text("{")
    before = Path("runs/mine/config.yaml").read_text()
    for resume in (False, True):
        with pytest.raises(RunError, match=r"manifest\.json: is not readable"):
            lamina.train("run.yaml", resume=resume)
    assert Path("runs/mine/config.yaml").read_text() == before
