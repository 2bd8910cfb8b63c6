"""Proofs of whole runs: resumed, verified, merged; memory over many steps; paged optimizers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from tests.support.verification import tiny_config
from tools.gpu.layers import adapted, documents
from tools.gpu.parts import compiled_graphs, distance
from tools.gpu.record import Failed, Lacking
from tools.gpu.worker import Here
from torch import nn

import lamina
from lamina.compute.fusion import fast_path
from lamina.config import TrainConfig, load_config
from lamina.data.batch import build_batch
from lamina.losses.cross_entropy import cross_entropy
from lamina.machine.memory import current_bytes, peak_bytes
from lamina.optim import build_optimizer
from lamina.structure.head import find_head
from lamina.verification.artefacts import resumed_is_unbroken

STEPS, CUT = 6, 4
FAMILIES = ("llama", "qwen3", "gemma3")


def _config(here: Here, family: str, name: str, **train: Any) -> dict[str, Any]:
    folder = here.out / name
    folder.mkdir(parents=True, exist_ok=True)
    settings = tiny_config(folder, family, "float32" if here.small else "bfloat16")
    return settings | {"train": {**settings["train"], **train}}


def resume(here: Here) -> None:
    """In one process, as `lamina verify` does; and cut in one process and resumed in another."""
    for family in FAMILIES[:1] if here.small else FAMILIES:
        config = load_config(_config(here, family, f"resume-{family}", max_steps=STEPS, save_steps=3))
        for measure in resumed_is_unbroken(config, here.out / f"resume-{family}"):
            here.record.prove(f"{family}: {measure.what}", measure.difference, measure.tolerance)
    last = []
    for name, ends in (("unbroken", (STEPS,)), ("resumed", (CUT, STEPS))):
        settings = _config(here, "llama", f"processes-{name}", max_steps=STEPS, save_steps=1)
        for number, end in enumerate(ends):
            _in_process(settings, end, resumed=number > 0)
        checkpoints = sorted(Path(settings["output_dir"]).glob("checkpoints/*/adapter.safetensors"))
        last.append({path.parent.name: path for path in checkpoints})
    both = sorted(last[0].keys() & last[1].keys())
    if not both:
        raise Failed("the two runs have no checkpoint in common")
    from safetensors.torch import load_file

    tensors = [load_file(runs[both[-1]]) for runs in last]
    most = max(float((tensors[0][key] - tensors[1][key]).abs().max()) for key in tensors[0])
    here.record.prove(f"llama, another process: adapter in {both[-1]}", most)


_CUT = """
import json, sys
import lamina
class Cut(BaseException): pass
settings, end, resumed = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True"
def cut(event):
    if event.kind == "checkpoint" and event.step == end:
        raise Cut
try:
    lamina.train(settings, cut, resume=resumed)
except Cut:
    pass
"""


def _in_process(settings: dict[str, Any], end: int, resumed: bool) -> None:
    """Trains up to the checkpoint of a step, in a process that starts with nothing compiled."""
    command = [sys.executable, "-c", _CUT, json.dumps(settings), str(end), str(resumed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"training in a process of its own: {done.stderr.strip().splitlines()[-1:]}")


def verify(here: Here) -> None:
    """Every comparison of `lamina verify`."""
    for family in FAMILIES[:1] if here.small else FAMILIES:
        found = lamina.verify(_config(here, family, f"verify-{family}"))
        for check in found.checks:
            if check.difference is None or check.tolerance is None:
                here.record.tell(f"{family}, {check.name}", check.why[:300])
            else:
                here.record.prove(f"{family}, {check.name}: {check.worst}", check.difference, check.tolerance)
        here.record.prove(f"{family}: checks that failed", sum(check.passed is False for check in found.checks))


def merge(here: Here) -> None:
    """A run from data to a merged folder; its loss falls, and the certificate holds."""
    run = lamina.train(_config(here, "llama", "merge", max_steps=20))
    assert run.summary is not None
    first, final = run.summary.train_loss_first, run.summary.train_loss_last
    here.record.prove("loss at the end over loss at the start", final / first, 0.95)
    certificate = lamina.merge(run.path, here.out / "merge" / "merged").certificate
    here.record.prove("certificate: logits", certificate.max_logit_difference, certificate.tolerance)
    here.record.prove("certificate that does not pass", int(not certificate.passed))


def memory(here: Here) -> None:
    """Steps of many lengths: neither memory nor the number of compiled graphs goes on growing."""
    device = torch.device(here.device)
    injection = adapted(here, "llama", torch.float32 if here.small else torch.bfloat16, dropout=0.1)
    injection.model.train()
    head, tensors = find_head(injection.model), list(injection.tensors().values())
    optimizer = build_optimizer(TrainConfig.model_validate({"learning_rate": 1e-4}), injection.tensors())
    steps = 40 if here.small else 200
    seen: dict[int, tuple[int, int]] = {}
    with fast_path(injection.model, kernels=here.kernels):
        for step in range(1, steps + 1):
            lengths = (20 + 37 * step % 211, 3 + 11 * step % 97)
            batch = build_batch(documents(lengths)).to(device)
            (cross_entropy(injection.model, head, batch) / batch.supervised_tokens).backward()
            optimizer.step()
            for tensor in tensors:
                tensor.grad = None
            seen[step] = (current_bytes(device), compiled_graphs())
    begin = steps // 4
    growth = seen[steps][0] / max(seen[begin][0], 1) - 1.0
    here.record.prove(f"growth of memory from step {begin} to {steps}", growth, 0.02)
    here.record.prove(f"graphs compiled after step {begin}", seen[steps][1] - seen[begin][1])
    here.record.tell("peak MiB", peak_bytes(device) / 2**20)


def optimizers(here: Here) -> None:
    """Paged moments against those in the device's memory, also after a checkpoint brought them back."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise Lacking("bitsandbytes is not installed") from error
    if here.device != "cuda":
        raise Lacking("paged memory needs a GPU")
    for paged, plain in (("paged_adamw_8bit", "adamw_8bit"), ("paged_adamw_32bit", "adamw_torch")):
        results = [_moved(name, name == paged) for name in (paged, plain)]
        here.record.prove(f"{paged}: weights after six steps", distance(results[0], results[1]), 1e-5)


def _moved(name: str, restored: bool) -> torch.Tensor:
    """A weight after six steps; `restored`: in the middle its state goes the way of a checkpoint."""
    generator = torch.Generator("cuda").manual_seed(0)
    weight = nn.Parameter(torch.randn(400, 300, device="cuda", generator=generator))  # large enough for a page
    config = TrainConfig.model_validate({"optim": name, "learning_rate": 0.01})
    optimizer = build_optimizer(config, {"w": weight})
    for step in range(6):
        if step == 3 and restored:
            if optimizer.state[weight]["state1"].is_cuda:
                raise Failed(f"{name} does not page")
            stored = {key: value.cpu().clone() for key, value in optimizer.state[weight].items()}
            optimizer = build_optimizer(config, {"w": weight})
            optimizer.state[weight] = {key: value.to("cuda") for key, value in stored.items()}
        weight.grad = torch.randn(weight.shape, device="cuda", generator=generator)
        optimizer.step()
    return weight.detach()
