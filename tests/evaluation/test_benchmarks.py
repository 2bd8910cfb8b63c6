"""lm-eval's tasks through lamina's engine give what its own HFLM gives, row by row."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lamina.chat.template import build_template
from lamina.engine.engine import Engine
from lamina.engine.generator import Reader
from lamina.engine.local import LocalGenerator
from lamina.errors import ConfigError, DataError
from lamina.evaluation.benchmarks.run import Benchmark, run_benchmarks
from tests.conftest import SHARED_DATA
from tests.support.lm_eval_tasks import TASKS, write_tasks
from tests.support.models_zoo import build_model, build_tokenizer


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"), rows=8)


@pytest.fixture(scope="module", autouse=True)
def _datasets(tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    datasets.disable_progress_bars()


def theirs(model: Any, tokenizer: Any, folder: Path, **settings: Any) -> dict[str, Any]:
    return simple_evaluate(  # type: ignore[return-value]
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4),
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        random_seed=0,
        numpy_random_seed=0,
        torch_random_seed=0,
        fewshot_random_seed=0,
        **settings,
    )


def check(ours: list[Benchmark], wanted: dict[str, Any]) -> None:
    """Every metric, and every row's, to the last digit; log-likelihoods as closely as their sums in float32 are."""
    assert {benchmark.task for benchmark in ours} == set(TASKS)
    for benchmark in ours:
        results = wanted["results"][benchmark.task]
        for metric, value in benchmark.metrics.items():
            found = results[metric] if metric in results else results[f"{metric},none"]
            rolling = benchmark.task == "local_text"
            # HFLM's sums over hundreds of tokens are up to 1.8e-5 from its own in float64, and lamina's 6e-7 (the real
            # model, on a CPU with AVX2).
            assert value == (pytest.approx(found, rel=5e-5) if rolling else found), (benchmark.task, metric)
        samples = wanted["samples"][benchmark.task]
        assert {f"sha256:{sample['doc_hash']}" for sample in samples} == {row.digest for row in benchmark.rows}
        several = len({sample["filter"] for sample in samples}) > 1
        for sample in samples:
            row = benchmark.rows[sample["doc_id"]]
            for metric in sample["metrics"]:
                if not isinstance(sample[metric], tuple):
                    assert row.scores[f"{metric},{sample['filter']}" if several else metric] == float(sample[metric])
            if benchmark.task in ("local_arc", "local_hellaswag", "local_mmlu"):
                likelihoods = [pair[0] for pair in json.loads(row.answer)]
                assert likelihoods == pytest.approx([pair[0] for pair in sample["filtered_resps"]], abs=2e-3)
            elif benchmark.task == "local_gsm8k" and sample["filter"] == "flexible-extract":
                assert row.answer == sample["filtered_resps"][0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_the_same_numbers_as_hflm(family: str, tasks: Path) -> None:
    tokenizer = build_tokenizer()
    longest = {"n_positions": 320} if family == "gpt2" else {"max_position_embeddings": 320}
    model = build_model(family, vocab_size=len(tokenizer), **longest)
    reader = LocalGenerator(model, build_template(tokenizer))
    ours = run_benchmarks(reader, TASKS, include_path=tasks)
    check(ours, theirs(model, tokenizer, tasks))
    by_name = {benchmark.task: benchmark for benchmark in ours}
    assert set(by_name["local_arc"].metrics) == {"acc", "acc_norm"} and by_name["local_mmlu"].shots == 2
    assert set(by_name["local_gsm8k"].metrics) == {"exact_match,strict-match", "exact_match,flexible-extract"}
    assert by_name["local_text"].larger_is_better == {"word_perplexity": False, "bits_per_byte": False}


def test_limit_shots_and_digests(tasks: Path) -> None:
    tokenizer = build_tokenizer()
    reader = LocalGenerator(build_model("llama", vocab_size=len(tokenizer)), build_template(tokenizer))
    seen: list[tuple[str, int, int]] = []
    (first,) = run_benchmarks(
        reader, ["local_arc"], include_path=tasks, limit=3, progress=lambda *told: seen.append(told)
    )
    (again,) = run_benchmarks(reader, ["local_arc"], include_path=tasks, limit=3)
    (shots,) = run_benchmarks(reader, ["local_arc"], include_path=tasks, limit=3, num_fewshot=1)
    assert len(first.rows) == 3 and first == again and seen[-1] == ("log-likelihoods", 12, 12)
    assert (first.shots, shots.shots) == (0, 1) and first.digest != shots.digest
    assert [row.digest for row in first.rows] == [row.digest for row in shots.rows]


def test_a_chat_template_where_asked(tasks: Path) -> None:
    tokenizer = build_tokenizer()
    model = build_model("llama", vocab_size=len(tokenizer))
    reader = LocalGenerator(model, build_template(tokenizer))
    names = ["local_arc", "local_mmlu"]
    ours = run_benchmarks(reader, names, include_path=tasks, chat=True, limit=3)
    wanted = theirs(model, tokenizer, tasks, apply_chat_template=True, fewshot_as_multiturn=True, limit=3)
    for benchmark in ours:
        for sample in wanted["samples"][benchmark.task]:
            likelihoods = [pair[0] for pair in json.loads(benchmark.rows[sample["doc_id"]].answer)]
            assert likelihoods == pytest.approx([pair[0] for pair in sample["filtered_resps"]], abs=2e-3)
    (plain,) = run_benchmarks(reader, names[:1], include_path=tasks, limit=3)
    assert plain.rows[0].answer != ours[0].rows[0].answer


def test_what_cannot_be_run_is_told(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = build_tokenizer()
    reader = LocalGenerator(build_model("llama", vocab_size=len(tokenizer)), build_template(tokenizer))
    with pytest.raises(ConfigError, match=r"'local_ark' is no task.*Did you mean 'local_arc'"):
        run_benchmarks(reader, ["local_ark"], include_path=tasks)
    with pytest.raises(ConfigError, match="names no task"):
        run_benchmarks(reader, [], include_path=tasks)
    with pytest.raises(ConfigError, match="is no folder"):
        run_benchmarks(reader, ["local_arc"], include_path=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"arc_challenge: cannot be run .*--include-path"):
        run_benchmarks(reader, ["arc_challenge"], limit=1)
    own = {
        "task": "own",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tasks / "gsm8k_test.jsonl")}},
    }
    own |= {"test_split": "test", "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "x"}
    own |= {"metric_list": [{"metric": "exact_match"}], "generation_kwargs": {"num_beams": 3}}
    with pytest.raises(ConfigError, match=r"generation_kwargs\.num_beams: 3 is set by the task"):
        run_benchmarks(reader, [own], limit=1)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'lamina\[lm-eval\]'"):
        run_benchmarks(reader, ["local_arc"], include_path=tasks)


@pytest.mark.real
def test_the_same_numbers_as_hflm_on_a_real_model(tmp_path: Path) -> None:
    path = SHARED_DATA / "gsm8k_test.jsonl"
    real = [json.loads(line) for line in path.read_text().splitlines()[:5]] if path.is_file() else None
    folder = write_tasks(tmp_path, rows=5, gsm8k=real)
    with Engine("smollm2-135m", dtype="float32") as engine:
        reader: Reader = engine
        ours = run_benchmarks(reader, TASKS, include_path=folder)
        check(ours, theirs(engine.base.model, engine.base.tokenizer, folder))
