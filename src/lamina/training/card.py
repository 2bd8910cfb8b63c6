"""What lies beside an adapter for whoever gets its folder: the tokenizer with the chat template, and a model card.

Neither is part of the adapter: its digest and its lock are the same without them, and lamina reads neither.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lamina import files
from lamina.adapters.hf_peft import CONFIG_FILE
from lamina.adapters.lock import Lock
from lamina.config import METHOD_CONFIGS
from lamina.errors import StorageError
from lamina.methods.shared.base import find_method
from lamina.methods.shared.score import score_head
from lamina.models.folder import write_tokenizer
from lamina.runs.summary import Summary
from lamina.training.session import Session

CARD_FILE = "README.md"


def write_companions(session: Session, lock: Lock, summary: Summary) -> None:
    """Writes tokenizer, chat template and model card into the folder of a run's finished adapter.

    Raises:
        StorageError: One of them could not be written.
    """
    folder = session.run.adapter
    try:
        write_tokenizer(folder, session.template, own_stop=lock.stop_token == session.template.stop_token)
    except OSError as error:
        raise StorageError.wrap(error, folder, "writing the tokenizer") from None
    peft_config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    files.write_text(folder / CARD_FILE, build_card(session, lock, summary, peft_config))


def build_card(session: Session, lock: Lock, summary: Summary, peft_config: Mapping[str, Any]) -> str:
    """Builds the model card: Markdown with the hub's metadata before it.

    Args:
        session: The parts of the run.
        lock: What the adapter is locked to.
        summary: The figures of the run.
        peft_config: The content of `adapter_config.json`.
    """
    base = session.base.source.public_name
    parts = [
        _metadata(session, base),
        f"# {_short(base)}, fine-tuned with {METHOD_CONFIGS[session.config.method.type].title}",
        "An adapter that was trained with lamina. This page was written when training ended.",
        _table("What it is", _facts(session, lock, base)),
        _table("Training", _figures(summary)),
        _table("Data", _data(session)),
        _usage(session, peft_config, base),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(session: Session, base: str) -> str:
    method = session.config.method.type
    lines = ["library_name: peft", f"tags: [lamina, {json.dumps(method)}]", "license: unknown"]
    if score_head(session.base.model) is None:
        lines.append("pipeline_tag: text-generation")
    if _is_hub_id(base):
        lines.append(f"base_model: {json.dumps(base)}")
    return "\n".join(["---", *lines, "---"])


def _facts(session: Session, lock: Lock, base: str) -> Iterator[tuple[str, Any]]:
    settings = session.injection.config.model_dump(mode="json")
    given = {key: value for key, value in settings.items() if value not in (None, False, "", [], {}) and key != "type"}
    yield "base model", base
    yield "digest of its weights", lock.base_tensors
    yield "held in", f"{session.base.quantization.bits} bits" if session.base.quantization else lock.base_dtype
    yield "method", settings["type"]
    yield "settings", ", ".join(f"{key} {_plain(value)}" for key, value in given.items())
    yield "chat template", "the model's own" if lock.chat_template == "model" else lock.chat_template
    yield "an answer ends with", f"`{lock.stop_token}`"
    yield "license", "unknown: that of the base model and of the data apply"


def _figures(summary: Summary) -> Iterator[tuple[str, Any]]:
    yield "trained parameters", f"{summary.trainable_parameters:,} of {summary.total_parameters:,}"
    yield "loss function", summary.loss_type
    yield "steps", f"{summary.steps:,}"
    yield "tokens", f"{summary.tokens:,}, of which {summary.supervised_tokens:,} in the loss"
    yield "training loss, first and last step", _pair(summary.train_loss_first, summary.train_loss_last)
    yield "loss on held-out rows, before and after", _pair(summary.eval_loss_first, summary.eval_loss)
    yield "digest of the adapter", summary.adapter_digest


def _data(session: Session) -> Iterator[tuple[str, Any]]:
    for file in session.dataset.report.files:
        rows = f"{file.train_rows:,} rows trained on, {file.eval_rows:,} held out, of {file.rows:,}"
        yield Path(file.path).name, rows


def _usage(session: Session, peft_config: Mapping[str, Any], base: str) -> str:
    head, method = score_head(session.base.model), find_method(session.config.method.type)
    if head is None:
        commands = "lamina chat FOLDER\nlamina merge FOLDER --out MERGED"
    elif head.classes:
        commands = 'lamina classify FOLDER -t "..."'
    else:
        commands = "lamina eval FOLDER --data ROWS"
    blocks = [
        "## How to use it",
        "FOLDER is where this page lies. With lamina, which checks that the base model is the one it was trained on:",
        f"```\n{commands}\n```",
    ]
    if not method.in_peft:
        return "\n\n".join([*blocks, "peft does not have this method: merge the adapter for other software."])
    kind, more = ("CausalLM", "") if head is None else ("SequenceClassification", f", num_labels={len(head.weight)}")
    blocks += [
        "With peft:",
        f"```python\nfrom peft import AutoPeftModelFor{kind}\nfrom transformers import AutoTokenizer\n\n"
        f'model = AutoPeftModelFor{kind}.from_pretrained("FOLDER"{more})\n'
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n```',
    ]
    if session.base.quantization is not None:
        fits = "is the only one that it fits" if method.plan_loftq(session.injection.config) else "differs a little"
        blocks.append(f"peft does not quantize the base as it was in training, and that base {fits}.")
    if head is None and _serves_with_vllm(peft_config):
        blocks += [
            "With vLLM:",
            f"```\nvllm serve {shlex.quote(base)} --enable-lora --max-lora-rank {_rank(peft_config)} "
            "--lora-modules mine=FOLDER\n```",
        ]
    return "\n\n".join(blocks)


def _serves_with_vllm(peft_config: Mapping[str, Any]) -> bool:
    """Whether vLLM takes such an adapter: plain LoRA on linear layers."""
    beyond = ("use_dora", "modules_to_save", "target_parameters", "trainable_token_indices", "lora_bias")
    is_plain = not any(peft_config.get(key) for key in beyond) and peft_config.get("bias", "none") == "none"
    return peft_config.get("peft_type") == "LORA" and is_plain


def _rank(peft_config: Mapping[str, Any]) -> int:
    """The smallest of the ranks that vLLM can be told which is enough."""
    largest = max([peft_config["r"], *(peft_config.get("rank_pattern") or {}).values()])
    return next((rank for rank in (8, 16, 32, 64, 128, 256, 320, 512) if rank >= largest), largest)


def _table(title: str, rows: Iterator[tuple[str, Any]]) -> str:
    kept = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows if value not in (None, "")]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *kept])


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _pair(first: float | None, last: float | None) -> str:
    return "" if first is None or last is None else f"{first:.4f}, {last:.4f}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _is_hub_id(base: str) -> bool:
    return base.count("/") == 1 and not base.startswith((".", "/", "~"))


def _short(base: str) -> str:
    return base.rstrip("/").rpartition("/")[2]
