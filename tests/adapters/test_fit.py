"""Adapters that peft wrote load with peft's logits, or are refused with a reason that is true and a fix that works."""

from __future__ import annotations

import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import lamina
from lamina.adapters.convert import convert
from lamina.adapters.load import Loaded
from lamina.adapters.tensor_names import find_places
from lamina.errors import AdapterError
from tests.support.models_zoo import build_tokenizer
from tests.support.peft_pairs import (
    FAMILIES,
    Family,
    base_folder,
    build,
    check_close,
    logits,
    peft_logits,
    train_with_peft,
)

TENSORS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def load(path: Path, base: Path) -> Loaded:
    return lamina.load(path, model=str(base), dtype="float32")


def lora(family: str, **fields: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "target_modules": [FAMILIES[family].linear]} | fields)


def saved(family: str, path: Path, config: Any, **how: Any) -> torch.Tensor:
    """Trains and saves an adapter; what peft makes of it."""
    train_with_peft(build(family), config, path, **how)
    return peft_logits(build(family), path)


def rename(path: Path, to: Any) -> None:
    tensors = {to(name): tensor for name, tensor in load_file(path / TENSORS).items()}
    save_file(tensors, path / TENSORS, metadata={"format": "pt"})


def change_config(path: Path, **changes: Any) -> None:
    """Sets fields of `adapter_config.json`; None takes them out."""
    content = json.loads((path / "adapter_config.json").read_text())
    content = {key: value for key, value in (content | changes).items() if key not in changes or value is not None}
    (path / "adapter_config.json").write_text(json.dumps(content))


# --- Any configuration on any family


def draw(seed: int) -> tuple[str, str, dict[str, Any]]:
    """A family, one of peft's configuration classes, and fields of it."""
    pick = random.Random(seed)
    family = pick.choice([name for name in FAMILIES if name != "mamba"])
    names = FAMILIES[family]
    kind, fields = pick.choice(
        [
            *(("LoraConfig", {"r": 4}),) * 6,
            ("LoHaConfig", {"r": 4}),
            ("LoKrConfig", {"r": 4}),
            ("VeraConfig", {"r": 8}),
            ("IA3Config", {"feedforward_modules": []}),
            ("AdaLoraConfig", {"init_r": 4, "target_r": 2, "total_step": 10}),
            ("LNTuningConfig", {}),
            ("OFTConfig", {"r": 0, "oft_block_size": 4}),
            ("HRAConfig", {"r": 4}),
        ]
    )
    targets = [names.norm] if kind == "LNTuningConfig" else [names.linear, names.other]
    options: list[dict[str, Any]] = [
        {"target_modules": [*targets, "W_pack", "query_key_value"]},
        {"exclude_modules": [f"layers.1.self_attn.{names.linear}"]},
        {"exclude_modules": ["nothing"]},
        {"modules_to_save": [names.head]},
        {"modules_to_save": [names.embedding]},
        {"layers_to_transform": [1]},
        {"target_modules": rf".*\.({'|'.join(targets)})"},
        {"target_modules": [names.embedding, *targets]},
        {"target_modules": [names.head, *targets]},
        {"rank_pattern": {names.other: 2}},
        {"rank_pattern": {"nothing": 2}},
        {"bias": "all"},
    ]
    if kind == "LoraConfig":
        options += [
            {"lora_bias": True},
            {"use_dora": True},
            {"use_rslora": True, "lora_alpha": 7.5},
            {"trainable_token_indices": [5, 6, 7]},
            {"ensure_weight_tying": True},
            {
                "init_lora_weights": pick.choice(
                    ["pissa", "olora", "gaussian", "orthogonal", "mica", "eva", "pissa_niter_2"]
                )
            },
            {"target_modules": "all-linear"},
            {"bias": "lora_only"},
        ]
    if "moe" in family or family == "mixtral":
        options += [{"target_parameters": ["experts.down_proj", "experts.gate_up_proj"]}] * 3
    chosen: dict[str, Any] = {"target_modules": targets}
    for option in pick.sample(options, pick.choice([1, 1, 2])):
        chosen |= option
    return family, kind, fields | chosen


def explain(reason: str, fields: dict[str, Any], path: Path, base: Path) -> bool:
    """Whether a reason for a refusal is true of the adapter."""
    tensors = load_file(path / TENSORS)
    if "moved a part of the base's weights into the adapter" in reason:
        return str(fields.get("init_lora_weights")).startswith(("pissa", "olora"))
    if "differs from the base's own" in reason:
        name = reason.split(" its ")[1].split(" differs")[0]
        own = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
        return not torch.equal(tensors[name], own[name.removeprefix("base_model.model.").replace(".base_layer", "")])
    if "gets no such tensor" in reason:
        module = reason.split("adapter_config.json ")[1].split(" gets")[0]
        targets = json.loads((path / "adapter_config.json").read_text())["target_modules"]
        return not any(module.endswith(target) for target in targets) and any(f".{module}." in name for name in tensors)
    return False


def check_pair(seed: int, bases: Path, path: Path) -> str:
    family, kind, fields = draw(seed)
    try:
        expected = saved(family, path, getattr(peft, kind)(task_type="CAUSAL_LM", **fields))
    except (ValueError, TypeError, RuntimeError, NotImplementedError, AttributeError):
        return "peft has no such adapter"
    base = base_folder(family, bases)
    what = f"seed {seed}: {kind} {fields} on {family}"
    try:
        loaded = load(path, base)
    except AdapterError as error:
        assert explain(str(error), fields, path, base), f"{what}: {error}"
        return "refused"
    ours = logits(loaded.model)
    difference = float((ours - expected).abs().max())
    assert difference <= 1e-5 * float(expected.abs().max()), f"{what}: {difference}"
    with loaded.injection.disabled():
        check_close(logits(loaded.model), logits(build(family)))
    return "loads"


@pytest.mark.parametrize("seed", range(48))
def test_any_adapter_of_pefts_loads_with_its_logits_or_is_refused_for_what_is_true(
    seed: int, bases: Path, tmp_path: Path
) -> None:
    check_pair(seed, bases, tmp_path / "adapter")


@pytest.mark.slow
def test_the_same_of_many(bases: Path, tmp_path: Path) -> None:
    found: dict[str, int] = {}
    for seed in range(1000, 2500):
        shutil.rmtree(tmp_path / "adapter", ignore_errors=True)
        outcome = check_pair(seed, bases, tmp_path / "adapter")
        found[outcome] = found.get(outcome, 0) + 1
    assert found["loads"] > 10 * found["refused"]


# --- Copies of the base's own weights


@pytest.mark.parametrize("family", ["llama", "tied", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_copy_of_the_head_beside_its_adapter_is_compared_and_left_out(
    family: str, dtype: torch.dtype, bases: Path, tmp_path: Path
) -> None:
    expected = saved(family, tmp_path / "a", lora(family, target_modules=["lm_head"]))
    tensors = load_file(tmp_path / "a" / TENSORS)
    (copy,) = [name for name in tensors if "base_layer" in name]
    save_file(tensors | {copy: tensors[copy].to(dtype)}, tmp_path / "a" / TENSORS)
    loaded = load(tmp_path / "a", base_folder(family, bases))
    check_close(logits(loaded.model), expected)
    assert any(copy in note and "base's own" in note for note in loaded.notes)
    assert loaded.injection.config.type == "lora"


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["lm_head"]},
        {"target_modules": ["c_attn"], "bias": "all"},
    ],
    ids=["head", "biases"],
)
def test_base_weights_that_were_trained_too_are_refused_and_the_fix_works(
    fields: dict[str, Any], bases: Path, tmp_path: Path
) -> None:
    saved("gpt2", tmp_path / "a", peft.LoraConfig(task_type="CAUSAL_LM", r=4, **fields))
    if "bias" in fields:
        change_config(tmp_path / "a", bias="none")  # as a method of lamina's without biases reads it
    else:
        tensors = load_file(tmp_path / "a" / TENSORS)
        (copy,) = [name for name in tensors if "base_layer" in name]
        save_file(tensors | {copy: tensors[copy] + 0.25}, tmp_path / "a" / TENSORS)
    expected = peft_logits(build("gpt2"), tmp_path / "a")
    with pytest.raises(AdapterError, match=r"differs from the base's own \(by up to .*unload\(\)\.save_pretrained"):
        load(tmp_path / "a", base_folder("gpt2", bases))
    peft.PeftModel.from_pretrained(build("gpt2"), tmp_path / "a").unload().save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    check_close(logits(load(tmp_path / "a", tmp_path / "base").model), expected)


@pytest.mark.parametrize("family", ["llama", "tied"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}, {"trainable_token_indices": [260, 262]}],
    ids=["none", "modules_to_save", "tokens"],
)
def test_a_resized_vocabulary_is_said_and_the_fix_works(
    family: str, fields: dict[str, Any], bases: Path, tmp_path: Path
) -> None:
    model = build(family)
    model.resize_token_embeddings(266)
    trained = train_with_peft(model, lora(family, **fields), tmp_path / "a", save_embedding_layers=True)
    expected = logits(trained)
    with pytest.raises(AdapterError, match=r"a vocabulary of 266 tokens, and the base has 259.*embeddings\(266\)"):
        load(tmp_path / "a", base_folder(family, bases))
    base = build(family)
    base.resize_token_embeddings(266)
    peft.PeftModel.from_pretrained(base, tmp_path / "a").unload().save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    check_close(logits(load(tmp_path / "a", tmp_path / "base").model), expected)


# --- Names


@pytest.mark.parametrize(
    ("to", "removed"),
    [
        (lambda name: name.replace(".weight", ".default.weight"), "'default'"),
        (lambda name: name.replace(".weight", ".of_mine.weight"), "'of_mine'"),
        (lambda name: f"module.{name}", "'module'"),
        (lambda name: name.replace("model.model.", "model._orig_mod.model."), "'_orig_mod'"),
        (lambda name: name.replace(".self_attn", "._checkpoint_wrapped_module.self_attn"), "'_checkpoint_wrapped_mod"),
        (lambda name: f"module._orig_mod.{name.replace('.weight', '.default.weight')}", "'_orig_mod', 'default', 'mod"),
    ],
)
def test_names_that_say_how_the_model_was_wrapped(to: Any, removed: str, bases: Path, tmp_path: Path) -> None:
    expected = saved("llama", tmp_path / "a", lora("llama"))
    rename(tmp_path / "a", to)
    loaded = load(tmp_path / "a", base_folder("llama", bases))
    check_close(logits(loaded.model), expected)
    assert any(removed in note for note in loaded.notes)


def test_two_tensors_for_one_place_are_no_match() -> None:
    found = ["a.lora_A.weight", "module.a.lora_A.weight"]
    assert find_places(found, {"a.lora_A.weight"}).names == {"a.lora_A.weight": "a.lora_A.weight"}
    assert find_places(["module.a", "_orig_mod.a"], {"a"}).names == {}
    # A part that only some of the names have is a module, and no adapter's name.
    assert find_places(["x.one.w", "y.two.w"], {"x.w", "y.w"}).names == {}
    assert find_places(["x.one.w"], {"x.w", "y.w"}).names == {}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("LoraConfig", {"r": 4}),
        ("LoHaConfig", {"r": 4}),
        ("IA3Config", {"feedforward_modules": ["down_proj"]}),
        ("VeraConfig", {"r": 4}),
        ("AdaLoraConfig", {"total_step": 10}),
    ],
)
def test_target_names_that_match_nothing_beside_others(
    kind: str, fields: dict[str, Any], bases: Path, tmp_path: Path
) -> None:
    targets = ["q_proj", "down_proj", "W_pack", "query_key_value"]
    config = getattr(peft, kind)(task_type="CAUSAL_LM", target_modules=targets, **fields)
    expected = saved("llama", tmp_path / "a", config)
    loaded = load(tmp_path / "a", base_folder("llama", bases))
    check_close(logits(loaded.model), expected)
    assert loaded.injection.config.type != "peft"
    assert any("W_pack" in note and "query_key_value" in note for note in loaded.notes)


def test_an_adapter_of_another_architecture_is_said_to_be_one(bases: Path, tmp_path: Path) -> None:
    saved("gpt2", tmp_path / "a", lora("gpt2"))
    with pytest.raises(
        AdapterError, match=r"'c_attn' matches no module of LlamaForCausalLM.*base it was trained on"
    ) as it:
        load(tmp_path / "a", base_folder("llama", bases))
    assert "method.target_modules" not in str(it.value)


def test_an_adapter_of_another_size_is_said_to_be_one(bases: Path, tmp_path: Path) -> None:
    saved("llama", tmp_path / "a", lora("llama", target_modules=["k_proj"]))
    base = base_folder("qwen2", bases)
    check = load(tmp_path / "a", base)  # of the same names and shapes, nothing tells
    assert check.notes[0].startswith("the adapter has no lamina.json")
    rename(tmp_path / "a", lambda name: name.replace("layers.1", "layers.2"))
    with pytest.raises(AdapterError, match=r"2 of its 4 tensors are missing .*layers\.1.*2 have no place .*layers\.2"):
        load(tmp_path / "a", base)
    (tmp_path / "b").mkdir()
    saved("llama", tmp_path / "b", lora("llama", target_modules=["k_proj"]))
    change_config(tmp_path / "b", r=8)
    with pytest.raises(AdapterError, match=r"has the shape \(4, 48\), and by the model and .* it is \(8, 48\)"):
        load(tmp_path / "b", base)


def test_experts_that_were_modules_in_transformers_4(bases: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {}
    places = {f"self_attn.{name}": (48 if name == "q_proj" else 16, 48) for name in ("q_proj", "v_proj")}
    for expert in range(4):
        for name, shape in (("w1", (80, 48)), ("w2", (48, 80)), ("w3", (80, 48))):
            places[f"block_sparse_moe.experts.{expert}.{name}"] = shape
    for layer in range(2):
        for place, (size_out, size_in) in places.items():
            start = f"base_model.model.model.layers.{layer}.{place}"
            tensors[f"{start}.lora_A.weight"] = 0.1 * torch.randn(4, size_in)
            tensors[f"{start}.lora_B.weight"] = 0.1 * torch.randn(size_out, 4)
    path = tmp_path / "a"
    path.mkdir()
    save_file(tensors, path / TENSORS, metadata={"format": "pt"})
    content = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8.0}
    content |= {"target_modules": ["q_proj", "v_proj", "w1", "w2", "w3"]}
    (path / "adapter_config.json").write_text(json.dumps(content))
    check_close(logits(load(path, base_folder("mixtral", bases)).model), peft_logits(build("mixtral"), path))


# --- Settings


@pytest.mark.parametrize("task", ["TOKEN_CLS", "QUESTION_ANS", "SEQ_2_SEQ_LM"])
def test_other_tasks_are_refused_by_name(task: str, bases: Path, tmp_path: Path) -> None:
    saved("llama", tmp_path / "a", lora("llama"))
    change_config(tmp_path / "a", task_type=task)
    with pytest.raises(AdapterError, match=rf"was trained for .* \(task_type {task}\), and lamina runs causal"):
        load(tmp_path / "a", base_folder("llama", bases))


def test_an_adapter_of_the_decoder_alone_is_said_to_be_one(bases: Path, tmp_path: Path) -> None:
    decoder = transformers.AutoModel.from_config(copy.deepcopy(FAMILIES["llama"].config))
    config = peft.LoraConfig(task_type="FEATURE_EXTRACTION", target_modules=["q_proj"])
    train_with_peft(decoder, config, tmp_path / "a")
    with pytest.raises(AdapterError, match="trained on the decoder alone"):
        load(tmp_path / "a", base_folder("llama", bases))


@pytest.mark.parametrize(
    ("fields", "reason", "merges"),
    [
        ({"init_lora_weights": "pissa_niter_2"}, "moved a part of the base's weights into the adapter", False),
        ({"alora_invocation_tokens": [7, 7]}, "acts only on the tokens after these", False),
        ({"layer_replication": [[0, 2], [1, 2]]}, "adds layers to the base", False),
        ({"kasa_config": peft.KasaConfig()}, "removes the smallest singular values", True),
    ],
)
def test_what_lives_outside_of_layers_is_refused_with_its_reason(
    fields: dict[str, Any], reason: str, merges: bool, bases: Path, tmp_path: Path
) -> None:
    expected = saved("llama", tmp_path / "a", lora("llama", **fields))
    with pytest.raises(AdapterError, match=rf"{next(iter(fields))}=.*{reason}"):
        load(tmp_path / "a", base_folder("llama", bases))
    if merges:  # the fix
        whole = peft.PeftModel.from_pretrained(build("llama"), tmp_path / "a").merge_and_unload()
        whole.save_pretrained(tmp_path / "merged")
        written = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
        check_close(logits(written.eval()), expected)


def test_the_largest_of_the_trained_numbers_alone_are_refused(bases: Path, tmp_path: Path) -> None:
    config = peft.VBLoRAConfig(
        task_type="CAUSAL_LM",
        r=4,
        num_vectors=16,
        vector_length=4,
        target_modules=["q_proj"],
        save_only_topk_weights=True,
    )
    expected = saved("llama", tmp_path / "a", config)
    with pytest.raises(
        AdapterError, match=r"save_only_topk_weights=True .* not the trained tensors.*merge it with peft"
    ):
        load(tmp_path / "a", base_folder("llama", bases))
    merged = peft.PeftModel.from_pretrained(build("llama"), tmp_path / "a").merge_and_unload()
    check_close(logits(merged.eval()), expected)


def test_a_conversion_by_peft_is_the_fix_for_what_began_in_the_base(bases: Path, tmp_path: Path) -> None:
    model = peft.get_peft_model(build("llama"), lora("llama", init_lora_weights="pissa_niter_2"))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa_niter_2"
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape)
    expected = logits(model.eval())
    model.save_pretrained(tmp_path / "a", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    ours = logits(load(tmp_path / "a", base_folder("llama", bases)).model)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("fields", [{"target_modules": ["c_attn", "lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_tied_ends_load_as_they_were_trained(fields: dict[str, Any], bases: Path, tmp_path: Path) -> None:
    """For a head that is not called as peft expects, peft writes settings that name the embedding alone."""
    config = lora("gpt2", **{"target_modules": ["c_attn"], **fields}, ensure_weight_tying=True)
    expected = logits(train_with_peft(build("gpt2"), config, tmp_path / "a"))
    loaded = load(tmp_path / "a", base_folder("gpt2", bases))
    assert loaded.injection.config.type == "lora"
    check_close(logits(loaded.model), expected)


def test_tensors_that_the_settings_do_not_select_are_refused_and_the_fix_works(bases: Path, tmp_path: Path) -> None:
    expected = saved("gpt2", tmp_path / "a", lora("gpt2", target_modules=["c_attn", "lm_head"]))
    change_config(tmp_path / "a", target_modules=["c_attn"])
    with pytest.raises(
        AdapterError, match=r"holds lm_head\.lora_A.*gets no such tensor.*name 'lm_head' in the target_m"
    ):
        load(tmp_path / "a", base_folder("gpt2", bases))
    targets = json.loads((tmp_path / "a" / "adapter_config.json").read_text())["target_modules"]
    change_config(tmp_path / "a", target_modules=[*targets, "lm_head"])
    check_close(logits(load(tmp_path / "a", base_folder("gpt2", bases)).model), expected)


@pytest.mark.parametrize(
    ("changes", "loads"),
    [
        ({"of_a_newer_peft": False}, True),
        ({"another_of_it": []}, True),
        ({"lora_dropout": 1.0}, True),
        ({"bias": "all"}, True),  # of a model without biases
        ({"some_future_key": 3}, False),
    ],
)
def test_settings_that_change_nothing_are_taken(
    changes: dict[str, Any], loads: bool, bases: Path, tmp_path: Path
) -> None:
    expected = saved("llama", tmp_path / "a", lora("llama"))
    change_config(tmp_path / "a", **changes)
    if loads:
        check_close(logits(load(tmp_path / "a", base_folder("llama", bases)).model), expected)
        return
    with pytest.raises(
        AdapterError,
        match=r"does not have: some_future_key=3\. .* could differ.*install the peft 0\.",
    ):
        load(tmp_path / "a", base_folder("llama", bases))


@pytest.mark.parametrize(
    ("kind", "fields", "lacks"),
    [
        ("LoraConfig", {"r": 8, "lora_alpha": 8}, ["r", "lora_alpha", "bias", "lora_dropout"]),
        ("IA3Config", {"feedforward_modules": []}, ["init_ia3_weights"]),
        ("AdaLoraConfig", {"total_step": 10}, ["tfinal", "beta1", "rank_pattern"]),
        ("LoHaConfig", {"r": 8}, ["r", "alpha"]),
    ],
)
def test_fields_that_an_older_peft_did_not_write_have_its_defaults(
    kind: str, fields: dict[str, Any], lacks: list[str], bases: Path, tmp_path: Path
) -> None:
    saved("llama", tmp_path / "a", getattr(peft, kind)(task_type="CAUSAL_LM", target_modules=["q_proj"], **fields))
    change_config(tmp_path / "a", **dict.fromkeys(lacks))
    expected = peft_logits(build("llama"), tmp_path / "a")
    check_close(logits(load(tmp_path / "a", base_folder("llama", bases)).model), expected)


def test_a_pickled_adapter_is_refused_and_the_fix_works(bases: Path, tmp_path: Path) -> None:
    saved("llama", tmp_path / "a", lora("llama"), safe_serialization=False)
    expected = peft_logits(build("llama"), tmp_path / "a")
    with pytest.raises(AdapterError, match=r"Fix: .*lamina convert") as refused:
        load(tmp_path / "a", base_folder("llama", bases))
    assert str(tmp_path / "a") in str(refused.value)
    convert(tmp_path / "a", tmp_path / "new")
    check_close(logits(load(tmp_path / "new", base_folder("llama", bases)).model), expected)


def test_without_peft_the_reason_says_what_it_is_needed_for(
    bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved("llama", tmp_path / "own", lora("llama"))
    saved("llama", tmp_path / "bias", lora("llama", lora_bias=True))
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    assert load(tmp_path / "own", base_folder("llama", bases)).injection.config.type == "lora"
    with pytest.raises(
        AdapterError, match=r"lamina's LoRA does not have: lora_bias=True.*pip install 'lamina\[peft\]'"
    ):
        load(tmp_path / "bias", base_folder("llama", bases))


def test_what_does_not_fit_leaves_the_model_bare(bases: Path, tmp_path: Path) -> None:
    """Lamina's own method comes first; where its tensors do not fit, peft's goes on the same model."""
    expected = saved("qwen2", tmp_path / "a", lora("qwen2", lora_bias=True))
    change_config(tmp_path / "a", lora_bias=False)
    with pytest.raises(AdapterError, match=r"lora_B\.bias, and by its adapter_config\.json .* gets no such tensor"):
        load(tmp_path / "a", base_folder("qwen2", bases))
    change_config(tmp_path / "a", lora_bias=True)
    check_close(logits(load(tmp_path / "a", base_folder("qwen2", bases)).model), expected)


def test_families_are_what_they_are_called() -> None:
    for name, family in FAMILIES.items():
        ends = {module.rpartition(".")[2] for module, _ in build(name).named_modules()}
        assert isinstance(family, Family)
        assert {family.linear, family.other, family.embedding, family.head, family.norm} <= ends
