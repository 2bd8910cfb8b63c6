"""transformers' `generate`: requests that wait are padded on the left and answered in one batch, round after round."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import time
from collections.abc import Iterator
from typing import Any

from lamina.bench.serving.job import AdapterFacts, Job
from lamina.bench.serving.load import Event, Target
from lamina.bench.serving.traffic import Ask

ABOUT = "transformers' batched generate: SDPA, dynamic cache, padded on the left, in rounds"


def takes(adapter: AdapterFacts) -> bool:
    """Every method that peft reads; see `refuses`."""
    return True


def refuses(job: Job) -> str | None:
    """It serves the bare base, or one adapter through peft."""
    if len(job.adapters) > 1:
        return "generate answers with one adapter at a time."
    if job.adapters and importlib.util.find_spec("peft") is None:
        return "peft is not installed. Fix: pip install 'lamina[bench]'."
    return None


def interpreter() -> str | None:
    """This one."""
    return None


@contextlib.contextmanager
def open(job: Job) -> Iterator[tuple[Target, dict[str, Any]]]:
    """Loads the base, with its adapter."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    from lamina.machine.hardware import DTYPES
    from lamina.machine.quiet import quiet_transformers

    with quiet_transformers(), torch.inference_mode():
        model: Any = AutoModelForCausalLM.from_pretrained(
            job.model, dtype=DTYPES[job.dtype], local_files_only=True, trust_remote_code=False
        ).eval()
        # No token ends an answer.
        model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0, max_new_tokens=job.max_new_tokens)
        settings = {"transformers": importlib.metadata.version("transformers"), "batch": job.most_streams}
        if job.adapters:
            import peft

            model = peft.PeftModel.from_pretrained(model, job.adapters[0].path)
            settings["peft"] = importlib.metadata.version("peft")
        yield _Target(model, job.most_streams), settings


class _Target:
    def __init__(self, model: Any, batch: int) -> None:
        self._model, self._batch = model, batch
        self._waiting: list[Ask] = []

    def ask(self, ask: Ask) -> None:
        self._waiting.append(ask)

    def events(self, patience: float) -> list[Event]:
        """Answers all that wait, up to a batch."""
        import torch
        from transformers import StoppingCriteriaList

        if not self._waiting:
            time.sleep(patience)
            return []
        batch, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
        longest = max(len(ask.token_ids) for ask in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, ask in enumerate(batch):
            ids[row, longest - len(ask.token_ids) :] = torch.tensor(ask.token_ids)
            mask[row, longest - len(ask.token_ids) :] = 1
        times: list[float] = []

        def note(tokens: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
            times.append(time.perf_counter())
            return torch.zeros(len(tokens), dtype=torch.bool)

        self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            stopping_criteria=StoppingCriteriaList([note]),  # type: ignore[list-item]
        )
        return [Event(ask.number, at, 1, step == len(times) - 1) for step, at in enumerate(times) for ask in batch]
