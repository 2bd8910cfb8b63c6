"""The manifest of a run: its inputs, versions and hardware, and how it ended.

`Run.manifest` reads it, and `Run.record` writes parts of it. Fields of a newer version are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lamina.runs.flat import from_json, to_json
from lamina.runs.summary import Summary


@dataclass(frozen=True)
class BaseFacts:
    """Identifies the base model.

    Attributes:
        ref: A hub id, an alias or a path.
        tensors: Digest of its weights.
        config: Digest of its `config.json`.
    """

    ref: str
    tensors: str
    config: str


@dataclass(frozen=True)
class DataFile:
    """A data file.

    Attributes:
        file: Its name, without folders.
        sha256: Its digest.
        rows: Number of its rows.
    """

    file: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class Hardware:
    """The machine.

    Attributes:
        machine: Architecture, such as `x86_64`.
        cpu: Name of the processor.
        cores: Number of physical cores; None if it is unknown.
        memory_bytes: Size of the main memory.
        gpu: Name of the GPU that is used; None without one.
    """

    machine: str
    cpu: str
    cores: int | None
    memory_bytes: int
    gpu: str | None


@dataclass(frozen=True)
class LeftOut:
    """The weights that `target_modules` leaves without an adapter.

    Attributes:
        stacked: Number of weights in parameters that stack several matrices, by name.
        narrower_than_the_rank: Linear layers whose smaller side is below the rank.
        not_called: Number of modules that do not run on a text, by the outermost of them.
    """

    stacked: dict[str, int]
    narrower_than_the_rank: list[str]
    not_called: dict[str, int]


@dataclass(frozen=True)
class PackedWeights:
    """How much of the base is quantized.

    Attributes:
        weights: Number of weights, without embeddings and head.
        packed: Number of those that are held in 4 or 8 bits.
        left: Number of those that are not, by module.
    """

    weights: int
    packed: int
    left: dict[str, int]


@dataclass(frozen=True)
class BaseWeights:
    """How much of the base the adapter covers.

    Attributes:
        outside_embeddings_and_head: Number of weights that are counted.
        adapted: Number of those in modules that the adapter is on.
        left_out: Those that the adapter leaves out.
        packing: How much is quantized; None for a base that is not.
    """

    outside_embeddings_and_head: int
    adapted: int
    left_out: LeftOut
    packing: PackedWeights | None = None

    @classmethod
    def from_json(cls, coverage: Mapping[str, Any], packing: Mapping[str, Any] | None) -> BaseWeights:
        """Combines what coverage and quantization report as plain data."""
        return from_json(cls, {**coverage, "packing": packing})


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The manifest; fields that are not recorded yet, or were not by an earlier version, are None.

    Attributes:
        lamina: The version that last trained the run.
        status: The last recorded status: `running`, `finished`, `interrupted`, `failed` or `killed`.
        started, finished, ended: Times of the start, of the regular end, and of an interruption or failure.
        error: The error of a failed run.
        path: Path of the run.
        directory: Folder to which relative paths refer.
        base: The base model.
        tokenizer: Digest of the base's tokenizer.
        chat_template: Digest of the chat template.
        data: The data files.
        loss: Digests of what the loss reads beside the data, such as a teacher.
        loss_figures: What the loss took from the training rows.
        threads: Number of torch's threads.
        weights: How much of the base the adapter covers, and how much of it is quantized.
        dtype: Dtype of the base.
        device: Device of the base.
        kernels: Kind of kernels that was used.
        versions: Versions of Python and of packages.
        hardware: The machine.
        summary: Summary of a finished run.
    """

    lamina: str | None = None
    status: str | None = None
    started: str | None = None
    finished: str | None = None
    ended: str | None = None
    error: str | None = None
    path: str | None = None
    directory: str | None = None
    base: BaseFacts | None = None
    tokenizer: str | None = None
    chat_template: str | None = None
    data: list[DataFile] | None = None
    loss: dict[str, str] | None = None
    loss_figures: dict[str, Any] | None = None
    threads: int | None = None
    weights: BaseWeights | None = None
    dtype: str | None = None
    device: str | None = None
    kernels: str | None = None
    versions: dict[str, str] | None = None
    hardware: Hardware | None = None
    summary: Summary | None = None

    def as_json(self) -> dict[str, Any]:
        """Converts to plain data, without fields that are not recorded."""
        return to_json(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Manifest:
        """Reads what `as_json` wrote.

        Raises:
            ValueError: A value is missing or wrong; the message names it.
        """
        summary = content.get("summary")
        return from_json(cls, {**content, "summary": summary and Summary.from_json(summary)})
