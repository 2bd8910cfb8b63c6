"""`verify`: proves on the user's model and data that no optimization changes training.

The checks within one model are in `paths.py`, those of files on disk in `artefacts.py`; `rounding.py` computes how
large a difference may be. Everything runs in a temporary folder; the configuration's `output_dir` is not touched.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lamina.config import Config, load_config
from lamina.errors import AdapterError, Interrupted, RunError, StorageError, TrainingError
from lamina.machine.hardware import choose_dtype, default_device, dtype_name
from lamina.machine.quiet import quiet_transformers
from lamina.machine.seeding import kept_generators
from lamina.progress import Notify
from lamina.runs import start_run
from lamina.runs.events import Note, OnEvent
from lamina.training.setup import build_session
from lamina.verification.artefacts import Saved, merged_is_adapter, resumed_is_unbroken, save, saved_is_loaded
from lamina.verification.paths import Paths, fill_adapter
from lamina.verification.processes import many_is_one
from lamina.verification.report import Check, Measure, Skipped, Verification, VerifyCheck
from lamina.verification.sample import SAVE_STEPS, STEPS, cut_down, quickstart_config

# Errors that broken saving, merging or resuming may raise; they are reported as a failed check.
_FAILURES = (AdapterError, RunError, TrainingError)


def verify(
    config: Config | Mapping[str, Any] | str | Path | None = None,
    on_event: OnEvent | None = None,
    *,
    overrides: Iterable[str] = (),
    nproc: int = 1,
) -> Verification:
    """Checks that training is exact for a configuration: its model, method, dtype and a few documents of its data.

    Args:
        config: A `Config`, or what `load_config` takes; by default the quickstart's model and data.
        on_event: Called with a `Note` before what takes a while, and with a `VerifyCheck` as each is made.
        overrides: `key.sub=value` strings laid over the configuration.
        nproc: Compares training in so many processes with training in one.

    Returns:
        A check for each comparison; `passed` if none failed.

    Raises:
        LaminaError: The model, data or configuration cannot be used. A failed comparison does not raise.
    """
    began = time.perf_counter()
    tell = on_event or (lambda event: None)
    checks: list[Check] = []
    with _temporary_folder() as folder, kept_generators(default_device()), quiet_transformers():
        config = quickstart_config(folder, overrides) if config is None else load_config(config, overrides)
        notify = lambda message: tell(Note(len(checks), message=message))  # noqa: E731
        sample = cut_down(config, folder, notify)
        for check in _checks(sample.config, folder, notify, nproc):
            checks.append(check)
            tell(VerifyCheck(len(checks), check=check))
    return Verification(
        model=config.model,
        method=config.method.type,
        dtype=dtype_name(choose_dtype(config.dtype, default_device())),
        documents=sample.documents,
        tokens=sample.tokens,
        checks=checks,
        seconds=time.perf_counter() - began,
    )


def _checks(config: Config, folder: Path, notify: Notify, nproc: int) -> Iterator[Check]:
    saved = yield from _checks_in_memory(config, folder, notify)
    notify("Loading the saved adapter, and merging it ...")
    yield _check(
        "saved = loaded",
        "an adapter before it was saved, and the same loaded on a fresh base: tensors and logits",
        lambda: saved_is_loaded(saved),
    )
    yield _check(
        "merged = adapter",
        "the merged folder in plain transformers, and the adapter on its base: logits of the probe prompts",
        lambda: merged_is_adapter(saved, folder / "merged"),
    )
    notify("Training a few steps without a break, and once more with one ...")
    yield _check(
        "resumed = unbroken",
        f"{STEPS} optimizer steps, and the same cut in step {SAVE_STEPS + 1} and resumed: adapter, optimizer and "
        "method in the last checkpoint",
        lambda: resumed_is_unbroken(config, folder),
    )
    if nproc > 1:
        notify(f"Training a few steps in one process, and once more in {nproc} ...")
        yield _check(
            "many = one",
            f"{STEPS} optimizer steps in one process, and the same in {nproc}, with as many threads each: adapter, "
            "optimizer and method in the last checkpoint",
            lambda: many_is_one(config, folder, nproc),
        )


def _checks_in_memory(config: Config, folder: Path, notify: Notify) -> Generator[Check, None, Saved]:
    """Runs the checks within one model. The model is freed when this function returns, before others are loaded.

    Returns:
        The adapter that was checked, saved to disk.
    """
    session = build_session(config, start_run(config, resume=False), notify)
    fill_adapter(session.injection, config.seed)
    paths = Paths(session)
    for note in paths.notes:
        notify(note)
    yield _check(
        "adapter = formula",
        "every adapter layer, and x (W + delta W)^T + b by torch's own autograd in float32: output and gradients; "
        "dropout off",
        paths.adapter_is_formula,
    )
    notify("Computing the gradient the plain way, and its rounding noise ...")
    yield _check(
        "chunked loss = transformers' loss",
        "lamina's loss over supervised tokens, and transformers' own loss with labels, one document at a time: loss "
        "and gradients; dropout off",
        paths.chunked_is_transformers,
    )
    yield _check(
        "packed = one at a time",
        "documents as training runs them (end to end in one sequence, where that is exact), and one at a time in the "
        "model's own attention: loss and gradients; dropout off",
        paths.packed_is_apart,
    )
    yield _check(
        "accumulation = full batch",
        "an optimizer step over micro-batches of one document, and over one batch of all: loss and gradients; dropout "
        "off",
        paths.accumulated_is_full,
    )
    if session.reference is not None:
        yield _check(
            "precomputed reference = live",
            "the reference's log-probabilities as training reads them, and those that the model gives as its reference "
            "now, one document at a time in its own attention: loss and gradients; dropout off",
            paths.reference_is_live,
        )
    yield _check(
        "checkpointed = not",
        "layers recomputed in the backward (whole, or gate and up alone), and layers that kept their activations: loss "
        "and gradients; dropout as in training, with the same seed",
        paths.checkpointed_is_not,
    )
    yield _check(
        "compiled = eager",
        "fused layers, and transformers' own layer code: loss and gradients; dropout off",
        paths.compiled_is_eager,
    )
    return save(session, folder / "adapter")


def _check(name: str, compared: str, run: Callable[[], list[Measure]]) -> Check:
    try:
        return Check.of(name, compared, run())
    except Skipped as reason:
        return Check.ended(name, compared, str(reason), passed=None)
    except _FAILURES as error:
        return Check.ended(name, compared, str(error), passed=False)
    except Interrupted:
        raise Interrupted("stopped; nothing was left behind") from None


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="lamina-verify-")
    except OSError as error:
        raise StorageError.wrap(error, "the folder for temporary files", "making one") from error
    with folder as name:
        yield Path(name)
