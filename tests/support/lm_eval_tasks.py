"""Tasks of lm-eval in the form of published ones, made of local files, with questions of our own.

`local_mmlu` offers letters, `local_arc` and `local_hellaswag` texts, `local_gsm8k` asks for a written answer that two
filters read, and `local_text` is read as a whole.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

TASKS = ("local_mmlu", "local_arc", "local_hellaswag", "local_gsm8k", "local_text")

_THINGS = ("copper wire", "a glass of water", "the old lighthouse", "a red apple", "wet sand", "a paper boat")
_PLACES = ("in the garden", "near the harbor", "on the third floor", "behind the school", "under the bridge")
_VERBS = ("melts", "floats slowly away", "falls down", "stays where it is", "turns green", "breaks into small parts")


def write_tasks(
    folder: Path, rows: int = 12, gsm8k: Sequence[Mapping[str, Any]] | None = None, words: int = 12
) -> Path:
    """Writes descriptions and data of all tasks.

    Args:
        folder: Where to.
        rows: Of each task.
        gsm8k: Rows with `question` and `answer` for that task, instead of made ones.
        words: About how long questions are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(7)
    made = [_question(rng, words) for _ in range(rows + 4)]
    mmlu = [{"question": q, "choices": c, "answer": right} for q, c, right in made]
    arc = [
        {"question": q, "choices": {"text": c, "label": list("ABCD")}, "answerKey": "ABCD"[right]}
        for q, c, right in made
    ]
    hellaswag = [{"query": q, "endings": [f"and then it {each}." for each in c], "label": n} for q, c, n in made]
    sums = gsm8k or [_sum(rng) for _ in range(rows)]
    texts = [{"page": " ".join(q for q, _, _ in made[: number % 5 + 1])} for number in range(min(rows, 6))]
    for name, data in (("mmlu", mmlu), ("arc", arc), ("hellaswag", hellaswag), ("gsm8k", sums), ("text", texts)):
        few = list(data[-4:])
        kept = list(data[:rows])
        for split, part in (("test", kept), ("dev", few)):
            lines = "".join(json.dumps(row) + "\n" for row in part)
            (folder / f"{name}_{split}.jsonl").write_text(lines, encoding="utf-8")
        files = {split: str(folder / f"{name}_{split}.jsonl") for split in ("test", "dev")}
        task = {**_COMMON, "task": f"local_{name}", "dataset_kwargs": {"data_files": files}, **_OWN[name]}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False), encoding="utf-8")
    return folder


def _question(rng: random.Random, words: int) -> tuple[str, list[str], int]:
    parts = [f"{rng.choice(_THINGS)} {rng.choice(_PLACES)}" for _ in range(max(1, words // 6))]
    return f"What happens to {', then to '.join(parts)}?", rng.sample(_VERBS, 4), rng.randrange(4)


def _sum(rng: random.Random) -> dict[str, str]:
    a, b = rng.randrange(2, 60), rng.randrange(2, 60)
    question = f"Ann has {a} stamps and gets {b} more. How many has she?"
    return {"question": question, "answer": f"{a} + {b} = {a + b}\n#### {a + b}"}


_COMMON = {
    "dataset_path": "json",
    "test_split": "test",
    "fewshot_split": "dev",
    "metadata": {"version": 1.0},
}
_SHARES = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
_WORDS = [
    {"metric": name, "aggregation": how, "higher_is_better": False}
    for name, how in (("word_perplexity", "weighted_perplexity"), ("bits_per_byte", "bits_per_byte"))
]
_OWN: dict[str, dict[str, Any]] = {
    "mmlu": {
        "output_type": "multiple_choice",
        "description": "The following are multiple choice questions (with answers).\n\n",
        "doc_to_text": "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\n"
        "D. {{choices[3]}}\nAnswer:",
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "answer",
        "num_fewshot": 2,
        "fewshot_config": {"sampler": "first_n"},
        "metric_list": _SHARES[:1],
    },
    "arc": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices.text}}",
        "doc_to_target": "{{choices.label.index(answerKey)}}",
        "metric_list": _SHARES,
    },
    "hellaswag": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "endings",
        "doc_to_target": "{{label}}",
        "metric_list": _SHARES,
    },
    "gsm8k": {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "num_fewshot": 1,
        "generation_kwargs": {
            "until": ["Question:", "</s>", "<|im_end|>"],
            "do_sample": False,
            "temperature": 0.0,
            "max_gen_toks": 48,
        },
        "filter_list": [
            {
                "name": "strict-match",
                "filter": [{"function": "regex", "regex_pattern": r"#### (\-?[0-9\.\,]+)"}, {"function": "take_first"}],
            },
            {
                "name": "flexible-extract",
                "filter": [
                    {"function": "regex", "group_select": -1, "regex_pattern": r"(-?[$0-9.,]{2,})|(-?[0-9]+)"},
                    {"function": "take_first"},
                ],
            },
        ],
        "metric_list": [
            {
                "metric": "exact_match",
                "aggregation": "mean",
                "higher_is_better": True,
                "ignore_case": True,
                "ignore_punctuation": False,
                "regexes_to_ignore": [",", r"\$", "(?s).*#### ", r"\.$"],
            }
        ],
    },
    "text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "page",
        "metric_list": _WORDS,
    },
}
