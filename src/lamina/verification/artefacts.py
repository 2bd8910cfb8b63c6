"""Checks of files on disk: a saved adapter, a merged model, and a run that is interrupted and resumed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from lamina.adapters.adapter import save_adapter
from lamina.adapters.certificate import EFFECT_MARGIN, Certificate
from lamina.adapters.load import load
from lamina.adapters.lock import build_lock
from lamina.config import Config
from lamina.engine.probes import record_probes
from lamina.errors import CertificateError
from lamina.export.merge import merge
from lamina.machine.hardware import dtype_name
from lamina.methods.shared.score import saved_form, score_head
from lamina.runs import Run
from lamina.runs.events import CheckpointSaved, Event, Step
from lamina.structure.layers import text_decoder
from lamina.training.checkpoint import newest_checkpoint
from lamina.training.loop import train
from lamina.training.record import data_digests
from lamina.training.session import Session
from lamina.verification.report import Measure, Skipped
from lamina.verification.sample import SAVE_STEPS, STEPS


@dataclass(frozen=True)
class Saved:
    """An adapter on disk, and the state of the model in memory when it was saved.

    Attributes:
        path: The adapter's folder.
        tensors: Copies of the adapter's tensors in the form in which they are saved.
        ids: Token ids of a document.
        logits: The model's logits for that document, float32; with a reward model's head, its scores are the last
            column.
        dtype: The dtype of the base.
        merges: Whether the adapter can be merged.
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    ids: torch.Tensor
    logits: torch.Tensor
    dtype: str
    merges: bool


def save(session: Session, path: Path) -> Saved:
    """Saves the session's adapter with its lock and its probes, as training does at its end."""
    model = session.base.model.eval()
    lock = build_lock(session.base, session.template, data_digests(session.dataset))
    save_adapter(path, session.injection, session.base, lock, record_probes(session.injection, session.template))
    ids = torch.from_numpy(session.dataset.train[0].input_ids).long()[None]
    written = saved_form(session.injection).tensors
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in written.items()}
    merges = all(layer.merges for layer in session.injection.layers.values())
    return Saved(path, tensors, ids, _logits(model, ids), dtype_name(session.base.dtype), merges)


def saved_is_loaded(saved: Saved) -> list[Measure]:
    """Loads the adapter on a newly loaded base and compares tensors and logits."""
    loaded = load(saved.path, dtype=saved.dtype)
    found = {name: tensor.detach().cpu() for name, tensor in loaded.injection.saved_tensors().items()}
    logits = float((_logits(loaded.model, saved.ids) - saved.logits).abs().max())
    tensors = Measure("tensors", _largest_difference(found, saved.tensors), 0.0, "0, because nothing is computed")
    return [tensors, Measure("logits", logits, 0.0, "0, because the same operations run on the same numbers")]


def merged_is_adapter(saved: Saved, out: Path) -> list[Measure]:
    """Merges the adapter and replays its probes on the saved folder."""
    if not saved.merges:
        raise Skipped("the adapter is no change of weights, so it cannot be merged")
    certificate: Certificate
    try:
        certificate = merge(saved.path, out, dtype=saved.dtype).certificate
    except CertificateError as error:
        certificate = error.certificate
    without = certificate.modules_expected - certificate.modules_matched
    kept = certificate.effect_kept
    if certificate.passed and certificate.update_kept is not None and abs(1 - kept) > EFFECT_MARGIN:
        kept = certificate.update_kept  # rounding hides the effect on the logits, so it is measured in the weights
    differences = float(certificate.answers.differences if certificate.answers else 0)
    measures = [
        Measure(
            "logits",
            certificate.max_logit_difference,
            certificate.tolerance,
            f"some roundings to {certificate.dtype} at the size of the largest logit: merging rounds each weight again",
        ),
        Measure("modules without the adapter", without, 0.0, "0, because every module must carry it"),
        Measure(
            "adapter's effect",
            abs(1 - kept),
            EFFECT_MARGIN,
            "0 is all of it; a merge without it, or with it twice, gives 1",
        ),
        Measure("top-1 tokens", 1 - certificate.top1_agreement, 0.0, "0, because only clear ones are compared"),
        Measure(
            "prompts, answers and stops that differ",
            differences,
            0.0,
            "0, because the folder asks, answers and stops as the adapter does, wherever rounding does not decide",
        ),
    ]
    if not certificate.passed and all(measure.passed for measure in measures):
        measures.append(Measure("reasons of the certificate", 1.0, 0.0, "; ".join(certificate.reasons)))
    return measures


def resumed_is_unbroken(config: Config, folder: Path) -> list[Measure]:
    """Trains without interruption, and again with one; the last checkpoints must be identical, bit for bit.

    Both runs stop at that checkpoint, because the rest, such as recording probes, takes longer than these few steps.
    """
    unbroken, broken = in_folder(config, folder / "unbroken"), in_folder(config, folder / "broken")
    _train_until(unbroken, CheckpointSaved, STEPS)
    _train_until(broken, Step, SAVE_STEPS + 1)
    _train_until(broken, CheckpointSaved, STEPS, resume=True)
    why = "0, because adapter, optimizer, random numbers and place in the data are all restored"
    return checkpoints_differ(broken, unbroken, why)


def checkpoints_differ(ours: Config, plain: Config, why: str) -> list[Measure]:
    """Compares the last checkpoints of two runs, which must be the same for the reason given."""
    found, expected = _last_checkpoint(ours), _last_checkpoint(plain)
    return [Measure(part, _largest_difference(found[part], expected[part]), 0.0, why) for part in expected]


class _Cut(BaseException):
    """Simulates that the process is killed: nothing in training may catch it."""


def _train_until(config: Config, kind: type[Event], step: int, resume: bool = False) -> None:
    def cut(event: Event) -> None:
        if isinstance(event, kind) and event.step == step:
            raise _Cut

    with contextlib.suppress(_Cut):
        train(config, cut, resume=resume)


def _last_checkpoint(config: Config) -> dict[str, dict[str, torch.Tensor]]:
    """Loads the tensors of the adapter, the optimizer and the method from the last checkpoint."""
    path = newest_checkpoint(Run(Path(config.output_dir)).checkpoints)
    assert path is not None
    return {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}


def in_folder(config: Config, folder: Path) -> Config:
    return config.model_copy(update={"output_dir": str(folder)})


@torch.no_grad()
def _logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    head = score_head(model)
    ids = ids.to(model.device)
    logits = model(input_ids=ids, use_cache=False).logits.float()
    if head is not None:
        hidden = text_decoder(model)(input_ids=ids, use_cache=False).last_hidden_state
        logits = torch.cat([logits, head(hidden)], dim=-1)
    return logits.cpu()


def _largest_difference(ours: Mapping[str, torch.Tensor], plain: Mapping[str, torch.Tensor]) -> float:
    if ours.keys() != plain.keys():
        return math.inf
    differences = [float((ours[name].double() - tensor.double()).abs().max()) for name, tensor in plain.items()]
    return max(differences, default=0.0)  # the state of most methods is empty
