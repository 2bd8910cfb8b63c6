"""How much of a base is quantized is said, and one of which less than half would be is refused with ways that work."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn
from transformers import PreTrainedModel

import lamina
from lamina.cache.folder import cache_folder
from lamina.config.quantization import QuantizationConfig
from lamina.errors import ConfigError
from lamina.export.quantize import quantize
from lamina.models.load import load_base
from lamina.models.quantized.quantizers import check_packs_enough, converted_modules
from lamina.models.weights import find_packing
from lamina.runs.events import Note
from tests.support.architectures import MIXTURES, build_architecture
from tests.support.models_zoo import build_tokenizer
from tests.support.training import write_rows

pytest.importorskip("bitsandbytes")


def on_disk(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def settings(model: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    data = folder / "rows.jsonl"
    return {
        "model": str(model),
        "data": {"train": str(data if data.exists() else write_rows(data, 8)), "eval": None, "max_length": 64},
        "method": {"type": "lora", "r": 4},
        "train": {"max_steps": 1},
        "dtype": "float32",
        "output_dir": str(folder / "run"),
        **changes,
    }


def share_of_linears(model: PreTrainedModel) -> float:
    """Of the weights outside of embeddings and head, those of matrices in linear layers."""
    head, linears, all_of_it = model.get_output_embeddings(), 0, 0
    for module in model.modules():
        if isinstance(module, nn.Embedding) or module is head:
            continue
        own = dict(module.named_parameters(recurse=False))
        all_of_it += sum(parameter.numel() for parameter in own.values())
        linears += sum(parameter.numel() for parameter in own.values()) if type(module) is nn.Linear else 0
    return linears / all_of_it


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "phi", *MIXTURES])
def test_less_than_half_is_refused(architecture: str, bits: int) -> None:
    model, config = build_architecture(architecture), QuantizationConfig.model_validate({"bits": bits})
    if bits == 4:
        config = config.model_copy(update={"blocksize": 32})
    share = share_of_linears(model)
    packing = find_packing(model, converted_modules(model, config))
    assert abs(packing.share - share) < 0.001
    if share >= 0.5:
        check_packs_enough(model, config, experts=False)
        return
    with pytest.raises(ConfigError) as caught:
        check_packs_enough(model, config, experts=False)
    (problem,) = caught.value.problems
    assert problem.field == "quantization.bits"
    assert f"{share:.1%} of the weights outside of embeddings and head are packed" in problem.message
    (names,) = re.findall(r"quantization\.modules_to_not_convert: (\[.*\])", problem.fix)
    check_packs_enough(
        model, config.model_copy(update={"modules_to_not_convert": yaml.safe_load(names)}), experts=False
    )


def test_experts_that_are_packed_count() -> None:
    refused = set()
    for architecture in MIXTURES:
        try:
            check_packs_enough(build_architecture(architecture, weights=False), QuantizationConfig(blocksize=32))
        except ConfigError:
            refused.add(architecture)
    assert refused == {"jetmoe"}


def test_large_embeddings_do_not_count() -> None:
    """In small models with large vocabularies they are most of the weights."""
    model = build_architecture("gemma3_text", vocab_size=5000)
    embedding = model.get_input_embeddings().weight.numel()
    assert embedding > 0.5 * sum(parameter.numel() for parameter in model.parameters())
    check_packs_enough(model, QuantizationConfig())


def test_experts_of_unknown_code_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    model = on_disk(build_architecture("jetmoe"), tmp_path / "model")
    kept = cache_folder() / "quantized"
    before = {path.name for path in kept.glob("*")}
    with pytest.raises(ConfigError, match=r"packs only linear layers and experts. Of JetMoeForCausalLM, .* stay in 16"):
        lamina.train(settings(model, tmp_path, quantization={"bits": 4}))
    assert {path.name for path in kept.glob("*")} == before


def test_experts_that_are_left_as_they_are_by_choice(tmp_path: Path) -> None:
    model = on_disk(build_architecture("mixtral"), tmp_path / "model")
    reason = r"Of MixtralForCausalLM, 14\.2% .* stay in 16 or 32 bits: .*mlp\.experts \(85\.3%"
    with pytest.raises(ConfigError, match=f"bits: 4 packs only linear layers. {reason}"):
        quantize(settings(model, tmp_path), tmp_path / "out")  # in the format of bitsandbytes
    assert not (tmp_path / "out").exists()

    known = {"bits": 4, "modules_to_not_convert": ["mlp.experts"]}
    run = lamina.train(settings(model, tmp_path, quantization=known, output_dir=str(tmp_path / "known")))
    assert run.manifest.weights is not None and run.summary is not None
    packing = run.manifest.weights.packing
    assert packing is not None
    assert 0.1 < run.summary.packed_weights_share == packing.packed / packing.weights < 0.2
    assert next(iter(packing.left)) == "model.layers.*.mlp.experts"
    report = json.loads(run.quantization_report_path.read_text())
    assert report["packing"] == dataclasses.asdict(packing) == run.manifest.as_json()["weights"]["packing"]
    (line,) = [e.message for e in run.events(Note) if e.message.startswith("quantization error")]
    assert "of the packed weights' norm" in line and "14.2% of the weights" in line and "mlp.experts (85" in line
    assert quantize(settings(model, tmp_path, quantization=known), tmp_path / "out").modules == 8


def test_a_dense_base_is_packed_as_good_as_whole(tmp_path: Path) -> None:
    model = on_disk(build_architecture("llama"), tmp_path / "model")
    run = lamina.train(settings(model, tmp_path, quantization={"bits": 4}))
    assert run.summary is not None and run.summary.packed_weights_share > 0.99
    (line,) = [e.message for e in run.events(Note) if e.message.startswith("quantization error")]
    assert line.endswith("% of the weights outside of embeddings and head are packed")
    dense = lamina.train(settings(model, tmp_path, output_dir=str(tmp_path / "dense")))
    assert dense.summary is not None and "packed_weights_share" not in dense.summary.as_json()


def test_a_folder_that_was_quantized_so_is_taken_with_a_note(tmp_path: Path) -> None:
    model = on_disk(build_architecture("mixtral"), tmp_path / "model")
    known = {"bits": 4, "modules_to_not_convert": ["mlp.experts"]}
    quantize(settings(model, tmp_path, quantization=known), tmp_path / "packed")
    notes: list[str] = []
    base = load_base(str(tmp_path / "packed"), "float32", notify=notes.append)
    assert base.packing is not None and base.packing.share < 0.2
    assert [note for note in notes if "are packed; others stay" in note and "mlp.experts" in note]
