"""What the tests of losses over answers share: small files of pairs and labels, and examples made of token ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lamina.data.example import EncodedExample
from lamina.losses.pairs import REFERENCE, Pairs
from lamina.runs import Run
from lamina.runs.events import Step
from tests.support.training import WORDS, settings


def write_pairs(path: Path, count: int = 24) -> Path:
    """Prompts that name two words; the chosen answer swaps them, the rejected one repeats them in their order."""
    rows = [
        {
            "prompt": f"{WORDS[i % 12]} {WORDS[(5 * i + 1) % 12]} {i}",
            "chosen": f"{WORDS[(5 * i + 1) % 12]} {WORDS[i % 12]}" + "!" * (i % 3),
            "rejected": f"{WORDS[i % 12]} {WORDS[(5 * i + 1) % 12]}" + "?" * (i % 4),
            "margin": i % 2,
        }
        for i in range(count)
    ]
    return write_lines(path, rows)


def write_labels(path: Path, count: int = 24) -> Path:
    """The same answers with a label each, the undesirable ones first."""
    pairs = [json.loads(line) for line in write_pairs(path, count).read_text(encoding="utf-8").splitlines()]
    rows = [
        {"prompt": pair["prompt"], "completion": pair[name], "label": name == "chosen"}
        for name in ("rejected", "chosen")
        for pair in pairs
    ]
    return write_lines(path, rows)


def preference_settings(folder: Path, model: Path, loss: dict[str, Any], name: str, **changes: Any) -> dict[str, Any]:
    """A run on pairs, or on labels for kto, without dropout."""
    rows = folder / f"{'labels' if loss['type'] == 'kto' else 'pairs'}.jsonl"
    if not rows.exists():
        (write_labels if loss["type"] == "kto" else write_pairs)(rows)
    values = settings(folder, model, name, loss=loss, data={"train": str(rows)}, method={"lora_dropout": 0.0})
    values["train"] = {**values["train"], "max_steps": 8, "learning_rate": 2e-2, "gradient_accumulation_steps": 2}
    for section, change in changes.items():
        values[section] = {**values.get(section, {}), **change} if isinstance(change, dict) else change
    return values


def losses_of(run: Run) -> list[float]:
    """The loss of each step."""
    return [step.loss for step in run.events(Step)]


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def example_of(
    sequences: Sequence[tuple[int, int]], row: int = 1, values: Mapping[str, float] | None = None, seed: int = 0
) -> EncodedExample:
    """An example of random tokens.

    Args:
        sequences: Tokens of the prompt and of the answer of each sequence; sequences share their first prompt tokens.
        row: Its number.
        values: Its values.
        seed: Seed of the tokens.
    """
    generator = np.random.default_rng([seed, row])
    prompt = generator.integers(3, 150, size=256)
    ids, supervised = [], []
    for before, after in sequences:
        ids.append(np.concatenate([prompt[:before], generator.integers(3, 150, size=after)]))
        supervised.append(np.repeat([False, True], [before, after]))
    lengths = tuple(len(one) for one in ids)
    return EncodedExample(
        np.concatenate(ids).astype(np.int32),
        np.concatenate(supervised),
        row,
        several=lengths if len(lengths) > 1 else (),
        values=dict(values or {}),
    )


def pairs_of(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    lengths: Sequence[tuple[int, int]],
    reference: Sequence[tuple[float, float]] | None = None,
    **values: Sequence[float],
) -> Pairs:
    """Pairs with given log-probabilities, lengths, and log-probabilities of the reference."""
    examples = []
    for place, (of_chosen, of_rejected) in enumerate(lengths):
        own = {name: each[place] for name, each in values.items()}
        if reference is not None:
            own |= {REFERENCE.format(number): reference[place][number] for number in range(2)}
        examples.append(example_of([(3, of_chosen), (3, of_rejected)], row=place + 1, values=own))
    chosen_lengths, rejected_lengths = torch.tensor(lengths, dtype=chosen.dtype).unbind(1)
    return Pairs(chosen, rejected, chosen_lengths, rejected_lengths, examples)
