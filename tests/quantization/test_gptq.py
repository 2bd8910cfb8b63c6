"""Rounding for a layer's inputs: the choice itself, the folder that `quantize` writes, and what is trained on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AutoModelForCausalLM

import lamina
from lamina.adapters.load import load
from lamina.chat.template import build_template
from lamina.compute.weights.packed import FourBitLinear
from lamina.config.quantization import QuantizationConfig
from lamina.data.batch import build_batch
from lamina.data.dataset import build_dataset
from lamina.errors import ConfigError, ModelError, StorageError
from lamina.export import quantize as exporting
from lamina.models.load import load_base
from lamina.models.quantized.quantizers import converted_modules
from lamina.quantization.gptq import DAMPING, choose_numbers, round_for_inputs
from lamina.quantization.pack import pack_weight
from lamina.structure.inputs import run_once, with_same_input
from tests.support.models_zoo import build_model, build_tokenizer

pytest.importorskip("bitsandbytes.functional")

NUMBERS = torch.tensor([-1.0, -0.5, -0.1, 0.0, 0.2, 0.6, 1.0])


def inputs_and_weight(rows: int = 24, columns: int = 160) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs whose columns go together, and differ in size, as those of a model do."""
    generator = torch.Generator().manual_seed(5)
    mixed = torch.randn(400, columns // 4, generator=generator) @ torch.randn(
        columns // 4, columns, generator=generator
    )
    x = mixed + torch.randn(400, columns, generator=generator)
    return x * torch.linspace(0.1, 2.0, columns), torch.randn(rows, columns, generator=generator) * 0.05


def one_by_one(weight: torch.Tensor, scales: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """The same by optimal brain surgeon's formula, in float64: after each column its row and column leave H^-1."""
    H = moments.double().clone()
    H.diagonal().add_(DAMPING * H.diagonal().mean())
    left, inverse = weight.double().clone(), torch.linalg.inv(H)
    chosen = torch.empty(weight.shape, dtype=torch.long)
    waiting = moments.diagonal().argsort(descending=True, stable=True).tolist()
    while waiting:
        i = waiting.pop(0)
        chosen[:, i] = (left[:, i, None] - NUMBERS * scales[:, i, None].double()).abs().argmin(1)
        missed = left[:, i] - NUMBERS[chosen[:, i]] * scales[:, i]
        left -= (missed / inverse[i, i])[:, None] * inverse[i]
        inverse = inverse - inverse[:, i, None] * inverse[i] / inverse[i, i]
    return chosen


def test_it_is_the_papers_rounding() -> None:
    x, W = inputs_and_weight()
    scales = W.view(24, -1, 32).abs().amax(2).repeat_interleave(32, 1)
    moments = x.T @ x
    found, expected = choose_numbers(W, scales, moments, NUMBERS).long(), one_by_one(W, scales, moments)
    # A tie, or nearly one, may fall otherwise in float32, and what follows in that row with it.
    assert float((found == expected).all(1).float().mean()) > 0.9
    error = [float((x @ (W - NUMBERS[choice] * scales).T).norm()) for choice in (found, expected)]
    assert error[0] == pytest.approx(error[1], rel=0.01)


@pytest.mark.parametrize(
    "settings", [{}, {"quant_type": "fp4"}, {"double_quant": False, "blocksize": 32}, {"blocksize": 128}], ids=str
)
def test_outputs_are_nearer_than_those_of_rounding_to_the_nearest(settings: dict[str, Any]) -> None:
    config = QuantizationConfig(**settings)
    x, W = inputs_and_weight()
    moments = x.T @ x
    together = [W[:8], W[8:]]
    found = round_for_inputs(together, moments, config)
    for weight, (layer, nearest, error) in zip(together, found, strict=True):
        plain = pack_weight(weight, config)
        assert isinstance(plain, FourBitLinear)
        for stated, own in ((nearest, plain), (error, layer)):
            measured = float((x @ (weight - own.dense()).T).norm() / (x @ weight.T).norm())
            assert stated == pytest.approx(measured, rel=1e-3)
        assert error < 0.7 * nearest
        assert torch.equal(layer.scales(), plain.scales())
        alone = round_for_inputs([weight], moments, config)[0][0]
        assert float((alone.packed == layer.packed).float().mean()) > 0.99


def test_inputs_that_do_not_go_together_are_rounded_to_the_nearest() -> None:
    _, W = inputs_and_weight()
    config = QuantizationConfig(blocksize=32, double_quant=False)
    layer, nearest, error = round_for_inputs([W], torch.eye(160), config)[0]
    assert torch.equal(layer.dense(), pack_weight(W, config).dense())
    assert nearest == error
    # With double quantisation, to the nearest at the scales that there will be, not at those from before.
    _, nearest, error = round_for_inputs([W], torch.eye(160), QuantizationConfig(blocksize=32))[0]
    assert error <= nearest


@pytest.mark.parametrize("what", ["no inputs", "one input", "dead inputs", "no weights"])
def test_degenerate_layers(what: str) -> None:
    x, W = inputs_and_weight()
    if what == "no inputs":
        x = torch.zeros_like(x)
    elif what == "one input":
        x = x[:1]
    elif what == "dead inputs":
        x[:, 40:90] = 0.0
    else:
        W[3:9] = 0.0
    layer, nearest, error = round_for_inputs([W], x.T @ x, QuantizationConfig(blocksize=32))[0]
    assert bool(layer.dense().isfinite().all())
    assert error <= nearest
    if what == "no weights":
        assert not layer.dense()[3:9].any()


def settings_for(folder: Path, tmp_path: Path, **more: Any) -> dict[str, Any]:
    rows = [{"prompt": f"what is {i}?", "completion": f"{i} it is, and {i * 7} is more"} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "model": str(folder),
        "data": {"train": str(tmp_path / "rows.jsonl"), "eval": 0.2, "max_length": 64},
        "method": {"type": "lora", "r": 4},
        "quantization": {"bits": 4, "blocksize": 32},
        "train": {"max_steps": 3, "per_device_train_batch_size": 1},
        "dtype": "float32",
        "output_dir": str(tmp_path / "run"),
        **more,
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_the_written_folder_holds_what_was_chosen(
    family: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "cache"))
    build_model(family, vocab_size=259).save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    chosen: list[FourBitLinear] = []

    def keep(*args: Any) -> list[tuple[FourBitLinear, float, float]]:
        found = round_for_inputs(*args)
        chosen.extend(layer for layer, *_ in found)
        return found

    monkeypatch.setattr(exporting, "round_for_inputs", keep)
    seen: list[str] = []
    result = lamina.quantize(
        settings_for(tmp_path / "base", tmp_path, dtype=dtype),
        tmp_path / "out",
        progress=lambda what, done, total: seen.append(what),
    )
    base = load_base(str(tmp_path / "out"), dtype)
    packed = [module for module in base.model.modules() if isinstance(module, FourBitLinear)]
    assert len(packed) == len(chosen) == result.modules > 0
    everything = {bytes(layer.packed.numpy()) for layer in chosen}
    assert {bytes(layer.packed.numpy()) for layer in packed} == everything
    assert sorted(float(layer.dense().sum()) for layer in packed) == sorted(
        float(layer.dense().sum()) for layer in chosen
    )
    assert result.error < result.nearest
    assert result.loss != result.loss_before
    sizes = [(layer.packed_bytes(), layer.in_features * layer.out_features) for layer in packed]
    assert result.bits_per_weight == 8 * sum(size for size, _ in sizes) / sum(weights for _, weights in sizes)
    assert result.loss == pytest.approx(result.loss_before, rel=0.01)
    assert {"documents run over", "layers rounded"} <= set(seen)
    report = json.loads((tmp_path / "out" / exporting.REPORT_FILE).read_text())
    assert report["base"]["ref"] == str(tmp_path / "base")
    assert len(report["output_errors"]) == result.modules
    squares = [errors["written"] ** 2 for errors in report["output_errors"].values()]
    assert result.error == pytest.approx((sum(squares) / len(squares)) ** 0.5)
    # Others read it without lamina. (The product of bitsandbytes on CPUs does not take matrices as small as these.)
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, layer in base.model.named_modules():
        if isinstance(layer, FourBitLinear):
            weight = theirs.get_submodule(name).weight
            assert torch.equal(weight.data, layer.packed)
            assert torch.equal(weight.quant_state.absmax, layer.absmax)
            assert weight.quant_state.blocksize == 32


def test_memory_and_repetition_change_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(folder, tmp_path)
    lamina.quantize(settings, tmp_path / "first")
    monkeypatch.setattr(exporting, "_SHARE_FOR_MOMENTS", 0.0)  # a run over the documents for each input
    lamina.quantize(settings, tmp_path / "second")
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second
    few = lamina.quantize(settings, tmp_path / "third", tokens=50)
    assert 50 <= few.tokens < 150
    assert few.documents < 10
    assert (tmp_path / "third" / "model.safetensors").read_bytes() != first


def test_from_training_to_a_merged_model(folder: Path, tmp_path: Path) -> None:
    settings = settings_for(folder, tmp_path)
    lamina.quantize(settings, tmp_path / "out")
    run = lamina.train({**settings, "model": str(tmp_path / "out"), "quantization": None})
    load(run.path).certify().require()
    assert lamina.merge(run.path, tmp_path / "merged").certificate.passed
    other = tmp_path / "other"
    lamina.quantize({**settings, "seed": 5}, other, tokens=50)
    with pytest.raises(lamina.errors.BaseMismatchError):
        load(run.path, model=str(other))


def test_some_layers_stay_as_they_are(folder: Path, tmp_path: Path) -> None:
    settings = settings_for(folder, tmp_path)
    settings["quantization"]["modules_to_not_convert"] = ["v_proj", "layers.1.mlp"]
    result = lamina.quantize(settings, tmp_path / "out")
    assert result.modules == 14 - 2 - 3
    base = load_base(str(tmp_path / "out"), "float32")
    assert type(base.model.get_submodule("model.layers.1.mlp.up_proj")) is torch.nn.Linear
    assert isinstance(base.model.get_submodule("model.layers.0.mlp.up_proj"), FourBitLinear)


def test_size_is_that_of_the_quantized_layers_with_a_base_that_stays_on_disk(folder: Path, tmp_path: Path) -> None:
    settings = settings_for(folder, tmp_path)
    settings["quantization"]["modules_to_not_convert"] = ["v_proj"]
    inside = lamina.quantize(settings, tmp_path / "inside")
    mapped = lamina.quantize({**settings, "offload": True}, tmp_path / "mapped")
    assert mapped.bits_per_weight == inside.bits_per_weight < 8
    assert (tmp_path / "mapped/model.safetensors").read_bytes() == (tmp_path / "inside/model.safetensors").read_bytes()


def test_documents_beyond_a_table_of_positions(tmp_path: Path) -> None:
    build_model("gpt2", vocab_size=259, n_positions=32).save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    with pytest.raises(ConfigError, match=r"data.max_length: 64 is more than the model's 32 positions.*use 32 at most"):
        lamina.quantize(settings_for(tmp_path / "base", tmp_path), tmp_path / "out")


class Router(torch.nn.Linear):
    """As mixtures of experts have them: not a layer that bitsandbytes would replace."""


def test_layers_of_other_classes_stay_as_they_are() -> None:
    model = build_model("llama")
    model.model.layers[0].mlp.up_proj.__class__ = Router
    assert not any("0.mlp.up_proj" in name for name in converted_modules(model, QuantizationConfig(blocksize=32)))
    assert any("1.mlp.up_proj" in name for name in converted_modules(model, QuantizationConfig(blocksize=32)))


def test_no_input_outlives_its_use() -> None:
    """Those of all layers together would take gigabytes."""
    model, alive, most = build_model("llama"), WeakIdKeyDictionary(), [0]
    layers = converted_modules(model, QuantizationConfig(blocksize=32))

    def count(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        alive[inputs[0]] = True
        most[0] = max(most[0], len(alive))

    for layer in layers.values():
        layer.register_forward_pre_hook(count)
    groups = with_same_input(model, layers, torch.arange(12)[None])
    assert [len(group) for group in groups] == [3, 1, 2, 1] * 2
    assert {name for group in groups for name in group} == set(layers)
    assert 0 < most[0] <= 2


def test_stated_errors_are_those_on_all_documents(folder: Path, tmp_path: Path) -> None:
    """Measured anew: every layer's input over the same documents, and what was written."""
    settings = settings_for(folder, tmp_path)
    settings["data"]["eval"] = None
    result = lamina.quantize(settings, tmp_path / "out")
    assert result.documents == 60
    stated = json.loads((tmp_path / "out" / exporting.REPORT_FILE).read_text())["output_errors"]
    base, written = load_base(str(folder), "float32"), load_base(str(tmp_path / "out"), "float32")
    squares = {name: torch.zeros(2, dtype=torch.float64) for name in stated}

    def measure(name: str) -> Callable[[torch.Tensor], None]:
        weight, rounded = base.model.get_submodule(name).weight, written.model.get_submodule(name).dense()

        def take(x: torch.Tensor) -> None:
            squares[name][0] += (x @ (weight - rounded).T).double().square().sum()
            squares[name][1] += (x @ weight.T).double().square().sum()

        return take

    template = build_template(base.tokenizer)
    dataset = build_dataset(lamina.load_config(settings).data, template, 1, 0, lambda message: None)
    for example in dataset.train:
        takers = {base.model.get_submodule(name): measure(name) for name in stated}
        run_once(base.model, build_batch([example]).input_ids, takers)
    for name, (missed, whole) in squares.items():
        assert stated[name]["written"] == pytest.approx(float((missed / whole).sqrt()), rel=1e-3)
        assert stated[name]["written"] < stated[name]["nearest"]


def test_what_appears_at_the_place_meanwhile_is_left_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "out", exporting.write_quantized

    def write(*given: Any) -> None:
        out.mkdir()
        (out / "precious.txt").write_text("mine")
        real(*given)

    monkeypatch.setattr(exporting, "write_quantized", write)
    with pytest.raises(StorageError, match=r"out: something else was created there in the meantime\. The new content"):
        lamina.quantize(settings_for(folder, tmp_path), out)
    assert (out / "precious.txt").read_text() == "mine"
    (beside,) = tmp_path.glob("out-*")
    assert (beside / exporting.REPORT_FILE).exists()
    load_base(str(beside), "float32")


def test_few_tokens_are_noted(folder: Path, tmp_path: Path) -> None:
    settings, notes = settings_for(folder, tmp_path), []
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"prompt": f"{i}", "completion": "b"}) for i in range(9)))
    found = lamina.quantize(settings, tmp_path / "out", tokens=1, notify=notes.append)
    assert any(note.startswith(f"{found.tokens} tokens are few for layers with up to ") for note in notes)


def test_a_layer_that_runs_twice_is_in_one_group() -> None:
    model = build_model("llama")
    model.model.layers[1] = model.model.layers[0]
    layers = converted_modules(model, QuantizationConfig(blocksize=32))
    groups = with_same_input(model, layers, torch.arange(12)[None])
    assert sorted(name for group in groups for name in group) == sorted(layers)


def test_bad_input(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(folder, tmp_path)
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"quantization.bits: rounding to 8 bits loses almost nothing.*set it to 4"):
        lamina.quantize({**settings, "quantization": {"bits": 8}}, out)
    with pytest.raises(ConfigError, match=r"modules_to_not_convert: 'nothing' matches no module"):
        lamina.quantize({**settings, "quantization": {"modules_to_not_convert": ["nothing"]}}, out)
    with pytest.raises(ConfigError, match=r"blocksize: blocksize 4096 does not divide"):
        lamina.quantize({**settings, "quantization": {"blocksize": 4096}}, out)
    with pytest.raises(ConfigError, match=r"--out: .*rows.jsonl already exists"):
        lamina.quantize(settings, tmp_path / "rows.jsonl")
    with pytest.raises(ConfigError, match=r"--tokens: 0 is too few"):
        lamina.quantize(settings, out, tokens=0)
    with pytest.raises(ConfigError, match=r"modules_to_not_convert: it leaves no linear layer"):
        lamina.quantize({**settings, "quantization": {"modules_to_not_convert": ["layers"]}}, out)
    assert not out.exists()
    lamina.quantize(settings, out)
    with pytest.raises(ConfigError, match=r"model: .* is already quantized.*name the model in 16 bits"):
        lamina.quantize({**settings, "model": str(out), "quantization": None}, tmp_path / "again")
    broken = AutoModelForCausalLM.from_pretrained(folder)
    broken.model.layers[0].mlp.down_proj.weight.data.fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    build_tokenizer().save_pretrained(tmp_path / "broken")
    with pytest.raises(ModelError, match="logits are not finite"):
        lamina.quantize({**settings, "model": str(tmp_path / "broken")}, tmp_path / "again")
    unmeasured = {**settings, "model": str(tmp_path / "broken"), "data": {**settings["data"], "eval": None}}
    with pytest.raises(ModelError, match=r"the weight of model.layers.0.mlp.down_proj is not finite, so"):
        lamina.quantize(unmeasured, tmp_path / "again")

    unseen = AutoModelForCausalLM.from_pretrained(folder)
    unseen.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")  # no later layer is given what it makes
    unseen.save_pretrained(tmp_path / "broken")
    with pytest.raises(ModelError, match=r"the weight of model.layers.1.mlp.down_proj is not finite"):
        lamina.quantize(unmeasured, tmp_path / "again")

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "save_file", full)
    with pytest.raises(StorageError, match="again: writing failed: the disk is full"):
        lamina.quantize(settings, tmp_path / "again")
    assert not [path.name for path in tmp_path.iterdir() if "again" in path.name]
