"""Adapters and gate records for the registry's tests, made without torch."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from pathlib import Path
from typing import Any

from lamina.registry.evidence import Check, GateRecord, Side, Verdict
from lamina.registry.facts import Version

BASE = "sha256:" + "b" * 64


def make_adapter(folder: Path, seed: int = 0, *, base: str = BASE, size: int = 64) -> Path:
    """Writes an adapter folder as lamina does: a settings' and tensors' digest, a lock and a probe."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    settings = {"type": "lora", "r": 4, "seed": seed}
    tensors = {f"layer.{part}.weight": [draw.uniform(-1, 1) for _ in range(size)] for part in "ab"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    content, digest = b"", hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, values in sorted(tensors.items()):
        raw = struct.pack(f"<{size}f", *values)
        header[name] = {
            "dtype": "F32",
            "shape": [4, size // 4],
            "data_offsets": [len(content), len(content) + len(raw)],
        }
        digest.update(f"{name} {[4, size // 4]}\n".encode())
        digest.update(raw)
        content += raw
    head = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + content)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "tiny"}))
    lock = {"base": "tiny", "base_tensors": base, "base_config": BASE, "base_dtype": "float32", "lamina": "0.1.0"}
    lock |= {"tokenizer": BASE, "chat_template": "model", "chat_template_digest": BASE, "stop_token": "</s>"}
    about = {"format": 1, "digest": f"sha256:{digest.hexdigest()}", "method": settings, "lock": lock}
    (folder / "lamina.json").write_text(json.dumps({**about, "probes": [{"input_ids": [1, 2]}]}))
    return folder


def make_run(folder: Path, seed: int = 0) -> Path:
    """Writes what a finished run leaves, as far as the registry reads it."""
    make_adapter(folder / "adapter", seed)
    (folder / "config.yaml").write_text(f"model: tiny\nseed: {seed}\noutput_dir: {folder}\n")
    facts = {"format": 1, "lamina": "0.1.0", "status": "finished", "path": str(folder), "dtype": "float32"}
    facts |= {"data": [{"file": "train.jsonl", "sha256": "c" * 64, "rows": 20}], "versions": {"python": "3.11"}}
    facts["summary"] = {"run": str(folder), "adapter": "x", "eval_loss": 1.5, "steps": 8, "loss": float("nan")}
    (folder / "manifest.json").write_text(json.dumps(facts))
    return folder


def make_record(
    candidate: Version, against: Version | None = None, verdict: Verdict = "promote", /, **changes: Any
) -> GateRecord:
    """A gate record for a pair."""
    passed = {"promote": True, "hold": False, "not_enough_rows": None}[verdict]
    values: dict[str, Any] = {
        "candidate": Side(candidate.adapter_digest, candidate.base_digest),
        "against": Side(against and against.adapter_digest, (against or candidate).base_digest),
        "gate": {"better": [{"task": "routing.yaml", "metric": "exact_match"}]},
        "gate_digest": "sha256:" + "1" * 64,
        "checks": (Check("better routing exact_match", passed, 0.1, 0.05, 0.15, 0.0, None if passed else 400),),
        "verdict": verdict,
        "evaluations": ("sha256:" + "2" * 64,),
        "rows_digest": "sha256:" + "3" * 64,
        "created": "2026-11-29T12:00:00+0000",
    }
    return GateRecord(**(values | changes))
