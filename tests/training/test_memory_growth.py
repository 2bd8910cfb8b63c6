"""Memory does not grow with the steps, whatever the lengths of the rows."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# 200 steps of a one-layer model with a real vocabulary, in a process of its own; prints resident bytes by step.
_PROGRAM = """
import json, sys
import numpy as np, psutil, torch
from transformers import AutoModelForCausalLM, LlamaConfig
from lamina.config.methods.lora import LoraConfig
from lamina.data.example import EncodedExample
from lamina.compute.fusion import fast_path
from lamina.methods.shared.base import inject
from lamina.structure.head import find_head
from lamina.machine.hardware import bound_product_cache, choose_dtype
from lamina.losses.cross_entropy import CrossEntropy
from lamina.training.step import training_step

shortest, longest = map(int, sys.argv[1:])
torch.set_num_threads(1)
bound_product_cache()
config = LlamaConfig(
    vocab_size=16384, hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, tie_word_embeddings=True,
)
# bfloat16 where the CPU multiplies it; elsewhere its products take minutes.
dtype = choose_dtype("auto", torch.device("cpu"))
model = AutoModelForCausalLM.from_config(config, dtype=dtype).requires_grad_(False).train()
injection = inject(model, LoraConfig(r=8), seed=0)
head, parameters, rng = find_head(model), list(injection.tensors().values()), np.random.default_rng(0)
optimizer = torch.optim.AdamW(parameters)
resident = []
with fast_path(model, longest=longest) as path:
    for step in range(1, 201):
        examples = []
        while sum(map(len, examples)) + longest <= 384:
            length = int(rng.integers(shortest, longest + 1))
            answer = np.arange(length) >= rng.integers(1, length)
            examples.append(EncodedExample(rng.integers(0, 16384, length, dtype=np.int32), answer, row=step))
        parts = (model, head, CrossEntropy(), optimizer, parameters)
        training_step(*parts, [examples], 1e-4, 1.0, step, layout=path.layout)
        resident.append(psutil.Process().memory_info().rss)
print(json.dumps(resident))
"""


@pytest.mark.parametrize(("shortest", "longest"), [(2, 384), (40, 100), (190, 192)])
def test_two_hundred_steps(shortest: int, longest: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(shortest), str(longest)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    resident = json.loads(done.stdout.splitlines()[-1])
    assert max(resident[180:]) <= 1.05 * max(resident[:20])
