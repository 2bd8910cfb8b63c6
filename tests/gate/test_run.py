"""The gate as a whole: it promotes, holds and asks for rows; and planted sabotage is caught before promotion."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lamina
from lamina.adapters.adapter import adapter_digest, read_adapter
from lamina.errors import AdapterError, BaseMismatchError, CertificateError, ConfigError, EvidenceError, LaminaError
from lamina.evaluation.store import EvaluationError
from lamina.evaluation.subjects import evaluate_subjects
from lamina.gate.run import GateResult, run_gate
from lamina.registry.evidence import Side, read_record
from lamina.registry.registry import Registry
from tests.support.evaluation import Pair, write_jsonl, write_task
from tests.support.models_zoo import build_model, build_tokenizer
from tests.support.training import WORDS, settings

SMALLEST = "better: [{task: task.yaml, metric: exact_match}]\n"


def apply(
    pair: Pair, out: Path, candidate: Path | str, against: Path | str, text: str = SMALLEST, **more: Any
) -> GateResult:
    return run_gate(candidate, against, pair.gate(text), out=out / "evaluation", **more)


def test_the_better_one_is_promoted_and_the_worse_one_held(pair: Pair, tmp_path: Path) -> None:
    text = SMALLEST + "certificate: required\nleakage: none\nlimits: {latency_seconds: 60, adapter_mb: 10}\n"
    promoted = apply(pair, tmp_path / "a", pair.strong, pair.weak, text)
    assert promoted.verdict == "promote"
    assert all(check.passed for check in promoted.checks)
    assert len(promoted.checks) == 5
    held = apply(pair, tmp_path / "b", pair.weak, pair.strong)
    assert held.verdict == "hold"


def test_few_rows_ask_for_more(pair: Pair, tmp_path: Path) -> None:
    few = write_task(pair.folder / "few.yaml", limit=12)
    found = apply(pair, tmp_path, pair.strong, pair.weak, f"better: [{{task: {few.name}, metric: exact_match}}]\n")
    assert found.verdict == "not_enough_rows"
    assert found.rows_needed is not None and found.rows_needed > 12


def test_the_record_names_just_this_pair_and_its_rows(pair: Pair, tmp_path: Path) -> None:
    found = apply(pair, tmp_path, pair.strong, pair.weak)
    record = read_record(found.path)
    strong, weak = (read_adapter(run / "adapter") for run in (pair.strong, pair.weak))
    assert (record.candidate.adapter_digest, record.against.adapter_digest) == (strong.digest, weak.digest)
    assert strong.lock is not None
    assert record.candidate.base_digest == strong.lock.base_tensors
    assert record.evaluations == (found.evaluations[0].digest,)
    assert found.path.stem == found.digest.removeprefix("sha256:")
    other = apply(pair, tmp_path / "other", pair.strong, pair.weak, SMALLEST + "alpha: 0.01\n")
    assert other.record.gate_digest != record.gate_digest
    assert other.record.rows_digest == record.rows_digest


def test_versions_are_those_of_the_registry_that_is_named(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMINA_REGISTRY", str(tmp_path / "nowhere"))
    with Registry(tmp_path / "team") as team:
        team.add(pair.weak, "support")
        team.add(pair.strong, "support")
        found = apply(pair, tmp_path, "support:2", "support:1", registry=str(tmp_path / "team"))
        assert (found.verdict, team.find("support:2").adapter_digest) == (
            "promote",
            found.record.candidate.adapter_digest,
        )
        team.promote("support:1", "prod", override="the first")
        team.promote("support:2", "prod")
    assert not (tmp_path / "nowhere").exists()


def test_against_its_own_base(pair: Pair, tmp_path: Path) -> None:
    text = SMALLEST + "not_worse: [{metric: general_kl, margin: 0.001}]\n"
    found = apply(pair, tmp_path, pair.strong, "base", text)
    assert found.record.against.adapter_digest is None
    assert [check.passed for check in found.checks] == [True, False], "it moved away from the base"


def test_a_stored_evaluation_is_taken_and_only_what_is_missing_is_evaluated(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = evaluate_subjects([pair.strong, pair.weak], [pair.task], out=tmp_path / "stored")
    from lamina.gate import run

    monkeypatch.setattr(run, "evaluate_subjects", None)
    text = SMALLEST + "not_worse: [{metric: general_loss, margin: 10.0}]\n"
    found = run_gate(pair.strong, pair.weak, pair.gate(text), evaluations=[stored.path], records=tmp_path / "gates")
    assert found.verdict == "promote"
    assert found.record.evaluations == (stored.digest,)
    told: list[str] = []
    new = tmp_path / "new" / "evaluation"
    again = run_gate(pair.strong, pair.weak, pair.gate(text), evaluations=[stored.path], out=new, notify=told.append)
    assert again.path.parent == tmp_path / "new" / "gates" and not new.exists()
    assert f"{new} is not written: the stored evaluations have all that the gate needs" in told


def test_an_evaluation_of_another_version_is_refused(pair: Pair, tmp_path: Path) -> None:
    """The candidate was trained on since: the same path, but another digest."""
    stored = evaluate_subjects([pair.strong, pair.weak], [pair.task], out=tmp_path / "stored", forgetting=False)
    changed = copy_run(pair.strong, tmp_path / "changed")
    scale_tensors(changed / "adapter", 1.001)
    with pytest.raises(EvaluationError, match="is not of the candidate"):
        run_gate(changed, pair.weak, pair.gate(SMALLEST), evaluations=[stored.path], out=tmp_path / "new")
    with pytest.raises(EvaluationError, match="is not of the champion"):
        run_gate(pair.strong, pair.model, pair.gate(SMALLEST), evaluations=[only(pair, tmp_path)], out=tmp_path / "new")


def only(pair: Pair, folder: Path) -> Path:
    return evaluate_subjects([pair.strong], [pair.task], with_base=False, forgetting=False, out=folder / "one").path


def test_an_evaluation_on_other_rows_or_with_another_scorer_is_refused(pair: Pair, tmp_path: Path) -> None:
    shutil.copy(pair.folder / "asked.jsonl", tmp_path / "asked.jsonl")
    (tmp_path / "own.py").write_text("def right(answer, expected):\n    return answer == expected\n")
    task = write_task(tmp_path / "task.yaml", scorers=["exact_match", "own.py:right"])
    stored = evaluate_subjects([pair.strong, pair.weak], [task], out=tmp_path / "stored", forgetting=False)
    gate = tmp_path / "gate.yaml"
    gate.write_text(SMALLEST)
    rows = [json.loads(line) for line in (tmp_path / "asked.jsonl").read_text().splitlines()]
    write_jsonl(tmp_path / "asked.jsonl", [{**rows[0], "completion": "other"}, *rows[1:]])
    with pytest.raises(EvaluationError, match="other rows"):
        run_gate(pair.strong, pair.weak, gate, evaluations=[stored.path], out=tmp_path / "new")
    write_jsonl(tmp_path / "asked.jsonl", rows)
    (tmp_path / "own.py").write_text("def right(answer, expected):\n    return 1.0\n")
    with pytest.raises(EvaluationError, match="other settings"):
        run_gate(pair.strong, pair.weak, gate, evaluations=[stored.path], out=tmp_path / "new")


def test_the_base_in_4_bits_is_not_the_base(pair: Pair, tmp_path: Path) -> None:
    """The digest of the tensors on disk is the same; what answered is not."""
    pytest.importorskip("bitsandbytes.functional")
    packed = {"quantization": {"bits": 4, "blocksize": 32}, "train": {"max_steps": 4}}
    run = lamina.train(settings(tmp_path, pair.model, "packed", **packed)).path
    stored = evaluate_subjects([run], [pair.task], out=tmp_path / "stored", forgetting=False)
    gate = pair.gate("floors: [{task: task.yaml, metric: exact_match, at_least: 0.5}]\n")
    with pytest.raises(EvaluationError, match=r"is not of the champion.*\(the bare base; another quantization of the"):
        run_gate(run, pair.model, gate, evaluations=[stored.path], out=tmp_path / "new")
    found = run_gate(run, "base", gate, evaluations=[stored.path], records=tmp_path / "gates")
    lock = read_adapter(run / "adapter").lock
    assert lock is not None and lock.packed_weights is not None
    assert found.record.against == Side(None, lock.base_tensors, lock.packed_weights)
    assert read_record(found.path) == found.record and found.evaluations[0].digest == stored.digest
    plain = run_gate(run, pair.model, gate, out=tmp_path / "plain")
    assert plain.record.against == Side(None, lock.base_tensors) and plain.evaluations[0].digest != stored.digest
    with pytest.raises(EvaluationError, match="is not of the champion"):
        run_gate(run, "base", gate, evaluations=[tmp_path / "plain" / "."], out=tmp_path / "new")


def test_general_text_that_no_check_measures_is_told(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text\n")
    with pytest.raises(ConfigError, match=r"--general: has no effect: no check of the gate .*\[\{metric: general_loss"):
        apply(pair, tmp_path, pair.strong, pair.weak, general=tmp_path / "text.txt")
    assert not (tmp_path / "evaluation").exists()


def test_general_text_that_is_given_is_what_is_measured(pair: Pair, tmp_path: Path) -> None:
    texts = [tmp_path / name for name in ("one.txt", "two.txt")]
    for number, path in enumerate(texts):
        path.write_text(f"the {WORDS[number]} one and the {WORDS[number + 1]} one\n" * 20)
    stored = evaluate_subjects([pair.strong, pair.weak], [pair.task], general=texts[0], out=tmp_path / "stored")
    gate = pair.gate(SMALLEST + "not_worse: [{metric: general_loss, margin: 10.0}]\n")
    taken = run_gate(pair.strong, pair.weak, gate, evaluations=[stored.path], records=tmp_path / "gates")
    other = run_gate(pair.strong, pair.weak, gate, evaluations=[stored.path], general=texts[1], out=tmp_path / "new")
    assert taken.record.evaluations == (stored.digest,) and len(other.record.evaluations) == 2
    assert other.evaluations[1].result["settings"]["general"] == str(texts[1])
    assert other.record.rows_digest != taken.record.rows_digest


def test_an_evaluation_edited_by_one_byte_is_refused(pair: Pair, tmp_path: Path) -> None:
    stored = evaluate_subjects([pair.strong, pair.weak], [pair.task], out=tmp_path / "stored", forgetting=False)
    path = stored.path / "rows" / "task.jsonl"
    path.write_text(path.read_text().replace('"exact_match": 0.0', '"exact_match": 1.0', 1))
    with pytest.raises(EvaluationError, match="was changed"):
        run_gate(pair.strong, pair.weak, pair.gate(SMALLEST), evaluations=[stored.path])


def test_a_record_edited_by_one_byte_is_refused(pair: Pair, tmp_path: Path) -> None:
    found = apply(pair, tmp_path, pair.weak, pair.strong)
    whole = found.path.read_bytes()
    for old, new in ((b'"verdict":"hold"', b'"verdict":"promote"'), (b"exact_match", b"exact_natch"), (b"}", b"} ")):
        found.path.write_bytes(whole.replace(old, new, 1))
        with pytest.raises(EvidenceError):
            read_record(found.path)
    found.path.write_bytes(whole)
    assert read_record(found.path).verdict == "hold"


def test_evaluation_rows_in_the_training_data_hold(pair: Pair, tmp_path: Path) -> None:
    trained = [json.loads(line) for line in (pair.folder / "rows.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (pair.folder / "asked.jsonl").read_text().splitlines()]
    write_jsonl(tmp_path / "asked.jsonl", [*rows, *trained[:8]])
    write_task(tmp_path / "task.yaml")
    gate = tmp_path / "gate.yaml"
    gate.write_text(SMALLEST + "leakage: none\n")
    found = run_gate(pair.strong, pair.weak, gate, out=tmp_path / "evaluation")
    leakage = next(check for check in found.checks if check.name.startswith("leakage"))
    assert found.verdict == "hold"
    assert leakage.passed is False and leakage.value is not None and leakage.value >= 6
    write_jsonl(tmp_path / "asked.jsonl", trained)
    found = run_gate(pair.strong, pair.weak, gate, out=tmp_path / "again")
    assert found.verdict == "hold", "it is no error that training saw nearly every row"


def test_training_data_that_was_swept_clean_afterwards_is_noticed(pair: Pair, tmp_path: Path) -> None:
    run = copy_run(pair.strong, tmp_path / "run")
    data = write_jsonl(tmp_path / "clean.jsonl", [{"prompt": f"clean {n}", "completion": "x"} for n in range(24)])
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(pair.folder / "rows.jsonl"), str(data)))
    found = apply(pair, tmp_path, run, pair.weak, SMALLEST + "leakage: none\n")
    assert found.verdict == "hold"
    assert "changed since" in found.checks[-1].note


def test_an_adapter_of_another_base_is_caught(pair: Pair, tmp_path: Path) -> None:
    other = tmp_path / "other-base"
    torch.manual_seed(7)
    model = build_model("llama", vocab_size=len(build_tokenizer()))
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.01)  # type: ignore[operator]
    model.save_pretrained(other)
    build_tokenizer().save_pretrained(other)
    with pytest.raises(BaseMismatchError, match="weights differ"):
        apply(pair, tmp_path, pair.strong, pair.weak, model=str(other))


def test_scaling_that_was_turned_off_is_caught(pair: Pair, tmp_path: Path) -> None:
    run = copy_run(pair.strong, tmp_path / "run")
    path = run / "adapter" / "lamina.json"
    about = json.loads(path.read_text())
    about["method"]["lora_alpha"] = 0.0001
    path.write_text(json.dumps(about))
    with pytest.raises(AdapterError, match="changed after training"):
        apply(pair, tmp_path, run, pair.weak)
    about["digest"] = adapter_digest(about["method"], load_file(run / "adapter" / "adapter_model.safetensors"))
    path.write_text(json.dumps(about))
    with pytest.raises(CertificateError, match=r"FAILED|not|differ"):
        apply(pair, tmp_path, run, pair.weak)


def test_a_template_that_was_swapped_is_caught(pair: Pair, tmp_path: Path) -> None:
    run = copy_run(pair.strong, tmp_path / "run")
    path = run / "adapter" / "lamina.json"
    about = json.loads(path.read_text())
    about["lock"]["chat_template"] = "chatml" if about["lock"]["chat_template"] == "model" else "model"
    path.write_text(json.dumps(about))
    with pytest.raises(LaminaError, match="chat template"):
        apply(pair, tmp_path, run, pair.weak)
    base = tmp_path / "base"
    shutil.copytree(pair.model, base)
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        if (base / name).exists():
            text = (base / name).read_text()
            (base / name).write_text(text.replace("<|im_start|>assistant", "<|im_start|>system"))
    with pytest.raises(BaseMismatchError, match="chat template"):
        apply(pair, tmp_path, pair.strong, pair.weak, model=str(base))


def test_a_metric_that_is_missing_is_named_before_anything_is_loaded(pair: Pair, tmp_path: Path) -> None:
    text = "better: [{task: task.yaml, metric: exact_mach}]\nnot_worse: [{metric: generl_loss, margin: 1.0}]\n"
    with pytest.raises(ConfigError) as caught:
        run_gate("nobody", "nothing", pair.gate(text))
    assert len(caught.value.problems) == 2
    assert all(word in str(caught.value) for word in ("better.0.metric", "exact_match", "general_loss", "not_worse.0"))
    with pytest.raises(ConfigError, match="no direction"):
        lengthy = write_task(pair.folder / "lengthy.yaml", scorers=["length"])
        run_gate("nobody", "nothing", pair.gate(f"better: [{{task: {lengthy.name}, metric: length}}]\n"))
    with pytest.raises(ConfigError, match=r"nope\.yaml does not exist"):
        run_gate("nobody", "nothing", pair.gate("better: [{task: nope.yaml, metric: x}]\n"))


@pytest.mark.parametrize("against", ["../nope/..", "a/b/c", "nope"])
def test_odd_names_are_named(pair: Pair, tmp_path: Path, against: str) -> None:
    with pytest.raises(LaminaError, match=r"exist|no model|found|no such|not a"):
        apply(pair, tmp_path, pair.strong, against)


def test_only_an_adapter_may_pass_and_not_itself(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a base"):
        apply(pair, tmp_path, pair.model, pair.weak)
    with pytest.raises(ConfigError, match="the candidate itself"):
        apply(pair, tmp_path, pair.strong, pair.strong / "adapter")
    with pytest.raises(ConfigError, match="is a URL"):
        apply(pair, tmp_path, "http://127.0.0.1:1/v1#x", pair.weak)


def copy_run(run: Path, to: Path) -> Path:
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("evaluations", "checkpoints"))
    return to


def scale_tensors(adapter: Path, factor: float) -> None:
    """Changes an adapter as more training would, with a digest that fits."""
    path = adapter / "adapter_model.safetensors"
    tensors = {name: tensor * factor for name, tensor in load_file(path).items()}
    save_file(tensors, path)
    about = json.loads((adapter / "lamina.json").read_text())
    about["digest"] = adapter_digest(about["method"], tensors)
    (adapter / "lamina.json").write_text(json.dumps(about))
