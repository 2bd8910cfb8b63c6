"""A run finds out whether its adapter can be loaded again: before the first step, and from the folder that it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import lamina
from lamina.adapters import reload
from lamina.adapters.adapter import save_adapter
from lamina.adapters.lock import build_lock
from lamina.chat.template import build_template
from lamina.config import METHOD_CONFIGS, MethodConfig
from lamina.config.methods.dora import DoraConfig
from lamina.config.methods.lora import LoraConfig
from lamina.errors import AdapterError, ConfigError
from lamina.export.fold import fold_in
from lamina.methods.lora import Lora
from lamina.methods.shared.base import Injection, Saved, find_method, inject
from lamina.models.load import load_base
from lamina.runs import Run
from lamina.structure.skeleton import build_skeleton, with_memory
from tests.support.models_zoo import build_model
from tests.support.peft_pairs import FAMILIES, base_folder, build, check_close, logits, peft_logits
from tests.support.peft_types import FIELDS, config_of
from tests.support.training import notes_into


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def config(bases: Path, path: Path, family: str, method: dict[str, Any]) -> dict[str, Any]:
    rows = [{"prompt": f"say {word}", "completion": word * 3} for word in ("a", "bc", "d", "ef")]
    (path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return {
        "model": str(base_folder(family, bases)),
        "data": {"train": str(path / "train.jsonl"), "eval": None, "max_length": 32},
        "method": method,
        "train": {"max_steps": 2, "learning_rate": 0.02},
        "dtype": "float32",
        "output_dir": str(path / "run"),
    }


# --- What is written can be loaded, by lamina and by peft

WRITTEN: list[tuple[str, dict[str, Any]]] = [
    # Parameters alone: the module that holds them is no target.
    ("qwen3_moe", {"type": "lora", "r": 4, "target_modules": [], "target_parameters": ["mlp.experts.down_proj"]}),
    ("mixtral", {"type": "lora", "r": 4, "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}),
    # Targets that peft chooses, beside modules that are no targets.
    ("qwen2", {"type": "peft", "peft_type": "LORA", "lora_bias": True, "modules_to_save": ["lm_head"]}),
    ("tied", {"type": "peft", "peft_type": "IA3", "modules_to_save": ["norm"]}),
    # Tied ends, of which peft names the embedding alone.
    *(
        (family, {"type": "lora", "r": 4, "target_modules": [FAMILIES[family].linear]} | more)
        for family in ("gpt2", "tied", "opt")
        for more in (
            {"ensure_weight_tying": True, "modules_to_save": ["lm_head"]},
            {"ensure_weight_tying": True, "modules_to_save": [FAMILIES[family].embedding, "lm_head"]},
        )
    ),
    # Regular expressions that also match what can have no adapter.
    ("llama", {"type": "lora", "r": 4, "target_modules": ".*self_attn.*"}),
    ("gpt2", {"type": "lora", "r": 4, "target_modules": r".*h\.1.*"}),
    ("tied", {"type": "vera", "r": 8, "target_modules": ".*mlp.*"}),
    ("llama", {"type": "ia3", "target_modules": ".*(attn|mlp).*", "feedforward_modules": ".*down_proj"}),
    ("llama", {"type": "lora", "r": 4, "target_modules": r".*\.(q_proj|lm_head)", "modules_to_save": ["lm_head"]}),
]


@pytest.mark.parametrize(("family", "method"), WRITTEN)
def test_what_a_run_writes_is_loaded_by_lamina_and_by_peft(
    family: str, method: dict[str, Any], bases: Path, tmp_path: Path
) -> None:
    run = lamina.train(config(bases, tmp_path, family, method))
    loaded = lamina.load(run.path, dtype="float32")
    ours = logits(loaded.model)
    assert (ours - logits(build(family))).abs().max() > 1e-3
    check_close(peft_logits(build(family), run.adapter), ours)
    merged = lamina.merge(run.path, tmp_path / "merged")
    assert merged.certificate.passed


# --- What cannot be loaded is found out


class Forgetful(Lora):
    """Saves settings with which the tensors do not go together."""

    def saved(self, injection: Injection) -> Saved:
        right = super().saved(injection)
        return Saved(right.config.model_copy(update={"r": 3}), right.tensors)


def test_it_is_found_out_before_the_first_step(bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.methods.lora.METHOD", Forgetful())
    with pytest.raises(ConfigError, match=r"could not be loaded again: by its lamina.json, it has other tensors"):
        lamina.train(config(bases, tmp_path, "llama", {"type": "lora", "r": 4}))
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


@pytest.mark.parametrize("what", ["value", "name", "settings"])
def test_what_was_written_is_read_again_before_a_run_is_done(
    what: str, bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(path: Path, *rest: Any) -> str:
        digest = save_adapter(path, *rest)
        file = path / "adapter_model.safetensors"
        tensors = load_file(file)
        name = next(iter(tensors))
        if what == "value":
            tensors[name].view(-1)[0] += 1e-6
        elif what == "name":
            tensors[f"{name}.more"] = tensors.pop(name)
        else:
            (path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "some_future_key": 3}')
        save_file(tensors, file, metadata={"format": "pt"})
        return digest

    monkeypatch.setattr("lamina.training.finish.save_adapter", spoil)
    with pytest.raises(AdapterError, match="were changed after training" if what != "settings" else "some_future_key"):
        lamina.train(config(bases, tmp_path, "llama", {"type": "lora", "r": 4}))
    assert Run(tmp_path / "run").summary is None


def test_what_cannot_be_found_out_stops_nothing(bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: Any) -> Any:
        raise KeyError("a model that cannot be built without weights")

    monkeypatch.setattr(reload, "build_skeleton", fail)
    notes: list[str] = []
    run = lamina.train(
        config(bases, tmp_path, "llama", {"type": "lora", "r": 4}),
        notes_into(notes),
    )
    assert run.summary is not None
    assert sum("could not be found out" in note for note in notes) == 2


# --- The structure without the weights


def adapters() -> list[tuple[str, MethodConfig]]:
    own = [(name, kind()) for name, kind in METHOD_CONFIGS.items() if name != "peft"]
    return [*own, *((name, config_of(name)) for name in FIELDS)]


@pytest.mark.parametrize(("name", "method"), adapters())
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_skeleton_takes_the_adapter_that_the_model_takes(name: str, method: MethodConfig, family: str) -> None:
    def shapes(model: Any) -> dict[str, tuple[int, ...]]:
        return {key: tuple(tensor.shape) for key, tensor in inject(model, method, 0).saved_tensors().items()}

    model = build_model(family)
    skeleton = build_skeleton(model)
    assert {tensor.device.type for tensor in [*skeleton.parameters(), *skeleton.buffers()]} == {"meta"}
    try:
        expected = shapes(model)
    except ConfigError:
        pytest.skip("the method does not go on this model")
    if name in ("FROD", "SHIRA"):  # which begin with numbers that they read off the weights
        skeleton = with_memory(skeleton)
    assert shapes(skeleton) == expected


def test_a_skeleton_with_memory_is_zero_and_tied_where_the_model_is() -> None:
    skeleton = with_memory(build_skeleton(build_model("llama")))
    assert skeleton.get_input_embeddings().weight is skeleton.get_output_embeddings().weight
    assert not any(tensor.is_meta or tensor.any() for tensor in [*skeleton.parameters(), *skeleton.buffers()])


def test_a_loftq_adapter_fits_its_base_without_being_split_again() -> None:
    method = LoraConfig(init_lora_weights="loftq", r=4)
    with pytest.raises(ConfigError, match="none of the layers with an adapter is quantized"):
        inject(build_skeleton(build_model("llama")), method, seed=0)
    inject(build_skeleton(build_model("llama")), find_method("lora").begun(method), seed=0)


@pytest.mark.real
def test_both_checks_run_no_layer_of_the_model(tmp_path: Path) -> None:
    """They cost nothing to speak of, on the real model too."""
    base = load_base("smollm2-135m", "auto")
    injection = inject(base.model, DoraConfig(), seed=0)
    ran: list[str] = []
    for name, module in base.model.named_modules():
        module.register_forward_pre_hook(lambda *given, name=name: ran.append(name))
    assert reload.check_before_training(injection) == []
    digest = save_adapter(tmp_path / "a", injection, base, build_lock(base, build_template(base.tokenizer), []), [])
    assert reload.check_written(tmp_path / "a", injection, digest) == []
    assert ran == []


# --- Layers of peft's around layers of peft's

NESTED: list[tuple[str, dict[str, Any]]] = [
    ("qwen3_moe", {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}),
    ("mixtral", {"target_parameters": ["experts.gate_up_proj", "experts.down_proj", "gate.weight"]}),
    # A parameter of a module, and a linear layer inside the same module.
    ("mamba", {"target_parameters": ["mixer.A_log"], "target_modules": ["x_proj", "in_proj"]}),
]


@pytest.mark.parametrize(("family", "fields"), NESTED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_layers_around_layers_merge_and_switch_off_together(
    family: str, fields: dict[str, Any], dtype: torch.dtype
) -> None:
    model = build(family).to(dtype)
    before = logits(model)
    method = METHOD_CONFIGS["peft"].model_validate({"type": "peft", "peft_type": "LORA", "r": 4} | fields)
    injection = inject(model, method, seed=0)
    with torch.no_grad():
        for index, tensor in enumerate(injection.tensors().values()):
            tensor += 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(index))
    enabled = logits(model)
    with injection.disabled():
        torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
    torch.testing.assert_close(logits(model), enabled, rtol=0, atol=0)
    theirs = peft.get_peft_model(build(family), peft.LoraConfig(task_type="CAUSAL_LM", r=4, **fields))
    peft.set_peft_model_state_dict(
        theirs, {name: tensor.detach() for name, tensor in injection.saved_tensors().items()}
    )
    tolerance = float(enabled.abs().max()) * (1e-5 if dtype == torch.float32 else 6e-2)
    torch.testing.assert_close(enabled, logits(theirs.eval()), rtol=0, atol=tolerance)
    fold_in(injection)
    assert not any(type(module).__module__.startswith("peft.") for module in model.modules())
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    torch.testing.assert_close(logits(model), enabled, rtol=0, atol=tolerance)
