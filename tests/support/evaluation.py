"""What the tests of evaluation and gate share: two adapters of one base, and rows of which one knows the answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lamina
from tests.support.training import WORDS, settings

# Tokens of an answer; short, so that what a tiny model writes is soon over.
MOST_TOKENS = 6


@dataclass(frozen=True)
class Pair:
    """Two adapters of one base.

    Attributes:
        folder: Where everything is.
        model: The base.
        strong, weak: Runs; most references of `task` are what the first answers.
        task: A task's file.
    """

    folder: Path
    model: Path
    strong: Path
    weak: Path
    task: Path

    def gate(self, text: str, name: str = "gate.yaml") -> Path:
        """Writes a gate beside the task."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path


def build_pair(folder: Path, model: Path, rows: int = 60, lost: int = 6) -> Pair:
    """Trains two adapters, and writes rows whose references are the first one's answers, but for `lost` of them."""
    runs = {}
    for name, steps, rate in (("strong", 40, 0.03), ("weak", 6, 0.01)):
        changes: dict[str, Any] = {"max_steps": steps, "learning_rate": rate, "eval_steps": steps, "save_steps": steps}
        runs[name] = lamina.train(settings(folder, model, name, train=changes)).path
    prompts = [f"ask {number} {WORDS[number % 12]} of {WORDS[(7 * number) % 12]}" for number in range(rows)]
    known = lamina.generate(runs["strong"], prompts, max_new_tokens=MOST_TOKENS)
    other = lamina.generate(runs["weak"], prompts, max_new_tokens=MOST_TOKENS)
    written = [
        {
            "prompt": prompt,
            "completion": (theirs if number < lost else ours).strip() or "?",
            "kind": "odd" if number % 2 else "even",
            "group": number // 3,
        }
        for number, (prompt, ours, theirs) in enumerate(zip(prompts, known, other, strict=True))
    ]
    write_jsonl(folder / "asked.jsonl", written)
    return Pair(folder, model, runs["strong"], runs["weak"], write_task(folder / "task.yaml"))


def write_task(path: Path, data: str = "asked.jsonl", **changes: Any) -> Path:
    """Writes a task of one scorer."""
    settings = {"name": path.stem, "data": data, "scorers": ["exact_match"]}
    settings |= {"generation": {"max_tokens": MOST_TOKENS}, **changes}
    path.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def stored_row(number: int, scores: dict[str, dict[str, float]], **more: Any) -> dict[str, Any]:
    """A row as an evaluation stores it."""
    row = {"row": number, "digest": f"sha256:{number:064x}", "question": f"q{number}", "reference": f"r{number}"}
    return {**row, "columns": {}, "cluster": None, "leaked": {}, "answers": {}, "scores": scores, **more}
