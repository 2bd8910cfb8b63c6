"""What the gate says of three adapters on 30, 100 and 400 rows: one of part of the data, one of all, one broken.

    python benchmarks/gate_rows.py [--folder DIR] [--rows 30 100 400] [--json]

Trains the quickstart's task three times on SmolLM2-135M: `part` on 85% of the rows, `all` on all of them, and `broken`
on all with one field of every record wrong. Then asks the gate for each of three promotions, with the first N unseen
rows. Training takes a few minutes an adapter; with --folder, adapters that are there are used again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import lamina
from lamina.quickstart.settings import quickstart_settings, write_rows
from lamina.quickstart.task import Request, build_task

TRAIN_ROWS = 680
PART = 0.85
# Candidate and champion.
PAIRS = (("all", "part"), ("all", "broken"), ("broken", "part"))


def train(folder: Path, model: str, name: str, rows: list[Request]) -> Path:
    """Trains an adapter, unless it is there."""
    run = folder / name
    if not (run / "adapter" / "lamina.json").is_file():
        print(f"training {name} on {len(rows)} rows ...", file=sys.stderr)
        data = folder / f"{name}.jsonl"
        write_rows(data, rows)
        lamina.train(quickstart_settings(model, data, run, seed=0))
    return run


def broken(request: Request) -> Request:
    """The same request, with a priority that is always normal."""
    return replace(request, record={**request.record, "priority": "normal"})


def measure(folder: Path, model: str, counts: list[int]) -> list[dict[str, Any]]:
    """Trains what is missing, and applies the gate to each pair and number of rows."""
    task = build_task(train_rows=TRAIN_ROWS, eval_rows=max(counts))
    runs = {
        "part": train(folder, model, "part", task.train[: round(PART * TRAIN_ROWS)]),
        "all": train(folder, model, "all", task.train),
        "broken": train(folder, model, "broken", [broken(request) for request in task.train]),
    }
    unseen = folder / "unseen.jsonl"
    write_rows(unseen, task.eval)
    found = []
    for candidate, champion in PAIRS:
        for count in counts:
            file = folder / f"records-{count}.yaml"
            settings = {"name": "records", "data": str(unseen), "scorers": ["exact_match"], "limit": count}
            file.write_text(json.dumps({**settings, "generation": {"max_tokens": 72}}), encoding="utf-8")
            result = lamina.run_gate(
                runs[candidate],
                runs[champion],
                {"better": [{"task": str(file), "metric": "exact_match"}], "certificate": "required"},
                out=folder / "evaluations" / f"{candidate}-{champion}-{count}",
                notify=lambda message: print(message, file=sys.stderr),
            )
            better = next(check for check in result.as_json()["checks"] if check["name"].startswith("better"))
            found.append({"names": (candidate, champion), "rows": count, **result.as_json(), "of": better})
            print(f"{candidate} for {champion}, {count} rows: {result.as_json()['verdict']}", file=sys.stderr)
    return found


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[30, 100, 400])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as aside:
        folder = (given.folder or Path(aside)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        found = measure(folder, given.model, given.rows)
    if given.json:
        print(json.dumps(found, indent=2))
        return
    table = Table("candidate", "champion", "rows", "difference", "95% interval", "verdict", "rows needed")
    for one in found:
        check = one["of"]
        interval = f"{check['low']:+.3f} to {check['high']:+.3f}"
        needed = "" if check["rows_needed"] is None else f"{check['rows_needed']:,}"
        cells = (*one["names"], str(one["rows"]), f"{check['value']:+.3f}", interval)
        table.add_row(*cells, one["verdict"].replace("_", " "), needed)
    Console().print(table)


if __name__ == "__main__":
    main()
