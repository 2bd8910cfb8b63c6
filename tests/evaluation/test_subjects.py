"""Several subjects on the same rows: the table, its pairs, what is stored, and what may go wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import lamina
from lamina.engine.engine import Engine
from lamina.errors import ConfigError, DataError, LaminaError
from lamina.evaluation import hosts
from lamina.evaluation.gather import Benchmarks, check_names
from lamina.evaluation.later import pair_stored
from lamina.evaluation.store import EvaluationError, StoredEvaluation, read_evaluation
from lamina.evaluation.subjects import evaluate_subjects, prepare
from tests.support.evaluation import Pair, stored_row, write_jsonl, write_task


@pytest.fixture(scope="module")
def stored(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> StoredEvaluation:
    out = tmp_path_factory.mktemp("stored") / "evaluation"
    return evaluate_subjects([pair.strong, pair.weak], [pair.task], few_shot=2, out=out)


def test_every_subject_and_the_bare_base_answer_the_same_rows(stored: StoredEvaluation, pair: Pair) -> None:
    names = [subject["subject"] for subject in stored.subjects]
    base = pair.model.name
    assert names == [str(pair.strong), str(pair.weak), base, f"{base} + 2 examples"]
    assert all(set(row["answers"]) == set(names) for row in stored.rows["task"])
    strong, weak = (stored.subjects[n]["tasks"]["task"]["exact_match"] for n in (0, 1))
    assert strong["value"] == 54 / 60
    assert strong["low"] < strong["value"] < strong["high"]
    assert weak["value"] < 0.5
    assert len({subject["digest"] for subject in stored.subjects}) == 4
    assert stored.subjects[0]["certificate"] is True


def test_pairs_say_who_is_better(stored: StoredEvaluation, pair: Pair) -> None:
    found = {(p["a"], p["b"], p["metric"]): p for p in stored.result["pairs"]}
    first = found[str(pair.strong), str(pair.weak), "exact_match"]
    assert first["verdict"] == "better"
    assert first["difference"] == pytest.approx((first["wins"] - first["losses"]) / 60)
    assert len({(p["a"], p["b"]) for p in stored.result["pairs"] if p["task"] == "task"}) == 6


def test_examples_are_drawn_by_seed_from_training_rows(stored: StoredEvaluation, pair: Pair) -> None:
    shown = stored.subjects[3]["examples"]["task"]
    trained = {json.loads(line)["prompt"] for line in (pair.folder / "rows.jsonl").read_text().splitlines()}
    assert len(shown) == 2
    assert {text for (text,) in shown} <= trained
    assert all(not subject["examples"] for subject in stored.subjects[:3])


def test_forgetting_is_measured_row_by_row(stored: StoredEvaluation, pair: Pair) -> None:
    strong, weak, base, _ = (subject["tasks"].get("general", {}) for subject in stored.subjects)
    assert strong["general_kl"]["value"] > weak["general_kl"]["value"] > 0
    assert "general_kl" not in base
    assert strong["general_loss"]["rows"] == weak["general_loss"]["rows"] == base["general_loss"]["rows"] >= 60
    assert weak["general_same"]["rows"] == 30
    values = stored.values("general", str(pair.weak), "general_kl")
    assert min(values.values()) >= 0


def test_the_page_says_the_verdict_first_and_shows_lost_rows(stored: StoredEvaluation, pair: Pair) -> None:
    page = (stored.path / "page.html").read_text()
    order = [page.index(text) for text in ("is better than", "Figures", "Lost:", "Slices", "Forgetting", "Cost")]
    assert order == sorted(order)
    lost = [row for row in stored.rows["task"] if row["scores"][str(pair.strong)]["exact_match"] == 0]
    assert len(lost) == 6
    assert all(row["question"] in page for row in lost)
    assert "http" not in page.replace("http://HOST", ""), "it needs nothing from elsewhere"


def test_what_was_answered_is_not_computed_again(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    submit, logits = Engine.submit, Engine.logits

    def counted_submit(self: Engine, request: Any, deliver: Any) -> Any:
        asked.append(request)
        return submit(self, request, deliver)

    def counted_logits(self: Engine, *given: Any) -> Any:
        asked.append(given)
        return logits(self, *given)

    monkeypatch.setattr(Engine, "submit", counted_submit)
    monkeypatch.setattr(Engine, "logits", counted_logits)
    first = evaluate_subjects([pair.strong], [pair.task], out=tmp_path / "a")
    asked.clear()
    second = evaluate_subjects([pair.strong], [pair.task], out=tmp_path / "b")
    assert not asked
    assert first.rows == second.rows
    longer = write_task(pair.folder / "longer.yaml", generation={"max_tokens": 7})
    evaluate_subjects([pair.strong], [longer], forgetting=False, with_base=False, out=tmp_path / "c")
    assert len(asked) == 60, "other settings are another question"


def test_one_base_is_loaded_once_for_all_its_adapters(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Engine] = []

    def open_engine(*given: Any, **more: Any) -> Engine:
        opened.append(Engine(*given, **more))
        return opened[-1]

    monkeypatch.setattr(hosts, "Engine", open_engine)
    evaluate_subjects([pair.strong, pair.weak, pair.model], [pair.task], forgetting=False, out=tmp_path / "a")
    assert len(opened) == 1


def test_against_compares_all_with_one(pair: Pair, tmp_path: Path) -> None:
    found = evaluate_subjects([pair.strong], [pair.task], against=pair.weak, forgetting=False, out=tmp_path / "a")
    assert found.result["against"] == str(pair.weak)
    assert {(p["a"], p["b"]) for p in found.result["pairs"]} == {
        (str(pair.strong), str(pair.weak)),
        (pair.model.name, str(pair.weak)),
    }
    again = evaluate_subjects([pair.strong], [pair.task], against=pair.strong, forgetting=False, out=tmp_path / "b")
    assert {(p["a"], p["b"]) for p in again.result["pairs"]} == {(pair.model.name, str(pair.strong))}


def test_against_base_is_the_one_beside_the_adapters(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = write_task(pair.folder / "four.yaml", limit=4)

    def evaluated(*subjects: Path | str, **more: Any) -> list[tuple[str, str]]:
        found = evaluate_subjects(subjects, [task], against="base", forgetting=False, out=tmp_path / "e", **more)
        return [(pair["a"], pair["b"]) for pair in found.result["pairs"] if pair["task"] == "four"]

    base, both = pair.model.name, [(str(pair.strong), pair.model.name), (str(pair.weak), pair.model.name)]
    assert evaluated(pair.strong, pair.weak) == both
    assert evaluated(pair.strong, few_shot=2, with_base=False) == [both[0], (f"{base} + 2 examples", base)]
    assert evaluated(pair.model, pair.strong) == [(str(pair.strong), str(pair.model))]
    other = shutil.copytree(pair.model, tmp_path / "other")
    strays = shutil.copytree(pair.strong, tmp_path / "strays")
    about = json.loads((strays / "adapter" / "lamina.json").read_text())
    (strays / "adapter" / "lamina.json").write_text(
        json.dumps(about).replace(json.dumps(str(pair.model)), json.dumps(str(other)))
    )
    with pytest.raises(ConfigError, match=rf"theirs are {base}, other.*the base itself by its path"):
        evaluated(pair.strong, strays)
    for none in ([pair.model], [pair.model, other], ["http://127.0.0.1:1/v1#x"]):
        with pytest.raises(ConfigError, match="bare base of the adapters that are named, and there are none"):
            evaluated(*none)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pair.model, "base")
    assert evaluated(pair.weak)[0] == (str(pair.weak), "base"), "a folder of that name is the folder"


def test_general_text_that_nothing_measures_is_told(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text\n")
    for subject, forgetting in ((pair.strong, False), ("http://127.0.0.1:1/v1#x", True)):
        with pytest.raises(ConfigError, match="--general: has no effect"):
            evaluate_subjects([subject], [pair.task], general=tmp_path / "text.txt", forgetting=forgetting)


def test_a_base_that_moved_is_named_for_all_subjects(pair: Pair, tmp_path: Path) -> None:
    """`model` is where the base is now, of the one that others are compared with too."""
    shutil.copytree(pair.model, tmp_path / "moved")
    for name in ("strong", "weak"):
        shutil.copytree(getattr(pair, name) / "adapter", tmp_path / name)
        about = json.loads((tmp_path / name / "lamina.json").read_text())
        about["lock"]["base"] = str(tmp_path / "gone")
        (tmp_path / name / "lamina.json").write_text(json.dumps(about))
    found = evaluate_subjects(
        [tmp_path / "strong"],
        [write_task(pair.folder / "two.yaml", limit=2)],
        against=tmp_path / "weak",
        model=tmp_path / "moved",
        forgetting=False,
        out=tmp_path / "a",
    )
    assert found.result["against"] == str(tmp_path / "weak")


def test_an_adapter_that_gives_no_numbers_names_the_row(pair: Pair, tmp_path: Path) -> None:
    shutil.copytree(pair.strong / "adapter", tmp_path / "broken")
    (tmp_path / "broken" / "lamina.json").unlink()  # as peft's, without probes that would tell
    file = tmp_path / "broken" / "adapter_model.safetensors"
    save_file({name: tensor * float("nan") for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(DataError, match=r"asked\.jsonl, row \d+: .*logits are not finite"):
        evaluate_subjects([tmp_path / "broken"], [pair.task], model=pair.model, out=tmp_path / "a")


def test_a_number_that_json_does_not_have_is_no_label(pair: Pair, tmp_path: Path) -> None:
    rows = [{"prompt": f"ask {n}", "completion": "red", "price": float("nan") if n else 1.5} for n in range(3)]
    task = write_task(tmp_path / "prices.yaml", str(write_jsonl(tmp_path / "prices.jsonl", rows)))
    found = evaluate_subjects([pair.model], [task], forgetting=False, out=tmp_path / "a")
    assert [row["columns"].get("price") for row in found.rows["prices"]] == [1.5, None, None]


def test_rows_that_training_saw_do_not_count_unless_insisted(pair: Pair, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (pair.folder / "asked.jsonl").read_text().splitlines()]
    trained = [json.loads(line) for line in (pair.folder / "rows.jsonl").read_text().splitlines()]
    data = write_jsonl(tmp_path / "mixed.jsonl", [*rows[:10], *trained])
    task = write_task(tmp_path / "mixed.yaml", str(data))
    found = evaluate_subjects([pair.strong], [task], forgetting=False, out=tmp_path / "a")
    counts = found.result["leakage"][str(pair.strong)]["mixed"]
    kept = found.subjects[0]["tasks"]["mixed"]["exact_match"]["rows"]
    assert counts["exact"] == counts["training_rows"] < len(trained), "rows that were held out are no leak"
    assert kept == 10 + len(trained) - counts["exact"]
    assert sum("exact" in row["leaked"].values() for row in found.rows["mixed"]) == counts["exact"]
    page = (found.path / "page.html").read_text()
    assert "the training of" in page
    assert f"<td></td><td>{kept - 10}</td>" in page, "slices are of the rows that count"
    every = evaluate_subjects([pair.strong], [task], forgetting=False, allow_leakage=True, out=tmp_path / "b")
    assert every.subjects[0]["tasks"]["mixed"]["exact_match"]["rows"] == 10 + len(trained)


def test_a_task_that_training_saw_as_a_whole_is_refused(pair: Pair, tmp_path: Path) -> None:
    held_out = {row["question"] for row in _seen(pair, tmp_path) if not row["leaked"]}
    trained = [json.loads(line) for line in (pair.folder / "rows.jsonl").read_text().splitlines()]
    data = write_jsonl(tmp_path / "seen.jsonl", [row for row in trained if row["prompt"] not in held_out])
    task = write_task(tmp_path / "seen.yaml", str(data))
    with pytest.raises(DataError, match="training saw the prompt of each"):
        evaluate_subjects([pair.strong], [task], forgetting=False, out=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def _seen(pair: Pair, folder: Path) -> list[dict[str, object]]:
    task = write_task(folder / "all.yaml", str(pair.folder / "rows.jsonl"))
    return evaluate_subjects([pair.strong], [task], forgetting=False, out=folder / "all").rows["all"]


def test_a_moved_run_whose_data_is_gone_says_so(pair: Pair, tmp_path: Path) -> None:
    copy = tmp_path / "adapter"
    shutil.copytree(pair.strong / "adapter", copy)
    found = evaluate_subjects([copy], [pair.task], forgetting=False, out=tmp_path / "a")
    assert "not in its run" in found.result["leakage"][str(copy)]["task"]["unknown"]
    assert found.subjects[0]["tasks"]["task"]["exact_match"]["value"] == 54 / 60, "the same adapter under another name"


def test_likelihoods_and_choices_are_scored(pair: Pair, tmp_path: Path) -> None:
    rows = [{"q": f"which {n}", "options": ["red", "blue", "green"], "answer": "blue"} for n in range(6)]
    data = write_jsonl(tmp_path / "mc.jsonl", rows)
    prompt = {"user": "{{ q }}?", "reference": "{{ answer }}", "choices": "options"}
    scorers = ["multiple_choice", {"perplexity": {"log": True}}]
    task = write_task(tmp_path / "mc.yaml", str(data), prompt=prompt, scorers=scorers)
    found = evaluate_subjects([pair.strong], [task], forgetting=False, out=tmp_path / "a")
    metrics = found.subjects[0]["tasks"]["mc"]
    assert set(metrics) == {"multiple_choice", "perplexity"}
    assert metrics["perplexity"]["value"] > 0
    assert not found.rows["mc"][0]["answers"], "nothing is generated where no scorer reads it"


def test_a_run_is_not_replaced_by_its_evaluation(pair: Pair, tmp_path: Path) -> None:
    run = shutil.copytree(pair.strong, tmp_path / "run")
    with pytest.raises(ConfigError, match="would be lost"):
        evaluate_subjects([run], [pair.task], forgetting=False, out=run)
    assert (run / "config.yaml").is_file()


@pytest.mark.parametrize("name", ["nope", "../nope/..", "a/b/c", "nobody/nothing", ""])
def test_unknown_subjects_are_named(pair: Pair, tmp_path: Path, name: str) -> None:
    with pytest.raises(LaminaError) as caught:
        evaluate_subjects([name], [pair.task], out=tmp_path / "a")
    assert name in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_a_task_without_rows_and_without_scorers(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl"):
        evaluate_subjects([pair.strong], [write_task(tmp_path / "t.yaml", "empty.jsonl")])
    write_jsonl(tmp_path / "odd.jsonl", [{"prompt": "a", "completion": " "}] * 3)
    with pytest.raises(DataError, match="no rows that can be asked"):
        evaluate_subjects([pair.strong], [write_task(tmp_path / "t.yaml", "odd.jsonl")])
    with pytest.raises(ConfigError, match="is not one of") as caught:
        evaluate_subjects([pair.strong], [write_task(pair.folder / "typo.yaml", scorers=["exact_mach"])])
    assert "exact_match" in str(caught.value)
    with pytest.raises(DataError, match="has no column 'grup'"):
        evaluate_subjects([pair.strong], [write_task(pair.folder / "typo.yaml", cluster_by="grup")])


def test_a_scorer_that_raises_names_row_and_scorer_and_keeps_the_answers(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def mine(answer, expected, row):\n    return 1 / (row['group'] - 3)\n")
    shutil.copy(pair.folder / "asked.jsonl", tmp_path / "asked.jsonl")
    task = write_task(tmp_path / "own.yaml", scorers=["own.py:mine"])
    with pytest.raises(DataError, match=r"row 10.*mine.*ZeroDivisionError"):
        evaluate_subjects([pair.strong], [task], forgetting=False, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_clusters_widen_what_rows_of_one_group_say(pair: Pair, tmp_path: Path) -> None:
    task = write_task(pair.folder / "grouped.yaml", cluster_by="group")
    found = evaluate_subjects([pair.strong], [task], against=pair.weak, forgetting=False, out=tmp_path / "a")
    assert len({row["cluster"] for row in found.rows["grouped"]}) == 20
    plain = evaluate_subjects([pair.strong], [pair.task], against=pair.weak, forgetting=False, out=tmp_path / "b")
    assert found.result["pairs"][0]["p"] > plain.result["pairs"][0]["p"]


def test_an_evaluation_is_read_again(stored: StoredEvaluation) -> None:
    again = read_evaluation(stored.path)
    assert (again.digest, again.result, again.rows) == (stored.digest, stored.result, stored.rows)
    assert lamina.evaluate_subjects is evaluate_subjects


def test_evaluations_of_other_days_are_paired_by_their_rows(pair: Pair, tmp_path: Path) -> None:
    fewer = write_task(pair.folder / "task-fewer.yaml", name="task", limit=40)
    one = evaluate_subjects([pair.strong], [pair.task], out=tmp_path / "one")
    two = evaluate_subjects([pair.weak], [fewer], out=tmp_path / "two")
    found = pair_stored([one, two])
    together = evaluate_subjects([pair.strong], [fewer], against=pair.weak, with_base=False, out=tmp_path / "both")
    for name in ("difference", "low", "high", "p", "wins", "losses", "ties", "verdict"):
        of_tasks = [next(p for p in each if p["task"] == "task") for each in (found["pairs"], together.result["pairs"])]
        assert of_tasks[0][name] == of_tasks[1][name], name
    assert next(p["rows"] for p in found["pairs"] if p["metric"] == "general_loss") >= 60
    other = write_task(pair.folder / "task-other.yaml", name="task", scorers=["contains"])
    three = evaluate_subjects([pair.weak], [other], forgetting=False, out=tmp_path / "three")
    with pytest.raises(EvaluationError, match="no row in common"):
        pair_stored([one, three])


def judged_by(folder: Path, name: str, grade: float, judge: str) -> StoredEvaluation:
    """An evaluation of a subject whose rows a judge graded."""
    rows = [stored_row(n, {name: {"judge": grade + n % 2, "right": float(n % 2)}}) for n in range(12)]
    task = {"name": "t", "scorers": {"right": "sha256:1"}, "settings": {}}
    metrics = [{"task": "t", "name": metric, "larger_is_better": True} for metric in ("judge", "right")]
    result = {"subjects": [{"subject": name}], "tasks": [task], "metrics": metrics}
    result["judged"] = [{"task": "t", "subject": name, "digest": judge}]
    return StoredEvaluation(folder / name, f"sha256:{name}", result, {"t": rows})


def test_grades_of_different_judges_are_not_compared(tmp_path: Path) -> None:
    one = judged_by(tmp_path, "one", 1.0, "sha256:strict")
    same, other = (judged_by(tmp_path, name, 4.0, f"sha256:{name}") for name in ("strict", "mild"))
    assert [pair["metric"] for pair in pair_stored([one, same])["pairs"]] == ["judge", "right"]
    assert [pair["metric"] for pair in pair_stored([one, other])["pairs"]] == ["right"]


def test_a_benchmark_with_other_examples_in_its_prompts_is_another(tmp_path: Path) -> None:
    one, other = (judged_by(tmp_path, name, 1.0, "sha256:judge") for name in ("one", "other"))
    other.result["tasks"][0]["settings"] = {"shots": 5}
    with pytest.raises(EvaluationError, match="no row in common"):
        pair_stored([one, other])


def test_tasks_of_lm_eval_stand_beside_a_task_of_ones_own(pair: Pair, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    import datasets

    from tests.support.lm_eval_tasks import TASKS, write_tasks

    datasets.config.HF_DATASETS_CACHE = tmp_path / "datasets"
    folder = write_tasks(tmp_path / "tasks", rows=6)
    names = tuple(TASKS)[:2]
    wanted = Benchmarks(names, include_path=str(folder), shots=0)
    found = evaluate_subjects(
        [pair.strong], [pair.task], benchmarks=wanted, against=pair.weak, forgetting=False, out=tmp_path / "e"
    )
    for subject in found.subjects:
        assert set(subject["tasks"]) == {"task", *names}
    rows = [row for name in names for row in found.rows[name]]
    assert len(rows) == 12
    assert all(len(row["scores"]) == 3 for row in rows)
    assert {pair["task"] for pair in found.result["pairs"]} == {"task", *names}
    assert "Cost" in (found.path / "page.html").read_text()


def test_a_task_of_lm_eval_does_not_take_the_place_of_ones_own(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="also the name of another task"):
        evaluate_subjects([pair.strong], [pair.task], benchmarks=Benchmarks(("task",)), out=tmp_path / "e")
    arc = write_task(pair.folder / "arc.yaml")
    (prepared,) = prepare([arc])
    with pytest.raises(ConfigError, match="'arc' is also"):
        check_names([prepared], ["hellaswag", "arc"])
