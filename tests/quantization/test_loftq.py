"""LoftQ: the split itself, the base that is made with it, and the adapter that belongs to that base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import lamina
from lamina.adapters.load import load
from lamina.cache.folder import cache_folder
from lamina.compute.weights.packed import PackedLinear
from lamina.config import load_config
from lamina.config.methods.dora import DoraConfig
from lamina.config.methods.lora import LoftqConfig, LoraConfig
from lamina.config.quantization import QuantizationConfig
from lamina.errors import AdapterError, BaseMismatchError, ConfigError
from lamina.methods.shared.base import find_method, inject
from lamina.models.load import Base, load_base
from lamina.quantization.loftq import split_weight
from lamina.quantization.pack import pack_weight

pytest.importorskip("bitsandbytes.functional")

IDS = torch.tensor([[5, 9, 17, 33, 4, 101, 7, 60, 21]])
NF4 = QuantizationConfig()


def loftq(**settings: object) -> LoraConfig:
    return LoraConfig.model_validate({"r": 4, "init_lora_weights": "loftq", **settings})


def with_loftq(folder: Path, config: LoraConfig, quantization: QuantizationConfig = NF4) -> Base:
    plan = find_method(config.type).plan_loftq(config)
    return load_base(str(folder), "float32", quantization=quantization, plan_loftq=plan)


def random_weight(rows: int = 96, columns: int = 128) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(3)) * 0.05


@pytest.mark.parametrize("settings", [{}, {"quant_type": "fp4", "double_quant": False}, {"bits": 8}])
def test_one_round_is_the_best_product_for_what_rounding_took(settings: dict[str, object]) -> None:
    config = QuantizationConfig.model_validate(settings)
    W = random_weight()
    parts = split_weight(W, 8, 2.0, 1, lambda rest: pack_weight(rest, config).dense())
    assert parts.rest is W
    residual = W - pack_weight(W, config).dense()
    singular = torch.linalg.svdvals(residual)
    best = float(singular[8:].square().sum().sqrt() / W.norm())
    assert parts.errors[0] == pytest.approx(float(residual.norm() / W.norm()), rel=1e-5)
    assert parts.errors[1] == pytest.approx(best, rel=0.005)
    found = residual - 2.0 * parts.B @ parts.A
    assert float(found.norm() / W.norm()) == pytest.approx(parts.errors[1], rel=1e-4)
    assert torch.allclose(parts.A @ parts.A.T, parts.B.T @ parts.B, atol=1e-4)  # the scale is shared


def test_rounds_gain_until_they_stop() -> None:
    W = random_weight()

    def rounded(rest: torch.Tensor) -> torch.Tensor:
        return pack_weight(rest, NF4).dense()

    errors = split_weight(W, 16, 1.0, 50, rounded).errors
    assert len(errors) < 51  # it stopped by itself
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[1] < errors[0]
    short = split_weight(W, 16, 1.0, 2, rounded)
    assert short.errors == errors[:3]
    again = short.rest - rounded(short.rest)
    assert not torch.equal(short.rest, W)
    assert float((W - rounded(short.rest) - short.B @ short.A).norm() / W.norm()) == pytest.approx(short.errors[-1])
    assert again.shape == W.shape


def test_it_is_the_same_whatever_the_random_state() -> None:
    W = random_weight()
    torch.manual_seed(1)
    one = split_weight(W, 4, 1.0, 3, lambda rest: pack_weight(rest, NF4).dense())
    state = torch.get_rng_state()
    torch.manual_seed(2)
    other = split_weight(W, 4, 1.0, 3, lambda rest: pack_weight(rest, NF4).dense())
    assert torch.equal(one.A, other.A) and torch.equal(one.B, other.B)
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("config", "quantization"),
    [
        (loftq(), NF4),
        (loftq(use_rslora=True, rank_pattern={"q_proj": 8}, alpha_pattern={"q_proj": 3.0}), NF4),
        (loftq(target_modules=["q_proj", "down_proj"]), QuantizationConfig(bits=8)),
        (loftq(loftq_config=LoftqConfig(loftq_iter=1)), QuantizationConfig(quant_type="fp4")),
        (DoraConfig(r=4, init_lora_weights="loftq"), NF4),
        (loftq(), QuantizationConfig(modules_to_not_convert=["v_proj", "layers.1.mlp"])),
        (loftq(target_modules=["q_proj", "lm_head"]), NF4),
    ],
)
def test_base_and_adapter_together_are_nearer_to_the_original(
    folder: Path, config: LoraConfig, quantization: QuantizationConfig
) -> None:
    original = load_base(str(folder), "float32").model
    base = with_loftq(folder, config, quantization)
    injection = inject(base.model, config, seed=0)
    for name, layer in injection.layers.items():
        W = original.get_submodule(name).weight
        if layer.frozen.is_exact:  # it begins as without LoftQ
            assert torch.equal(layer.frozen.weight(torch.float32), W)
            assert not layer.lora_B.any()
            assert layer.lora_A.any()
            continue
        errors = base.rounding_errors[name]
        A, B = (tensor.detach() for tensor in layer.factors())
        error = (W - layer.frozen.weight(torch.float32) - layer.scaling * B @ A).norm() / W.norm()
        assert float(error) == pytest.approx(errors[-1], rel=1e-4)
        assert errors[-1] < errors[0]
    assert any(not layer.frozen.is_exact for layer in injection.layers.values())
    untouched = set(base.rounding_errors) - set(injection.layers)
    assert all(len(base.rounding_errors[name]) == 1 for name in untouched)


def test_the_second_start_reads_the_same_factors(folder: Path) -> None:
    first, second = with_loftq(folder, loftq()), with_loftq(folder, loftq())
    assert first.packed_digest == second.packed_digest
    assert first.rounding_errors == second.rounding_errors
    ours, theirs = (inject(base.model, loftq(), seed=0).tensors() for base in (first, second))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    # Another plan is another base, and two that come to the same are the same.
    with_loftq(folder, loftq(target_modules=["q_proj"], rank_pattern={"q_proj": 8}, lora_alpha=32))
    with_loftq(folder, loftq(target_modules=".*q_proj", r=8, lora_alpha=32))
    folders = [path for path in (cache_folder() / "quantized").iterdir() if path.is_dir()]
    assert len(folders) == 2


def _rows(path: Path) -> Path:
    rows = [{"prompt": f"what is {i}?", "completion": f"{i} it is"} for i in range(24)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_from_training_to_a_merged_model(folder: Path, tmp_path: Path) -> None:
    config = load_config(
        {
            "model": str(folder),
            "data": {"train": str(_rows(tmp_path / "rows.jsonl")), "max_length": 64},
            "method": {"type": "lora", "r": 4, "init_lora_weights": "loftq", "loftq_config": {"loftq_iter": 2}},
            "quantization": {"bits": 4},
            "train": {"max_steps": 2, "per_device_train_batch_size": 1},
            "dtype": "float32",
            "output_dir": str(tmp_path / "run"),
        }
    )
    run = lamina.train(config)
    report = json.loads(run.quantization_report_path.read_text())
    assert len(report["modules"]) == 14
    assert report["after"] < report["before"] < 0.2
    assert all(1 <= len(errors["rounds"]) <= 2 for errors in report["modules"].values())

    loaded = load(run.path)
    loaded.certify().require()
    assert loaded.adapter.lock is not None
    assert loaded.adapter.lock.packed_weights == loaded.base.packed_digest is not None
    merged = lamina.merge(run.path, tmp_path / "merged")
    assert merged.certificate.passed

    with pytest.raises(AdapterError, match=r"began with LoftQ.*without --original-base"):
        load(run.path, original_base=True)
    # Other quantized weights from the same base are another base.
    about = run.adapter / "lamina.json"
    text = json.loads(about.read_text())
    text["lock"]["packed_weights"] = "sha256:0"
    about.write_text(json.dumps(text))
    with pytest.raises(BaseMismatchError, match="quantized weights differ: trained on sha256:0"):
        load(run.path)


def test_bad_input(folder: Path) -> None:
    data = {"train": "rows.jsonl"}
    method = {"type": "lora", "init_lora_weights": "loftq"}
    with pytest.raises(ConfigError, match=r"loftq compensates for quantization error.*set quantization"):
        load_config({"data": data, "method": method})
    with pytest.raises(ConfigError, match="loftq_config has no effect without init_lora_weights: loftq"):
        load_config({"data": data, "method": {"type": "lora", "loftq_config": {"loftq_iter": 2}}, "quantization": {}})
    with pytest.raises(ConfigError, match=r"loftq_iter: got 0; .* greater than or equal to 1"):
        load_config({"data": data, "method": {**method, "loftq_config": {"loftq_iter": 0}}, "quantization": {}})
    with pytest.raises(ConfigError, match=r"method.r: 17 is larger than the smaller side of .*k_proj \(16\)"):
        with_loftq(folder, loftq(r=17, target_modules=["k_proj"]))
    kept = QuantizationConfig(modules_to_not_convert=["v_proj"])
    for base in (load_base(str(folder), "float32"), load_base(str(folder), "float32", quantization=kept)):
        with pytest.raises(ConfigError, match="none of the layers with an adapter is quantized"):
            inject(base.model, loftq(target_modules=["v_proj"]), seed=0)
    with pytest.raises(ConfigError, match="the base was quantized without it"):
        inject(load_base(str(folder), "float32", quantization=NF4).model, loftq(), seed=0)


def test_no_packed_weight_is_split_without_being_asked(folder: Path) -> None:
    base = load_base(str(folder), "float32", quantization=NF4)
    packed = [module for module in base.model.modules() if isinstance(module, PackedLinear)]
    assert packed and all(module.correction is None for module in packed)
    assert all(len(errors) == 1 and 0.0 < errors[0] < 0.2 for errors in base.rounding_errors.values())
