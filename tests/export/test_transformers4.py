"""Merged folders in the newest transformers 4: the adapter's logits, its answers, and a stop where it stops.

`make transformers4` fetches its wheels and runs these tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lamina
from lamina.engine.generate import generate
from tests.support.hub_bases import FAMILIES, write_base
from tests.support.models_zoo import build_model, build_tokenizer

LIBRARIES = Path(os.environ.get("TRANSFORMERS_4", Path(sys.prefix) / "transformers4")).resolve()
IDS = list(range(3, 203))
PROMPT = "say green"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (LIBRARIES / "transformers").is_dir(),
        reason=f"{LIBRARIES} holds no transformers 4: run `make transformers4`",
    ),
]


def ask(*folders: Path) -> dict[str, dict]:
    """What transformers 4 makes of folders."""
    command = [
        sys.executable,
        str(Path(__file__).parents[1] / "support" / "transformers4.py"),
        str(LIBRARIES),
        json.dumps(IDS),
        PROMPT,
    ]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run([*command, *map(str, folders)], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.strip().splitlines()[-1])
    assert found["version"].startswith("4.")
    return found["answers"]


def train(base: Path, path: Path, **more: object) -> lamina.Run:
    rows = [{"prompt": f"say {word}", "completion": f"word {word} it is"} for word in ["red", "blue", "green", "black"]]
    (path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {
        "model": str(base),
        "data": {"train": str(path / "rows.jsonl"), "eval": None, "max_length": 128, **more},
        "dtype": "float32",
        "train": {"max_steps": 120, "learning_rate": 1e-2},
        "output_dir": str(path / "run"),
    }
    return lamina.train(settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_folder_is_the_same_model_and_stops(family: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", family)
    run = train(base, tmp_path)
    merged = lamina.merge(run.path, tmp_path / "merged")
    loaded = lamina.load(run.path)
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.tensor([IDS])).logits[0]
    (answer,) = generate(loaded, [PROMPT])
    assert answer == "word green it is"
    found = ask(merged.path)[str(merged.path)]
    torch.testing.assert_close(torch.tensor(found["logits"]), logits, rtol=0, atol=merged.certificate.tolerance)
    assert found["dtype"] == "torch.float32"
    assert found["stop"] == "<|im_end|>"
    assert found["answer"] == answer
    assert found["tokens"] == len(answer) + 1


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "mistral", "phi"])
def test_of_a_base_in_the_words_of_transformers_5_alone(family: str, tmp_path: Path) -> None:
    changes = {"rope_parameters": {"rope_theta": 30000.0, "rope_type": "default"}}
    if family == "gemma3":
        local = {"rope_theta": 20000.0, "rope_type": "default"}
        changes = {"rope_parameters": {"full_attention": changes["rope_parameters"], "sliding_attention": local}}
    if family == "phi":
        changes["rope_parameters"]["partial_rotary_factor"] = 0.5
    base = tmp_path / "base"
    build_model(family, vocab_size=264, **changes).save_pretrained(base)
    tokenizer = build_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(base)
    run = train(base, tmp_path)
    merged = lamina.merge(run.path, tmp_path / "merged")
    with torch.no_grad():
        logits = lamina.load(run.path).model(input_ids=torch.tensor([IDS])).logits[0]
    found = ask(merged.path)[str(merged.path)]
    torch.testing.assert_close(torch.tensor(found["logits"]), logits, rtol=0, atol=merged.certificate.tolerance)
    assert (found["stop"], found["answer"]) == ("<|im_end|>", "word green it is")


def test_a_template_of_the_users_goes_along(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", template=None)
    run = train(base, tmp_path, chat_template="chatml")
    merged = lamina.merge(run.path, tmp_path / "merged")
    found = ask(merged.path)[str(merged.path)]
    assert (found["stop"], found["answer"]) == ("<|im_end|>", "word green it is")
    assert found["tokens"] == len("word green it is") + 1
