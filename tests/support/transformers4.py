"""Loads folders with transformers 4 and says what it made of them. Run by `test_transformers4.py` in its own process.

python transformers4.py LIBRARIES IDS PROMPT FOLDER ... > answers
"""

from __future__ import annotations

import json
import sys

sys.path.insert(0, sys.argv[1])

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer


def ask(folder: str, ids: list[int], prompt: str) -> dict[str, object]:
    """Logits, and the greedy answer to a prompt, by nothing but the folder's own files."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # By itself 4 runs Gemma 2 through an attention without its soft cap, the base as well.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation="eager").eval()
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].float()
        answer = model.generate(**inputs, max_new_tokens=80, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return {
        "dtype": str(model.dtype),
        "logits": logits.tolist(),
        "answer": tokenizer.decode(answer, skip_special_tokens=True),
        "tokens": len(answer),
        "stop": tokenizer.eos_token,
    }


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    asked, text = json.loads(sys.argv[2]), sys.argv[3]
    answers = {folder: ask(folder, asked, text) for folder in sys.argv[4:]}
    print(json.dumps({"version": transformers.__version__, "answers": answers}))
