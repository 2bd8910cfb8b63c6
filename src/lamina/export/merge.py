"""`merge`: folds an adapter into its base and proves, on the written folder, that the result is the adapter's model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from lamina import files
from lamina.config import METHOD_CONFIGS
from lamina.errors import AdapterError
from lamina.methods.adapter import read_adapter
from lamina.methods.base import Injection
from lamina.methods.load import Loaded, adapter_folder, load
from lamina.methods.probes import Certificate, record_probes, replay_probes
from lamina.models.machine import dtype_name
from lamina.models.quiet import quiet_transformers
from lamina.quantization import unpack

CERTIFICATE_FILE = "lamina_certificate.json"


@dataclass(frozen=True)
class Merged:
    """A merged model on disk.

    Attributes:
        path: A plain transformers folder.
        certificate: The probes' verdict on that folder.
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
    model: str | None = None,
    dtype: str = "auto",
    allow_base_mismatch: bool = False,
    original_base: bool = False,
    allow_difference: bool = False,
    notify: Callable[[str], None] = lambda message: None,
) -> Merged:
    """Folds an adapter into its base and writes a plain transformers folder.

    The sum is made in float32 and rounded once to the base's dtype. The folder is written aside, loaded again by
    transformers alone, and appears at `out` only if the probes pass on it. Where the base was quantized for training,
    what the adapter is added to are the weights that the quantized ones stand for, since these are what it was trained
    on; they are written in the compute dtype and never quantized again.

    Args:
        path: A run directory or an adapter folder.
        out: Where to write; must not exist yet.
        model: The base; by default the one that the adapter names.
        dtype: `bfloat16` or `float32`; `auto` is what the base was held in when the adapter was trained.
        allow_base_mismatch: Merge into another base than the adapter is locked to.
        original_base: Merge into the weights that the base had before it was quantized. The adapter has not seen these,
            so the probes may not pass.
        allow_difference: Keep the merged model although its probes did not pass; its certificate says so.
        notify: Called with a sentence before anything that takes a while.

    Raises:
        AdapterError: The adapter does not fit, or `out` is taken.
        BaseMismatchError: It is locked to another base.
        CertificateError: The merged model does not give the adapter's logits; nothing is left at `out`.
        StorageError: It could not be written.
    """
    out = Path(out)
    if out.exists():
        raise AdapterError(f"{out}: already exists. Fix: choose another --out, or delete it.")
    lock = read_adapter(adapter_folder(path)).lock
    if dtype == "auto" and lock is not None:
        dtype = lock.base_dtype  # also where the machine would rather compute in another one
    loaded = load(
        path,
        model=model,
        dtype=dtype,
        allow_base_mismatch=allow_base_mismatch,
        original_base=original_base,
        notify=notify,
    )
    probes = loaded.adapter.probes or record_probes(loaded.injection, loaded.template)
    expected = len(loaded.injection.layers)

    notify("Folding the adapter in ...")
    folded = fold_in(loaded.injection)
    unpack(loaded.model)
    with files.new_folder(out) as folder:
        _write_model(loaded, folder)
        notify("Replaying the probes on the written folder ...")
        with quiet_transformers():
            written: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=loaded.base.dtype, local_files_only=True)
        certificate = replay_probes(
            written.to(loaded.model.device).eval(),
            probes,
            subject=f"merged model {out}",
            adapter_digest=loaded.adapter.digest,
            modules_expected=expected,
            modules_matched=folded,
            trained_dtype=lock.base_dtype if lock else dtype_name(loaded.base.dtype),
            notes=loaded.notes,
        )
        if not allow_difference:
            certificate.require()
        files.write_json(folder / CERTIFICATE_FILE, certificate.as_json())
    return Merged(out, certificate)


@torch.no_grad()
def fold_in(injection: Injection) -> int:
    """Puts what each layer adds into its base weight, and the base modules back into the model.

    Returns:
        How many modules were folded in.

    Raises:
        AdapterError: The method adds something that no weight can hold; nothing was changed.
    """
    if not all(layer.merges for layer in injection.layers.values()):
        title = METHOD_CONFIGS[injection.config.type].title
        raise AdapterError(
            f"{title} cannot be folded into the base's weights: no weight can hold what it adds. "
            "Fix: use the adapter as it is."
        )
    model = injection.model
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    adapted = [layer for name, layer in injection.layers.items() if model.get_submodule(name) in ends]
    trained = [{id(tensor) for tensor in layer.adapter_tensors().values()} for layer in adapted]
    for name, layer in injection.layers.items():
        layer.fold_in(model, name)
    if adapted:
        _settle_tie(model, len(adapted) == 2 and not trained[0].isdisjoint(trained[1]))
    return len(injection.layers)


def _settle_tie(model: PreTrainedModel, trained_as_one: bool) -> None:
    """Embedding and head may now have a weight each; saving must not take the one for the other."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or embedding.weight is head.weight:
        return
    if trained_as_one:
        model.tie_weights()  # of the same values, and as one they stay
        return
    model.config.get_text_config().tie_word_embeddings = False
    model.config.tie_word_embeddings = False
    model._tied_weights_keys = None  # pyright: ignore[reportAttributeAccessIssue]
    model.all_tied_weights_keys = {}


def _write_model(loaded: Loaded, folder: Path) -> None:
    tokenizer = loaded.tokenizer
    if loaded.template.name != "model":
        tokenizer.chat_template = loaded.template.source
    loaded.model.config._name_or_path = ""
    with quiet_transformers():
        loaded.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
