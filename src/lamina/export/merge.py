"""`merge`: merges an adapter into its base, and proves on the saved folder that it has the adapter's outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from lamina import files
from lamina.adapters.adapter import read_adapter
from lamina.adapters.certificate import Certificate, replay_on_model
from lamina.adapters.load import Loaded, adapter_folder, load
from lamina.adapters.logits import model_logits
from lamina.adapters.probes import Probe, record_again
from lamina.compute.weights import unpack
from lamina.engine.generate import build_generator
from lamina.engine.local import LocalGenerator
from lamina.engine.probes import record_probes
from lamina.errors import AdapterError
from lamina.export.answers import AdapterAnswers, answer_prompts, check_answers, longest_answer
from lamina.export.fold import Folds, check_merges, fold_and_save, fold_in
from lamina.machine.hardware import dtype_name
from lamina.machine.pages import drop_file_pages
from lamina.machine.quiet import quiet_transformers
from lamina.models.fingerprint import weight_files
from lamina.models.folder import Ends, complete_folder
from lamina.models.remote_code import is_allowed
from lamina.progress import Notify

CERTIFICATE_FILE = "lamina_certificate.json"


@dataclass(frozen=True)
class Merged:
    """A merged model on disk.

    Attributes:
        path: A plain transformers folder.
        certificate: The result of replaying the probes on that folder.
    """

    path: Path
    certificate: Certificate

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"path": str(self.path), "certificate": self.certificate.as_json()}


def merge(
    path: str | Path,
    out: str | Path,
    *,
    model: str | Path | None = None,
    dtype: str = "auto",
    allow_base_mismatch: bool = False,
    original_base: bool = False,
    allow_difference: bool = False,
    notify: Notify = lambda message: None,
) -> Merged:
    """Merges an adapter into its base and saves a plain transformers folder.

    The sum is computed in float32 and rounded once to the base's dtype. The folder is written to a temporary place,
    loaded again by transformers alone, and moved to `out` only if the probes pass on it. If the base was quantized for
    training, the adapter is added to the dequantized weights, since it was trained on these; they are saved in the
    compute dtype and not quantized again.

    Args:
        path: A run directory or an adapter folder.
        out: The folder to write, which must not exist yet.
        model: The base; by default the one that the adapter names.
        dtype: `bfloat16`, `float16` or `float32`; `auto` is the base's dtype when the adapter was trained.
        allow_base_mismatch: Merge into another base than the adapter is locked to.
        original_base: Merge into the base's original weights from before it was quantized. The adapter was not trained
            on these, so the probes may fail.
        allow_difference: Keep the merged model even if its probes fail; the certificate records it.
        notify: Called with a message before anything that takes a while.

    Raises:
        AdapterError: The adapter does not fit the base, or `out` exists.
        BaseMismatchError: The adapter is locked to another base.
        CertificateError: The merged model does not have the adapter's logits; nothing is left at `out`.
        StorageError: The folder could not be written.
    """
    out = _require_free(Path(out))
    loaded = load(
        path,
        model=model,
        dtype=_dtype_of_training(path) if dtype == "auto" else dtype,
        allow_base_mismatch=allow_base_mismatch,
        original_base=original_base,
        notify=notify,
    )
    check_merges(loaded.injection)
    expected = _expect(loaded, allow_difference)
    with files.new_folder(out, replace=False) as folder:
        folds = _write_merged(loaded, folder, notify)
        notify("Replaying the probes on the saved folder ...")
        certificate = _certify(f"merged model {out}", folder, loaded, folds, expected, allow_difference)
        files.write_json(folder / CERTIFICATE_FILE, certificate.as_json())
    return Merged(out, certificate)


def merge_and_unload(
    source: str | Path | Loaded, *, allow_difference: bool = False, **settings: Any
) -> PreTrainedModel:
    """Merges an adapter into its base in memory.

    Args:
        source: A run directory, an adapter folder, or an adapter that is loaded, which cannot be used afterwards.
        allow_difference: Return the model even if the adapter's probes fail on it.
        settings: For a path: the other arguments of `load`.

    Returns:
        A plain model of transformers with dense weights, in evaluation mode.

    Raises:
        AdapterError: The adapter cannot be loaded, or is no change of weights.
        CertificateError: The merged model does not have the adapter's logits.
    """
    loaded = source if isinstance(source, Loaded) else load(source, **settings)
    check_merges(loaded.injection)
    probes = _probes(loaded, allow_difference)
    folds = fold_in(loaded.injection)
    unpack(loaded.model)
    certificate = replay_on_model(
        loaded.model,
        probes,
        subject=f"{loaded.adapter.path}, merged",
        adapter_digest=loaded.adapter.digest,
        modules_expected=len(loaded.injection.layers),
        modules_matched=folds.modules,
        trained_dtype=dtype_name(loaded.base.dtype),
        update_kept=folds.kept,
    )
    if not allow_difference:
        certificate.require("load it with dtype='float32', or allow the difference")
    return loaded.model


def _require_free(out: Path) -> Path:
    if out.exists():
        raise AdapterError(f"{out}: already exists. Fix: choose another --out, or delete it.")
    return out


def _dtype_of_training(path: str | Path) -> str:
    """Returns the base's dtype when the adapter was trained, also if the machine's default is another one."""
    lock = read_adapter(adapter_folder(path)).lock
    return "auto" if lock is None else lock.base_dtype


@dataclass(frozen=True)
class _Expected:
    """What the adapter gives before it is merged.

    Attributes:
        probes: With its logits.
        answers: To the probes' prompts.
        device: Where both were computed; merging may leave parts of the model without one.
    """

    probes: list[Probe]
    answers: AdapterAnswers
    device: torch.device


def _expect(loaded: Loaded, allow_difference: bool) -> _Expected:
    probes = _probes(loaded, allow_difference)
    prompts = [probe.prompt for probe in probes if probe.prompt]
    answers = answer_prompts(build_generator(loaded), prompts, longest_answer(loaded.model))
    return _Expected(probes, answers, loaded.model.device)


def _write_merged(loaded: Loaded, folder: Path, notify: Notify) -> Folds:
    """Merges the adapter into the model in memory, and writes all of a plain transformers folder."""
    lock, ends, was_tied = loaded.adapter.lock, Ends.of(loaded.model), _is_tied(loaded.model)
    notify("Merging the adapter ...")
    folds = fold_and_save(loaded.injection, folder)
    changes: dict[str, Any] = {"dtype": dtype_name(loaded.base.dtype), "quantization_config": None}
    if was_tied and not _is_tied(loaded.model):
        changes["tie_word_embeddings"] = False
    added = loaded.base.added
    if added is not None:
        changes["vocab_size"] = added.rows
    complete_folder(
        folder,
        loaded.base.source.folder,
        ends,
        loaded.template,
        changes,
        own_template=True,
        own_tokens=added is not None,
        own_stop=lock is not None and lock.stop_token == loaded.template.stop_token,
        notify=notify,
    )
    return folds


def _certify(
    subject: str, folder: Path, loaded: Loaded, folds: Folds, expected: _Expected, allow_difference: bool
) -> Certificate:
    """Loads the folder with transformers alone, and compares its logits and answers with the adapter's.

    Raises:
        CertificateError: They differ, and no difference is allowed.
    """
    with quiet_transformers():
        written: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=loaded.base.dtype, local_files_only=True, trust_remote_code=is_allowed(folder)
        )
    written = written.to(expected.device).eval()
    with _layer_by_layer(written, folder), quiet_transformers():
        certificate = replay_on_model(
            written,
            expected.probes,
            subject=subject,
            adapter_digest=loaded.adapter.digest,
            modules_expected=len(loaded.injection.layers),
            modules_matched=folds.modules,
            trained_dtype=dtype_name(loaded.base.dtype),
            notes=loaded.notes,
            update_kept=folds.kept,
        )
        if lost := folds.lost_in(written):
            certificate = certificate.failed(f"{len(lost)} weights are not as they were written (first: {lost[0]})")
        if certificate.passed or allow_difference:
            alone = LocalGenerator(written, loaded.template, template_stops=False, use_kernels=False)
            logits, tolerance = model_logits(written), certificate.tolerance
            seen = check_answers(folder, alone, logits, loaded.template, expected.answers, tolerance)
            certificate = seen.added_to(certificate)
    return certificate if allow_difference else certificate.require(_fix(certificate))


def _probes(loaded: Loaded, allow_difference: bool) -> list[Probe]:
    """Returns the adapter's probes in the dtype it is loaded in, which may differ from that of the recording."""
    lock = loaded.adapter.lock
    if lock is None or not loaded.adapter.probes:
        return record_probes(loaded.injection, loaded.template)
    if lock.base_dtype == dtype_name(loaded.base.dtype):
        return loaded.adapter.probes
    certificate = loaded.certify()
    if not allow_difference:
        certificate.require()
    return record_again(loaded.injection, loaded.adapter.probes)


def _fix(certificate: Certificate) -> str:
    way = "use the adapter without merging it"
    if certificate.is_rounded_away and certificate.dtype != "float32":
        way = "merge with --dtype float32, which does not round it away"
    return f"{way}, or keep the merged model anyway with --allow-difference"


def _is_tied(model: PreTrainedModel) -> bool:
    return bool(model.config.get_text_config().tie_word_embeddings)


@contextlib.contextmanager
def _layer_by_layer(model: PreTrainedModel, folder: Path) -> Iterator[None]:
    """Inside the block, evicts the pages of the folder's files after each layer, so that memory stays small."""
    paths = weight_files(folder)
    layers = [layer for module in model.modules() if isinstance(module, nn.ModuleList) for layer in module]
    hooks = [layer.register_forward_hook(lambda *_: drop_file_pages(paths)) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
