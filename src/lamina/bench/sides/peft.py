"""What a careful user writes by hand: a loop over a peft model, rows sorted by length and padded, fused AdamW."""

from __future__ import annotations

from typing import Any

import torch

from lamina.bench.job import Job
from lamina.bench.meter import Meter
from lamina.bench.optional import optional
from lamina.bench.sides._common import load_model, lora_config, padded_micro_batches, start_like_lamina

ABOUT = "a bare loop over a peft model: rows of a step sorted by length, padded on the right, no mask"
REQUIRES = ("peft",)
NEEDS_CUDA = False

# Micro-batches in a step: a second one would pad less, but short products run slower (docs/benchmarks.md).
MICRO_BATCHES = 1


def run(job: Job, meter: Meter) -> dict[str, Any]:
    """Trains by hand."""
    peft: Any = optional("peft")
    model = peft.get_peft_model(load_model(job), lora_config(job)).to(meter.device)
    start_like_lamina(model, job)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=job.learning_rate, weight_decay=0.0, fused=True)
    # The rank-sized products in the base's dtype rather than in that of the float32 masters.
    autocast = torch.autocast(meter.device.type, torch.bfloat16, enabled=job.dtype == "bfloat16")
    model.train()
    meter.loaded(model)
    for batch in job.batches:
        supervised = sum(example.supervised_tokens for example in batch)
        meter.begin()
        total = 0.0
        for part in padded_micro_batches(batch, meter.device, MICRO_BATCHES):
            with autocast:
                loss = model(
                    input_ids=part.input_ids, labels=part.labels, use_cache=False, num_items_in_batch=supervised
                ).loss
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(parameters, job.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        meter.end(total, [len(example) for example in batch], supervised)
    return {"peft": peft.__version__, "padding": f"right, micro-batches: {MICRO_BATCHES}", "autocast": job.dtype}
