"""A base that is divided over processes trains the same adapter, to the bit, and each process holds its part alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lamina
from lamina.compute.weights.sharded import is_sharded
from lamina.config.distributed import DistributedConfig
from lamina.distributed.group import Group
from lamina.models.load import load_base
from lamina.runs import Run
from lamina.runs.events import Started
from lamina.training.share import choose_strategy, divide
from tests.support.models_zoo import build_model, build_tokenizer
from tests.support.preferences import preference_settings
from tests.support.processes import values, what_it_gave
from tests.support.ranks import run_ranks, values_of

QUANTIZED: dict[str, dict[str, Any]] = {
    "nf4": {"bits": 4, "double_quant": True, "blocksize": 64},
    "nf4-plain": {"bits": 4, "double_quant": False},
    "int8": {"bits": 8},
}


def trained(size: int, config: dict[str, Any], strategy: str, **more: Any) -> dict[str, Any]:
    config = {**config, "distributed": {"strategy": strategy, **more}}
    values_of(run_ranks(size, lambda world: lamina.train(config, world=world).path))
    run = Run(Path(config["output_dir"]))
    assert run.summary is not None and run.summary.strategy == strategy
    return what_it_gave(run) | {"fused": [event.fused_layers for event in run.events(Started)]}


CASES = [
    ("lora", "float32", None, 3),
    ("lora", "bfloat16", "nf4", 2),
    pytest.param("lora", "bfloat16", None, 2, marks=pytest.mark.slow),
    pytest.param("lora", "float32", "nf4-plain", 3, marks=pytest.mark.slow),
    pytest.param("lora", "bfloat16", "int8", 2, marks=pytest.mark.slow),
    pytest.param("dora", "bfloat16", "nf4", 2, marks=pytest.mark.slow),
    pytest.param("adalora", "float32", None, 2, marks=pytest.mark.slow),
    pytest.param("ia3", "float32", "nf4", 2, marks=pytest.mark.slow),
    pytest.param("prefix", "float32", None, 2, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("method", "dtype", "quantized", "size"), CASES)
def test_fsdp_is_ddp(
    method: str, dtype: str, quantized: str | None, size: int, model_folder: Path, tmp_path: Path
) -> None:
    """Also with gaps: three processes share four micro-batches, and an evaluation of one batch."""
    more = {"quantization": QUANTIZED[quantized]} if quantized else {}
    runs = [values(tmp_path, model_folder, name, method, dtype, **more) for name in ("ddp", "fsdp")]
    assert trained(size, runs[0], "ddp") == trained(size, runs[1], "fsdp")


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_losses_that_compare_answers(loss: str, model_folder: Path, tmp_path: Path) -> None:
    train = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "max_steps": 3}
    runs = [preference_settings(tmp_path, model_folder, {"type": loss}, name, train=train) for name in ("ddp", "fsdp")]
    assert trained(2, runs[0], "ddp") == trained(2, runs[1], "fsdp")


@pytest.mark.slow
def test_copies_of_a_divided_base(model_folder: Path, tmp_path: Path) -> None:
    """Two pairs of processes, each of which shares one base."""
    runs = [values(tmp_path, model_folder, name, "lora") for name in ("ddp", "fsdp")]
    assert trained(4, runs[0], "ddp") == trained(4, runs[1], "fsdp", dp_shard_size=2, reshard_after_forward=False)


@pytest.mark.slow
def test_recomputed_layers(model_folder: Path, tmp_path: Path) -> None:
    runs = [values(tmp_path, model_folder, name, "lora") for name in ("ddp", "fsdp")]
    for run in runs:
        run["train"]["gradient_checkpointing"] = True
    assert trained(2, runs[0], "ddp") == trained(2, runs[1], "fsdp")


@pytest.mark.parametrize(("size", "quantized"), [(2, None), (4, "nf4")])
def test_a_process_holds_its_part(size: int, quantized: str | None, tmp_path: Path) -> None:
    """Of a model whose weights are large beside the norms and the tables of packed weights."""
    from lamina.config.quantization import QuantizationConfig

    model_folder = tmp_path / "model"
    build_model("llama", hidden_size=240, intermediate_size=480).save_pretrained(model_folder)
    build_tokenizer().save_pretrained(model_folder)
    quantization = QuantizationConfig(**QUANTIZED[quantized]) if quantized else None

    def work(world: Group) -> tuple[int, int, int, list[int]]:
        model = load_base(str(model_folder), "float32", quantization=quantization).model
        layers = list(model.model.layers)
        whole = sum(t.nbytes for layer in layers for t in [*layer.parameters(), *layer.buffers()])
        sharding = divide(model, DistributedConfig(), world)
        assert any(is_sharded(module) for module in model.modules())
        held = sum(_own(t) for layer in layers for t in [*layer.parameters(), *layer.buffers()])
        with torch.no_grad():
            logits = model(input_ids=torch.arange(5)[None]).logits
        after = sum(_own(t) for layer in layers for t in [*layer.parameters(), *layer.buffers()])
        assert after == held, "layers are divided again after they have run"
        return whole, held, sharding.own_bytes, logits.argmax(-1)[0].tolist()

    alone = load_base(str(model_folder), "float32", quantization=quantization).model
    with torch.no_grad():
        expected = alone(input_ids=torch.arange(5)[None]).logits.argmax(-1)[0].tolist()
    for whole, held, own, found in values_of(run_ranks(size, work)):
        assert held <= {2: 0.55, 4: 0.30}[size] * whole
        assert own >= held
        assert found == expected


def _own(tensor: torch.Tensor) -> int:
    from torch.distributed.tensor import DTensor

    return tensor.to_local().nbytes if isinstance(tensor, DTensor) else tensor.nbytes


def test_auto_divides_what_does_not_fit(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = lamina.load_config({"model": str(model_folder), "data": {"train": "x"}, "dtype": "float32"})
    size = sum(path.stat().st_size for path in model_folder.glob("*.safetensors"))

    def chosen(free: float) -> list[str]:
        monkeypatch.setattr("lamina.training.share.available_bytes", lambda device: int(free))
        return values_of(run_ranks(2, lambda world: choose_strategy(config, world, lambda message: None)))

    assert chosen(size * 2 / 0.6 + 10) == ["ddp", "ddp"]
    assert chosen(size * 2 / 0.6 - 10) == ["fsdp", "fsdp"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"distributed": {"strategy": "fsdp"}, "method": {"type": "full"}}, "distributed.strategy"),
        ({"distributed": {"strategy": "fsdp", "dp_shard_size": 3}}, "distributed.dp_shard_size"),
    ],
)
def test_what_cannot_be_divided(settings: dict[str, Any], named: str, model_folder: Path) -> None:
    config = lamina.load_config({"model": str(model_folder), "data": {"train": "x"}, **settings})
    outcomes = run_ranks(2, lambda world: choose_strategy(config, world, lambda message: None))
    assert named in outcomes[0].message
