"""`Servers`: which vLLM servers there are, and how they are treated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lamina.server.vllm.client import VllmClient
from lamina.server.vllm.process import VllmProcess


@dataclass(frozen=True)
class Servers:
    """Which servers answer, and how they are treated.

    Attributes:
        clients: One for each.
        processes: Those that lamina started, and ends.
        dtype: What they hold the base in.
        most_rank: The highest rank of adapters that they take; None where it is not known.
        copies: How many of them get each adapter.
        check_seconds: Between two looks at a server.
        adapter_folder: Where copies of adapters are made for them; None for the machine's temporary folder.
        allow_base_mismatch: Load adapters although their lock names another base.
    """

    clients: Sequence[VllmClient]
    processes: Sequence[VllmProcess] = ()
    dtype: str = "bfloat16"
    most_rank: int | None = None
    copies: int = 2
    check_seconds: float = 1.0
    adapter_folder: Path | None = None
    allow_base_mismatch: bool = False
