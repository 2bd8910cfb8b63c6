"""vLLM's engine in process, step by step, in the environment that LAMINA_VLLM_PYTHON names."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

from lamina.bench.optional import optional
from lamina.bench.serving.job import AdapterFacts, Job
from lamina.bench.serving.load import Event, Target
from lamina.bench.serving.traffic import ALIKE, Ask

ABOUT = "vLLM's engine: continuous batching, LoRA adapters mixed in a batch"

PYTHON = "LAMINA_VLLM_PYTHON"

# Set to 1 where compiling takes longer than the benchmark is worth.
EAGER = "LAMINA_VLLM_EAGER"

# Ranks that its kernels know.
_RANKS = (8, 16, 32, 64, 128, 256)


def takes(adapter: AdapterFacts) -> bool:
    """LoRA alone: it refuses DoRA, IA3 and prefixes."""
    return adapter.method == "lora"


def refuses(job: Job) -> str | None:
    """It needs an environment with vLLM, and LoRA adapters."""
    python = os.environ.get(PYTHON)
    if python is None and importlib.util.find_spec("vllm") is None:
        return f"vllm is not installed. Fix: install it in an environment of its own, and name its Python in {PYTHON}."
    if python is not None and shutil.which(python) is None:
        return f"{PYTHON} names {python}, which cannot be run. Fix: name the Python of an environment with vllm."
    if job.adapters and not any(takes(adapter) for adapter in job.adapters):
        return "it serves LoRA adapters alone, and none of these is one."
    return None


def interpreter() -> str | None:
    """That of LAMINA_VLLM_PYTHON."""
    return os.environ.get(PYTHON)


@contextlib.contextmanager
def open(job: Job) -> Iterator[tuple[Target, dict[str, Any]]]:
    """Loads the base, compiled unless that fails or LAMINA_VLLM_EAGER is 1."""
    for name, value in (
        # In one process, vLLM computes with all of torch's threads; in two, it binds them as its own settings say.
        ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),
        ("VLLM_CPU_KVCACHE_SPACE", "2"),
        ("VLLM_NO_USAGE_STATS", "1"),
        ("VLLM_LOGGING_LEVEL", "WARNING"),
    ):
        os.environ.setdefault(name, value)
    vllm = optional("vllm")
    served = [adapter for adapter in job.adapters if takes(adapter)]
    settings: dict[str, Any] = {
        "model": job.model,
        "dtype": job.dtype,
        "max_model_len": min(2048, max(map(len, job.read_prompts())) + job.max_new_tokens + 16),
        "max_num_seqs": job.most_streams,
        "seed": 0,
    }
    if served:
        rank = max(adapter.rank for adapter in served)
        settings |= {
            "enable_lora": True,
            "max_loras": min(len(served), ALIKE),
            "max_cpu_loras": max(min(len(served), ALIKE), len(served) if not job.on_disk else ALIKE),
            "max_lora_rank": next(known for known in _RANKS if known >= rank),
        }
    model, failure = None, None
    if os.environ.get(EAGER) != "1":
        try:
            model = vllm.LLM(**settings)
        except Exception as error:  # of any kind: without a compiler, it fails in many ways
            failure = f"{type(error).__name__}: {error}"[:300]
    eager = model is None
    if model is None:
        model = vllm.LLM(**settings, enforce_eager=True)
    settings |= {"vllm": importlib.metadata.version(_distribution()), "threads": optional("torch").get_num_threads()}
    settings |= {"enforce_eager": eager, "not_compiled": failure}
    yield _Target(model.llm_engine, served, job.max_new_tokens), settings


def _distribution() -> str:
    return next(iter(importlib.metadata.packages_distributions().get("vllm", ["vllm"])))


class _Target:
    def __init__(self, engine: Any, adapters: list[AdapterFacts], tokens: int) -> None:
        self._engine = engine
        lora, sampling = optional("vllm.lora.request"), optional("vllm.sampling_params")
        self._loras = {a.name: lora.LoRARequest(a.name, number, a.path) for number, a in enumerate(adapters, start=1)}
        self._sampling = sampling.SamplingParams(
            temperature=0.0,
            max_tokens=tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=sampling.RequestOutputKind.DELTA,
        )

    def ask(self, ask: Ask) -> None:
        lora = None if ask.adapter is None else self._loras[ask.adapter]
        prompt = {"prompt_token_ids": ask.token_ids}
        self._engine.add_request(str(ask.number), prompt, self._sampling, lora_request=lora)

    def events(self, patience: float) -> list[Event]:
        """Computes a step."""
        if not self._engine.has_unfinished_requests():
            time.sleep(patience)
            return []
        outputs = self._engine.step()
        at = time.perf_counter()
        return [
            Event(int(output.request_id), at, len(output.outputs[0].token_ids), output.finished) for output in outputs
        ]
