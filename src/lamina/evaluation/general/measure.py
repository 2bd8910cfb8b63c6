"""Forgetting, row by row: loss on general text, KL(base || adapter) there, and answers to unrelated prompts.

Loss and KL come from the same engine that answers the tasks. Their rows are pieces of text, so that a gate can test
whether an adapter is worse than another by less than a margin.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F

from lamina.chat.message import Message
from lamina.config.tasks import GenerationSettings
from lamina.data.example import EncodedExample
from lamina.engine.engine import Engine
from lamina.evaluation.forgetting import OWN_TEXTS, general_pieces
from lamina.evaluation.tasks import TaskRow

LOSS = "general_loss"
KL = "general_kl"
SAME = "general_same"
METRICS = (LOSS, KL, SAME)

# Answers to unrelated prompts are read beside each other; a few words tell.
ANSWER = GenerationSettings(max_tokens=48)

# A piece is a row; longer ones would make few rows of much text.
PIECE_TOKENS = 256
MOST_PIECES = 128

_OWN = Path(str(resources.files("lamina.evaluation.general")))


@dataclass(frozen=True)
class General:
    """General text as rows.

    Attributes:
        pieces: Text as tokens of one tokenizer.
        texts: The same as text.
        prompts: Unrelated prompts, as rows that are asked.
    """

    pieces: tuple[EncodedExample, ...]
    texts: tuple[str, ...]
    prompts: tuple[TaskRow, ...]

    def digests(self, tokenizer: str) -> list[str]:
        """A digest for each piece: subjects are paired on it if they have the same tokenizer."""
        return [
            "sha256:" + hashlib.sha256(tokenizer.encode() + piece.input_ids.tobytes()).hexdigest()
            for piece in self.pieces
        ]


def read_general(engine: Engine, path: str | None = None) -> General:
    """Reads general text for an engine's tokenizer.

    Args:
        engine: What will be measured.
        path: A file of the user's, instead of lamina's own texts.

    Raises:
        ConfigError: The file does not exist.
        DataError: It holds no text.
    """
    tokenizer = engine.base.tokenizer
    room = engine.longest
    most = PIECE_TOKENS if room is None else min(PIECE_TOKENS, room)
    source = OWN_TEXTS if path is None else Path(path)
    pieces = general_pieces(source, tokenizer, most, MOST_PIECES)
    texts = tuple(str(tokenizer.decode(piece.input_ids.tolist())) for piece in pieces)
    return General(tuple(pieces), texts, tuple(_prompts()))


def general_digest(path: str | None = None) -> str:
    """SHA-256 of the texts that are measured on."""
    source = OWN_TEXTS if path is None else Path(path)
    content = source.read_bytes() + (_OWN / "prompts.jsonl").read_bytes()
    return "sha256:" + hashlib.sha256(content).hexdigest()


@torch.no_grad()
def measure_general(
    engine: Engine,
    pieces: Sequence[EncodedExample],
    adapters: Sequence[str | None],
    progress: Callable[[int], None] = lambda done: None,
) -> Mapping[str | None, dict[str, list[float]]]:
    """Loss and KL(base || adapter) of each piece, in nats a token.

    Args:
        engine: Holds the base and the adapters.
        pieces: Text as tokens.
        adapters: Names in the engine; None is the bare base, whose KL is left out.
        progress: Called with how many pieces are done.

    Returns:
        For each adapter, its metrics with a number for each piece.
    """
    found: dict[str | None, dict[str, list[float]]] = {name: {} for name in adapters}
    compares = any(name is not None for name in adapters)
    for number, piece in enumerate(pieces, start=1):
        ids = piece.input_ids.tolist()
        positions = list(range(len(ids) - 1))
        targets_N = torch.tensor(ids[1:])
        base_NV = _log_probabilities(engine, ids, positions, None) if compares or None in found else None
        for name, metrics in found.items():
            own_NV = base_NV if name is None else _log_probabilities(engine, ids, positions, name)
            if own_NV is None:
                continue
            metrics.setdefault(LOSS, []).append(float(F.nll_loss(own_NV, targets_N)))
            if name is not None and base_NV is not None:
                divergence = F.kl_div(own_NV, base_NV, reduction="batchmean", log_target=True)
                metrics.setdefault(KL, []).append(max(0.0, float(divergence)))  # rounding may fall below 0
        progress(number)
    return found


def _log_probabilities(engine: Engine, ids: list[int], positions: list[int], adapter: str | None) -> torch.Tensor:
    """(positions, vocabulary), float64: sums over a vocabulary of small terms."""
    return F.log_softmax(engine.logits(ids, positions, adapter).double().cpu(), dim=-1)


def _prompts() -> list[TaskRow]:
    rows = []
    for number, line in enumerate((_OWN / "prompts.jsonl").read_text(encoding="utf-8").splitlines(), start=1):
        prompt = json.loads(line)["prompt"]
        digest = "sha256:" + hashlib.sha256(f"general\0{prompt}".encode()).hexdigest()
        place = f"lamina's unrelated prompts, row {number}"
        rows.append(TaskRow(number, place, (Message("user", prompt),), "", digest, {"prompt": prompt}))
    return rows
