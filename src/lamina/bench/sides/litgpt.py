"""LitGPT's LoRA fine-tuning: its model, its precision plug-in and the step of its `finetune/lora.py`.

In bfloat16 its adapters and their optimizer state are bfloat16 too (`bf16-true`); its other choice, `bf16-mixed`, would
hold the base in float32.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import AutoConfig

from lamina.bench.job import Job
from lamina.bench.meter import Meter
from lamina.bench.optional import optional
from lamina.bench.sides._common import padded_micro_batches, start_like_lamina
from lamina.errors import BenchError

ABOUT = "LitGPT's LoRA step: rows of a step sorted by length, padded on the right, head in chunks, bf16-true"
REQUIRES = ("litgpt", "lightning")
NEEDS_CUDA = False

# As for the bare peft loop.
MICRO_BATCHES = 1

# Tokens whose logits are made at once, as in LitGPT's own script.
HEAD_CHUNK = 128


def run(job: Job, meter: Meter) -> dict[str, Any]:
    """Trains as `litgpt finetune_lora` does.

    Raises:
        BenchError: The base is no Llama; others are named differently in LitGPT.
    """
    lightning, lora, utils = optional("lightning"), optional("litgpt.lora"), optional("litgpt.utils")
    precision = {"bfloat16": "bf16-true", "float32": "32-true"}[job.dtype]
    fabric = lightning.Fabric(devices=1, accelerator=meter.device.type, precision=precision)
    fabric.seed_everything(job.seed, verbose=False)
    config = _config(job, lora.Config)
    with fabric.init_module():
        model = lora.GPT(config)
    lora.mark_only_lora_as_trainable(model)
    model.load_state_dict(_weights(job, config), strict=False)
    start_like_lamina(model, job)
    model.max_seq_length = max(len(example) for batch in job.batches for example in batch)
    model = fabric.setup_module(model)
    optimizer = utils.instantiate_torch_optimizer(
        "AdamW", [p for p in model.parameters() if p.requires_grad], lr=job.learning_rate, weight_decay=0.0, fused=True
    )
    optimizer = fabric.setup_optimizers(optimizer)
    model.train()
    meter.loaded(model)
    for batch in job.batches:
        supervised = sum(example.supervised_tokens for example in batch)
        meter.begin()
        total = 0.0
        for part in padded_micro_batches(batch, fabric.device, MICRO_BATCHES):
            logits = model(part.input_ids, lm_head_chunk_size=HEAD_CHUNK)
            logits[-1] = logits[-1][..., :-1, :]
            loss = utils.chunked_cross_entropy(logits, part.labels[..., 1:])
            # Its loss is the micro-batch's mean; weighted so that the step's is the mean over all of its tokens.
            loss = loss * (part.supervised_tokens / supervised)
            fabric.backward(loss)
            total += float(loss.detach())
        # Its script does not clip; here it does what the others do.
        fabric.clip_gradients(model, optimizer, max_norm=job.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        meter.end(total, [len(example) for example in batch], supervised)
    version = importlib.metadata.version("litgpt")
    return {"litgpt": version, "precision": precision, "padding": f"right, micro-batches: {MICRO_BATCHES}"}


def _config(job: Job, config_class: Any) -> Any:
    hf = AutoConfig.from_pretrained(job.model, local_files_only=True, trust_remote_code=False)
    if hf.model_type != "llama":
        raise BenchError(f"the LitGPT side runs models of the Llama family only, and {job.model} is a {hf.model_type}.")
    everywhere = dict.fromkeys(("lora_query", "lora_key", "lora_value", "lora_projection", "lora_mlp"), True)
    return config_class(
        name=Path(job.model).name,
        hf_config={},
        block_size=hf.max_position_embeddings,
        vocab_size=hf.vocab_size,
        padded_vocab_size=hf.vocab_size,
        n_layer=hf.num_hidden_layers,
        n_head=hf.num_attention_heads,
        n_query_groups=hf.num_key_value_heads,
        n_embd=hf.hidden_size,
        head_size=hf.head_dim,
        intermediate_size=hf.intermediate_size,
        rotary_percentage=1.0,
        rope_base=int(hf.rope_parameters["rope_theta"]),
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=hf.rms_norm_eps,
        mlp_class_name="LLaMAMLP",
        lora_r=job.rank,
        lora_alpha=job.alpha,
        lora_dropout=0.0,
        **everywhere,
    )


def _weights(job: Job, config: Any) -> dict[str, Any]:
    convert = optional("litgpt.scripts.convert_hf_checkpoint")
    loaded = {name: t for path in sorted(Path(job.model).glob("*.safetensors")) for name, t in load_file(path).items()}
    weights: dict[str, Any] = {}
    convert.copy_weights_hf_llama(config, {}, weights, loaded)
    return weights
