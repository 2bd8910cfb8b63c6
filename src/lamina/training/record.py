"""What a run records before it trains: its manifest, the data report, and the check that a resumed run is the same."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import psutil
import torch

from lamina import files
from lamina.chat.template import ChatTemplate
from lamina.compute.kernels import kernel_state
from lamina.config import Config
from lamina.data.dataset import Dataset
from lamina.errors import RunError
from lamina.machine.hardware import dtype_name
from lamina.models.load import Base
from lamina.progress import Notify
from lamina.quantization.report import RoundingReport
from lamina.runs import keep_places, moved_places
from lamina.runs.manifest import BaseFacts, BaseWeights, DataFile, Hardware, Manifest
from lamina.training.session import Session
from lamina.training.start import keep_start
from lamina.version import __version__


def write_what_is_known(session: Session, notify: Notify) -> None:
    """Manifest, data report, the adapter that training starts from, and the report on a quantized base."""
    run, base = session.run, session.base
    _write_manifest(session, notify)
    keep_start(session.start, run)
    files.write_json(run.data_report_path, session.dataset.report.as_json())
    if base.rounding_errors and base.packing is not None:
        report = RoundingReport(base.rounding_errors, base.packing)
        files.write_json(run.quantization_report_path, report.as_json())
        notify(report.line())


def data_digests(dataset: Dataset) -> list[dict[str, Any]]:
    """Name, digest and rows of each data file, for the lock."""
    return [dataclasses.asdict(file) for file in _data_files(dataset)]


def _data_files(dataset: Dataset) -> list[DataFile]:
    return [DataFile(Path(file.path).name, file.sha256, file.rows) for file in dataset.report.files]


def facts_of(base: Base, template: ChatTemplate, dataset: Dataset) -> Manifest:
    """What a run must have the same in all processes, and when it goes on."""
    return Manifest(
        base=BaseFacts(base.source.ref, base.fingerprint.tensors, base.fingerprint.config),
        tokenizer=template.tokenizer_digest,
        chat_template=template.digest,
        data=_data_files(dataset),
        threads=torch.get_num_threads(),
    )


def shared_facts(base: Base, config: Config) -> dict[str, Any]:
    """What all processes of a run must have the same, but not a run that goes on."""
    packages = ("torch", "transformers", "safetensors", "tokenizers", "numpy")
    versions = {package: importlib.metadata.version(package) for package in packages}
    return {
        "lamina": __version__,
        "dtype": dtype_name(base.dtype),
        "kernels": kernel_state(base.model.device, config.train.compile).name,
        "versions": {"python": platform.python_version(), **versions},
    }


def _write_manifest(session: Session, notify: Notify) -> None:
    run, base, before = session.run, session.base, session.run.manifest
    facts = dataclasses.replace(
        facts_of(base, session.template, session.dataset),
        loss=session.loss.facts() or None,
        loss_figures=session.loss.figures() or None,
    )
    places: dict[str, str] = {}
    if before.base is not None:
        _check_unchanged(session, before, facts)
        places = keep_places(run, session.config)
    now = dataclasses.replace(
        facts,
        **shared_facts(base, session.config),
        weights=BaseWeights.from_json(session.coverage.as_json(), base.packing and base.packing.as_json()),
        device=str(base.model.device),
        hardware=Hardware(
            machine=platform.machine(),
            cpu=str(torch.cpu.get_capabilities().get("cpu_name", platform.processor())),
            cores=psutil.cpu_count(logical=False),
            memory_bytes=psutil.virtual_memory().total,
            gpu=torch.cuda.get_device_name(base.model.device) if base.model.device.type == "cuda" else None,
        ),
    )
    _note_other_machine(before, now, notify)
    run.record(**now.as_json(), **places)


def _check_unchanged(session: Session, before: Manifest, now: Manifest) -> None:
    """A run goes on with what it was started with, wherever that now is.

    Raises:
        RunError: Something is not the same; it is named.
    """
    assert before.base is not None and now.base is not None
    template = session.config.data.chat_template
    files_before, files_now = before.data or [], now.data or []
    # Its digest is over what the package tokenizers makes of it, which another version may write otherwise.
    same_package = (before.versions or {}).get("tokenizers") == importlib.metadata.version("tokenizers")
    pairs: list[tuple[str, object, object]] = [
        (f"the base's weights in {session.base.source.folder}", before.base.tensors, now.base.tensors),
        (f"the base's config in {session.base.source.folder}", before.base.config, now.base.config),
        # Runs of the first version have no digest of these two.
        ("the tokenizer", before.tokenizer if same_package else None, now.tokenizer),
        (f"the chat template {template or 'of the model'}", before.chat_template, now.chat_template),
        ("the number of data files", len(files_before), len(files_now)),
        *(
            (f"data file {place.path}", f"{was.sha256}, {was.rows} rows", f"{is_now.sha256}, {is_now.rows} rows")
            for place, was, is_now in zip(session.dataset.report.files, files_before, files_now, strict=False)
        ),
        *((name, was, (now.loss or {}).get(name)) for name, was in (before.loss or {}).items()),
    ]
    changed = [f"{what} ({was} then, {is_now} now)" for what, was, is_now in pairs if was not in (None, is_now)]
    if before.chat_template is None and "data.chat_template" in moved_places(session.run, session.config):
        changed.append(f"the chat template {template} (this run has no digest to tell whether it is the same)")
    if changed:
        raise RunError(
            f"{session.run.path}: cannot go on with the same training, because this changed since it was started: "
            f"{'; '.join(changed)}. Fix: say where the same are now, with model=PATH, data.train=PATH and the "
            "like, or start a new run elsewhere."
        )


def _note_other_machine(before: Manifest, now: Manifest, notify: Notify) -> None:
    """A run that goes on elsewhere is right, but not to the last digit the run that it would have been."""
    was, is_now = _decides_digits(before), _decides_digits(now)
    changes = [
        f"{name} ({was[name]}, now {is_now[name]})" if isinstance(is_now[name], str | int) else name
        for name in was
        if was[name] != is_now[name]
    ]
    if changes:
        notify(
            f"This is not quite where the run was started: its {', '.join(changes)} changed. It goes on correctly, but "
            "its numbers will differ in their last digits from those of an unbroken run."
        )


def _decides_digits(manifest: Manifest) -> dict[str, object]:
    """What a step's last digits depend on beside the configuration; manifests of earlier versions lack some of it."""
    facts = {
        "device": manifest.device,
        "dtype": manifest.dtype,
        "threads": manifest.threads,
        "kernels": manifest.kernels,
        "versions": manifest.versions,
        "hardware": manifest.hardware and dataclasses.replace(manifest.hardware, memory_bytes=0),
    }
    return {name: fact for name, fact in facts.items() if fact is not None}
