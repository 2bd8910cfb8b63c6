"""Shows of the losses over answers on a task whose answers can be checked, and on real prose. Each is one command.

    python benchmarks/preference_shows.py dpo          --out FOLDER   # chosen: the right record, rejected: a wrong one
    python benchmarks/preference_shows.py others       --out FOLDER   # KTO, SimPO and ORPO on the same rows
    python benchmarks/preference_shows.py distillation --out FOLDER   # examples in the teacher's prompt alone
    python benchmarks/preference_shows.py prose --pairs dpo_en_demo.json --labels kto_en_demo.json --out FOLDER

The task is the quickstart's: a request becomes one JSON record, and an answer counts if it is exactly right. `dpo` and
`others` start from an adapter that was fine-tuned on a few rows; ORPO starts from the base, since it fine-tunes itself.
Rejected is what the start itself answers where that is wrong, and else a record with one wrong field, which it would
hardly give: of such records alone, little is learned. Shares have Wilson's 95% interval. What is finished is not run
again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import lamina
from lamina.chat.message import Message
from lamina.chat.template import build_template
from lamina.engine.generate import answer, build_generator
from lamina.engine.generator import ADAPTER, Generator
from lamina.engine.local import LocalGenerator
from lamina.engine.sampling import Sampling
from lamina.evaluation.score import Score
from lamina.evaluation.statistics import Difference, compare
from lamina.files import sha256_file
from lamina.models.load import load_base
from lamina.quickstart.task import (
    INTENTS,
    PRIORITIES,
    PRODUCTS,
    QUEUE_OF_INTENT,
    Request,
    build_task,
    is_valid_record,
)
from lamina.runs import Run

ANSWER_TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("show", choices=SHOWS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--start-rows", type=int, default=240, help="rows that the start adapter is fine-tuned on")
    parser.add_argument("--rows", type=int, default=300, help="pairs, or requests to distill on")
    parser.add_argument("--eval-rows", type=int, default=100, help="held-out pairs, which choose the checkpoint")
    parser.add_argument("--asked-rows", type=int, default=600, help="other held-out requests, which are answered")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--examples", type=int, default=4, help="in the teacher's prompt, for `distillation`")
    parser.add_argument("--losses", default="kto,simpo,orpo", help="for `others`, separated by commas")
    parser.add_argument("--pairs", type=Path, help="of prose, for `prose`")
    parser.add_argument("--labels", type=Path, help="of prose, for `prose`")
    parser.add_argument("--max-length", type=int, default=768, help="for `prose`")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE, for all runs but the start")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = SHOWS[args.show](args)
    if args.json:
        print(json.dumps(rows))
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=160).print(table)


def show_dpo(args: argparse.Namespace) -> list[dict[str, Any]]:
    """DPO from the fine-tuned adapter."""
    files, start = begun(args)
    run = train(args, "dpo", {**preference_settings(args, files), "loss": {"type": "dpo"}}, start)
    return [scored("start", start, files), scored("dpo", run, files, start)]


def show_others(args: argparse.Namespace) -> list[dict[str, Any]]:
    """KTO and SimPO from the fine-tuned adapter, ORPO from the base."""
    files, start = begun(args)
    rows = [scored("start", start, files)]
    for name in args.losses.split(","):
        values = preference_settings(args, files, labels=name == "kto")
        run = train(args, name, {**values, "loss": {"type": name}}, None if name == "orpo" else start)
        rows.append(scored(name, run, files, start))
    return rows


def show_distillation(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The base with examples in its prompt teaches the base without them."""
    task = build_task(0, args.rows + args.examples, args.asked_rows)
    shots = [turn for request in task.train[: args.examples] for turn in request.messages()[1:]]
    prompt = args.out / "examples.json"
    prompt.write_text(json.dumps(shots), encoding="utf-8")
    requests = task.train[args.examples :]
    taught = args.out / "taught.jsonl"
    if not taught.exists():
        said = prompted(args, shots, requests)
        rows = [
            {"messages": [*request.messages()[:-1], {"role": "assistant", "content": text}]}
            for request, text in zip(requests, said, strict=True)
            if text
        ]
        if not rows:
            raise SystemExit("the teacher answered nothing")
        write(taught, rows)
    values = {
        "data": {"train": str(taught), "eval": 0.1, "max_length": 1024},
        "loss": {"type": "distillation", "teacher_prompt": str(prompt)},
        "train": {"num_train_epochs": args.epochs, "warmup_ratio": 0.1},
    }
    run = train(args, "distillation", values)
    expected = [request.answer() for request in task.eval]
    conversations = [[Message(turn["role"], turn["content"]) for turn in r.messages()[:-1]] for r in task.eval]
    generator = build_generator(lamina.load(run.path))
    said = {
        "base": asked(generator, conversations, None),
        f"base with {args.examples} examples (teacher)": prompted(args, shots, task.eval),
        "student, without examples": asked(generator, conversations, ADAPTER),
    }
    rows = []
    for model, texts in said.items():
        pairs = list(zip(texts, expected, strict=True))
        valid = Score(sum(is_valid_record(text) for text in texts), len(texts))
        right = Score(sum(text == wanted for text, wanted in pairs), len(pairs))
        rows.append({"model": model, "exact": shown(right), "valid": shown(valid)})
    return rows


def show_prose(args: argparse.Namespace) -> list[dict[str, Any]]:
    """DPO and KTO on prose: held-out accuracy and margin."""
    if args.pairs is None or args.labels is None:
        raise SystemExit("prose needs --pairs and --labels")
    rows = []
    for name, file in (("dpo", args.pairs), ("kto", args.labels)):
        values = {
            "data": {"train": str(file), "eval": 0.2, "max_length": args.max_length, "max_dropped": 1.0},
            "loss": {"type": name},
            "train": {"num_train_epochs": args.epochs, "warmup_ratio": 0.1, "eval_steps": 10},
        }
        run = train(args, f"prose-{name}", values)
        found = lamina.evaluate(run.path)
        accuracy = found.preference_accuracy
        rows.append(
            {
                "model": name,
                "accuracy": ""
                if accuracy is None
                else shown(Score(round(accuracy.value * accuracy.rows), accuracy.rows)),
                "margin": f"{found.margin or 0:.3f}",
                "loss": f"{found.base_loss:.4f} -> {found.loss:.4f}",
                "rows": found.rows,
            }
        )
    return rows


SHOWS: Mapping[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "dpo": show_dpo,
    "others": show_others,
    "distillation": show_distillation,
    "prose": show_prose,
}


def begun(args: argparse.Namespace) -> tuple[dict[str, Path], Run]:
    """Trains the start, and writes the task's rows: as pairs, as shuffled labels, and held out in both forms."""
    check_same_settings(args)
    task = build_task(0, args.start_rows + args.rows, args.eval_rows + args.asked_rows)
    draw = random.Random(0)
    files = {name: args.out / f"{name}.jsonl" for name in ("start", "pairs", "labels", "eval", "eval_pairs")}
    write(files["start"], [{"messages": request.messages()} for request in task.train[: args.start_rows]])
    write(files["eval"], [{"messages": request.messages()} for request in task.eval[args.eval_rows :]])
    write(files["eval_pairs"], [pair_of(request, None, draw) for request in task.eval[: args.eval_rows]])
    start = train(args, "start", start_settings(args, files))
    requests = task.train[args.start_rows :]
    said = own_answers(start, requests)
    pairs = [pair_of(request, answered, draw) for request, answered in zip(requests, said, strict=True)]
    labels = [
        {"messages": [*pair["prompt"], *pair[side]], "label": side == "chosen"}
        for pair in pairs
        for side in ("chosen", "rejected")
    ]
    draw.shuffle(labels)
    write(files["pairs"], pairs)
    write(files["labels"], labels)
    return files, start


def check_same_settings(args: argparse.Namespace) -> None:
    """Refuses a folder whose finished runs, which would be taken as they are, are of other rows or settings."""
    names = ("model", "start_rows", "rows", "eval_rows", "asked_rows", "epochs", "set")
    settings = {name: getattr(args, name) for name in names}
    path = args.out / "settings.json"
    if not path.exists():
        path.write_text(json.dumps(settings), encoding="utf-8")
    elif json.loads(path.read_text(encoding="utf-8")) != settings:
        raise SystemExit(f"{args.out} has runs with the settings {path.read_text()}. Fix: name another --out.")


def own_answers(start: Run, requests: Sequence[Request]) -> list[str]:
    """What the start answers to requests; asked once, and kept in the run's folder."""
    kept = start.path / f"answers-{len(requests)}.json"
    if not kept.exists():
        turns = [[Message(turn["role"], turn["content"]) for turn in r.messages()[:-1]] for r in requests]
        kept.write_text(json.dumps(asked(build_generator(lamina.load(start.path)), turns, ADAPTER)), encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def pair_of(request: Request, answered: str | None, draw: random.Random) -> dict[str, Any]:
    """The right record as chosen; as rejected, what the start answered if that is wrong, or one with a wrong field."""
    *prompt, right = request.messages()
    wrong = Request(request.text, wrong_record(request.record, draw)).messages()[-1]
    if answered and answered != request.answer():
        wrong = {**wrong, "content": answered}
    return {"prompt": prompt, "chosen": [right], "rejected": [wrong]}


def wrong_record(record: Mapping[str, str | None], draw: random.Random) -> dict[str, str | None]:
    """The record with one field changed to another value that it could have."""
    changed = dict(record)
    field = draw.choice([name for name in ("intent", "product", "order", "priority") if record[name] is not None])
    if field == "intent":
        changed["intent"] = draw.choice([intent for intent in INTENTS if intent != record["intent"]])
        changed["queue"] = QUEUE_OF_INTENT[changed["intent"]]
    elif field == "order":
        letters, _, digits = str(record["order"]).partition("-")
        changed["order"] = f"{letters}-{(int(digits) + draw.randrange(1, 9000)) % 90000 + 10000}"
    else:
        allowed = PRIORITIES if field == "priority" else PRODUCTS
        changed[field] = draw.choice([value for value in allowed if value != record[field]])
    return changed


def start_settings(args: argparse.Namespace, files: Mapping[str, Path]) -> dict[str, Any]:
    """Fine-tuning on a few rows."""
    return {
        "data": {"train": str(files["start"]), "eval": None, "max_length": 256, "packing": False},
        "train": {"num_train_epochs": 2.0, "per_device_train_batch_size": 8, "warmup_ratio": 0.1},
    }


def preference_settings(args: argparse.Namespace, files: Mapping[str, Path], labels: bool = False) -> dict[str, Any]:
    """A run on the pairs, or on the labels."""
    return {
        "data": {
            "train": str(files["labels" if labels else "pairs"]),
            "eval": str(files["eval_pairs"]),
            "max_length": 256,
            "packing": False,
        },
        "train": {
            "num_train_epochs": args.epochs,
            "per_device_train_batch_size": 16 if labels else 8,
            "warmup_ratio": 0.1,
        },
    }


def train(args: argparse.Namespace, name: str, values: dict[str, Any], start: Run | None = None) -> Run:
    """Trains a run in the output folder, or takes the one that is finished there."""
    settings = {**values, "model": args.model, "output_dir": str(args.out / "runs" / name)}
    if start is not None:
        settings["method"] = {"from": str(start.path)}
    config = lamina.load_config(settings, args.set if "loss" in values else [])
    run = Run(Path(config.output_dir))
    if run.status == "finished":
        return run
    print(f"{name} ...", file=sys.stderr, flush=True)
    return lamina.train(config)


def scored(name: str, run: Run, files: Mapping[str, Path], start: Run | None = None) -> dict[str, Any]:
    """Exact answers on held-out requests, beside those of the start, and how often the right record is preferred."""
    right = right_answers(run, files)
    beside = "" if start is None else shown_difference(compare(right, right_answers(start, files)))
    summary = run.summary
    metrics = (summary.eval_metrics if summary else None) or {}
    pairs = len(files["eval_pairs"].read_text(encoding="utf-8").splitlines())
    accuracy, margin = metrics.get("rewards/accuracies"), metrics.get("rewards/margins")
    return {
        "model": name,
        "exact": shown(Score(sum(right), len(right))),
        "over start": beside,
        "preferred": "" if accuracy is None else shown_share(accuracy, pairs),
        "margin": "" if margin is None else f"{margin:.3f}",
        "first loss": f"{summary.train_loss_first:.4f}" if summary and summary.train_loss_first is not None else "",
    }


def right_answers(run: Run, files: Mapping[str, Path]) -> list[int]:
    """1 for each held-out request that a run answers exactly, else 0; asked once, and kept in the run's folder."""
    kept = run.path / f"right-{sha256_file(files['eval'])[:16]}.json"
    if not kept.exists():
        requests = build_requests(files["eval"])
        said = asked(build_generator(lamina.load(run.path)), [turns for turns, _ in requests], ADAPTER)
        right = [int(text == expected) for text, (_, expected) in zip(said, requests, strict=True)]
        kept.write_text(json.dumps(right), encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def prompted(args: argparse.Namespace, shots: Sequence[Mapping[str, str]], requests: Sequence[Request]) -> list[str]:
    """What the bare base answers with examples before each request."""
    base = load_base(args.model)
    generator = LocalGenerator(base.model, build_template(base.tokenizer))
    conversations = []
    for request in requests:
        system, question, _ = request.messages()
        conversations.append([Message(turn["role"], turn["content"]) for turn in (system, *shots, question)])
    return asked(generator, conversations, None)


def asked(generator: Generator, conversations: Sequence[Sequence[Message]], adapter: str | None) -> list[str]:
    """Greedy answers, without white space around them."""
    return [
        text.strip() for text in answer(generator, conversations, Sampling(max_tokens=ANSWER_TOKENS), adapter=adapter)
    ]


def build_requests(file: Path) -> list[tuple[list[Message], str]]:
    """The conversations of a file, each with the answer that is expected."""
    rows = [json.loads(line)["messages"] for line in file.read_text(encoding="utf-8").splitlines()]
    return [([Message(turn["role"], turn["content"]) for turn in row[:-1]], row[-1]["content"]) for row in rows]


def shown_share(share: float, rows: int) -> str:
    """A share of rows with its interval."""
    return shown(Score(round(share * rows), rows))


def shown_difference(difference: Difference) -> str:
    """A paired difference with its interval and p-value."""
    low, high = difference.low or 0.0, difference.high or 0.0
    return f"{difference.difference:+.3f} ({low:+.3f} to {high:+.3f}, p = {difference.p:.2g})"


def shown(score: Score) -> str:
    """A share with its interval."""
    low, high = score.interval
    return f"{score.share:.3f} ({low:.3f} to {high:.3f}, n = {score.rows})"


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
