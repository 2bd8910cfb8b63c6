"""`type: peft`: every method of the installed peft, run by lamina and compared with peft's own run of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

import lamina
from lamina.adapters.adapter import read_adapter, save_adapter
from lamina.adapters.hf_peft import fallback_config, method_config
from lamina.adapters.lock import build_lock
from lamina.chat.template import build_template
from lamina.config import METHOD_CONFIGS, load_config
from lamina.config.methods.peft import PeftConfig
from lamina.errors import AdapterError, ConfigError
from lamina.export.fold import fold_in
from lamina.methods.peft import METHOD
from lamina.methods.shared.base import Injection, find_method, inject
from lamina.methods.shared.peft_types import _REFUSED, _REFUSED_IN_TRAINING, build_peft_config, peft_types
from lamina.models.load import Base, load_base
from tests.support.models_zoo import build_model, build_tokenizer
from tests.support.peft_pairs import build
from tests.support.peft_types import FIELDS, QV, config_of

IDS = torch.tensor([[5, 9, 17, 33, 4, 101, 7, 7, 60, 21]])


# Those whose package or data are not here.
ABSENT = {"ADAMSS": "scikit-learn"}

# What peft cannot merge, and what it holds in the base's own dtype.
APART = {"BEFT", "LILY", "LORA"}
NO_MASTERS = {"LN_TUNING"}


@pytest.fixture(autouse=True)
def _no_methods_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that peft's LoRA and the like, which lamina has itself, are tested here too."""
    for module in ("lamina.methods.peft", "lamina.methods.shared.peft_types"):
        monkeypatch.setattr(f"{module}.METHOD_CONFIGS", {"peft": METHOD_CONFIGS["peft"]})


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """peft's BOFT, here also used without lamina, would leave its compiler to all tests after it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def model_of(dtype: torch.dtype = torch.float32) -> Any:
    return build_model("llama", dtype, vocab_size=259)


def begun(model: Any, config: PeftConfig) -> Injection:
    """As training begins one."""
    METHOD.check(model, config)
    return METHOD.prepare(inject(model, config, seed=0), [])


def attached(peft_type: str, dtype: torch.dtype = torch.float32) -> Injection:
    """An adapter that does something."""
    injection = begun(model_of(dtype), config_of(peft_type))
    disturb(injection.tensors())
    return injection


@torch.no_grad()
def disturb(tensors: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(3)
    for _, tensor in sorted(tensors.items()):
        tensor += 0.05 * torch.randn(tensor.shape, generator=generator)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


def on_disk(folder: Path) -> Base:
    model_of().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return load_base(str(folder), "float32")


def save(injection: Injection, base: Base, path: Path) -> None:
    save_adapter(path, injection, base, build_lock(base, build_template(base.tokenizer), []), [])


def test_every_method_of_peft_is_run_or_refused_by_name() -> None:
    refused = set(_REFUSED) | set(_REFUSED_IN_TRAINING)
    assert set(FIELDS) | refused | set(ABSENT) == set(peft_types())
    assert not set(FIELDS) & refused


@pytest.mark.parametrize("peft_type", FIELDS)
def test_the_environment_stays_as_it_is(peft_type: str) -> None:
    """peft's BOFT leaves $CC and $CXX at gcc where it cannot compile, and all that compiles later would feel it."""
    before = dict(os.environ)
    attached(peft_type)
    assert os.environ == before


@pytest.mark.parametrize("peft_type", FIELDS)
def test_forward_gradients_and_ten_steps_are_pefts(peft_type: str) -> None:
    ours = inject(model_of(), config_of(peft_type), seed=0)
    theirs = peft.get_peft_model(model_of(), build_peft_config(config_of(peft_type)))
    peft.set_peft_model_state_dict(theirs, {n: t.detach().clone() for n, t in ours.saved_tensors().items()})
    theirs.eval()
    assert sum(p.requires_grad for p in theirs.parameters()) == len(ours.tensors())
    torch.testing.assert_close(logits(ours.model), logits(theirs), rtol=1e-5, atol=1e-5)
    pairs = matched(ours, theirs)
    disturb({name: pair[0] for name, pair in pairs.items()})
    disturb({name: pair[1] for name, pair in pairs.items()})
    optimizers = [torch.optim.AdamW(group, lr=1e-3) for group in zip(*pairs.values(), strict=True)]
    for step in range(10):
        for model, optimizer in zip((ours.model, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(input_ids=IDS, labels=IDS).loss.backward()
        for name, (a, b) in pairs.items():
            assert a.grad is not None and b.grad is not None, name
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6, msg=f"{name}, step {step}")
        for optimizer in optimizers:
            optimizer.step()
    for name, (a, b) in pairs.items():
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


def matched(ours: Injection, theirs: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of the same trained tensor in both models."""
    state = peft.get_peft_model_state_dict(theirs, theirs.state_dict(keep_vars=True), save_embedding_layers=False)
    return {name: (tensor, state[name]) for name, tensor in ours.tensors().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("peft_type", FIELDS)
def test_disabled_is_the_base_and_masters_are_float32(peft_type: str, dtype: torch.dtype) -> None:
    expected = logits(model_of(dtype))
    if peft_type in NO_MASTERS and dtype != torch.float32:
        with pytest.raises(ConfigError, match=r"trained tensors are in torch\.bfloat16"):
            attached(peft_type, dtype)
        return
    injection = attached(peft_type, dtype)
    enabled = logits(injection.model)
    with injection.disabled():
        torch.testing.assert_close(logits(injection.model), expected, rtol=0, atol=0)
    assert (enabled - expected).abs().max() > 0.02
    torch.testing.assert_close(logits(injection.model), enabled, rtol=0, atol=0)
    assert {tensor.dtype for tensor in injection.tensors().values()} == {torch.float32}
    injection.model(input_ids=IDS, labels=IDS).loss.backward()
    trained = {id(tensor) for tensor in injection.tensors().values()}
    assert {id(p) for p in injection.model.parameters() if p.grad is not None} <= trained
    assert all(tensor.grad is not None for tensor in injection.tensors().values())


def test_disabling_leaves_alone_what_asks_for_gradients() -> None:
    injection = attached("HRA")
    injection.model.requires_grad_(False)
    with injection.disabled():
        pass
    assert not any(p.requires_grad for p in injection.model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("peft_type", FIELDS)
def test_merged_is_the_adapter(peft_type: str, dtype: torch.dtype) -> None:
    if peft_type in NO_MASTERS and dtype != torch.float32:
        pytest.skip("peft trains it in the base's dtype, which is refused")
    injection = attached(peft_type, dtype)
    if peft_type in APART:
        with pytest.raises(AdapterError, match="cannot be merged"):
            fold_in(injection)
        return
    expected = logits(injection.model)
    fold_in(injection)
    assert not any(type(m).__module__.startswith("peft.") for m in injection.model.modules())
    assert {p.dtype for p in injection.model.parameters()} == {dtype}
    tolerance = 3e-5 if dtype == torch.float32 else 6e-2
    scale = float(expected.abs().max())
    torch.testing.assert_close(logits(injection.model), expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("peft_type", ["C3A", "DELORA", "HIRA", "HRA", "ROAD"])
def test_a_merge_is_rounded_once(peft_type: str) -> None:
    """On a bfloat16 base it gives what it gives on the same weights in float32, rounded."""
    coarse, exact = model_of(torch.bfloat16), model_of(torch.bfloat16).float()
    first, second = (inject(model, config_of(peft_type), seed=0) for model in (coarse, exact))
    disturb(first.tensors())
    second.load_tensors(first.saved_tensors())
    fold_in(first)
    fold_in(second)
    for (name, a), b in zip(coarse.named_parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(a, b.to(torch.bfloat16), rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("peft_type", FIELDS)
def test_both_load_what_the_other_saves(peft_type: str, tmp_path: Path) -> None:
    base = on_disk(tmp_path / "base")
    injection = attached(peft_type)
    expected = logits(injection.model)
    save(injection, base, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(model_of(), tmp_path / "ours").eval()
    torch.testing.assert_close(logits(theirs), expected, rtol=1e-4, atol=1e-4)
    again = lamina.load(tmp_path / "ours", dtype="float32")
    torch.testing.assert_close(logits(again.model), expected, rtol=1e-5, atol=1e-5)

    theirs.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = lamina.load(tmp_path / "theirs", dtype="float32")
    assert loaded.adapter.config.type == "peft" or peft_type.lower() in METHOD_CONFIGS
    torch.testing.assert_close(logits(loaded.model), expected, rtol=1e-4, atol=1e-4)


def test_indices_stay_integers(tmp_path: Path) -> None:
    base = on_disk(tmp_path / "base")
    save(attached("SHIRA"), base, tmp_path / "adapter")
    kinds = {
        name.rpartition(".")[2]: tensor.dtype for name, tensor in read_adapter(tmp_path / "adapter").tensors.items()
    }
    assert kinds == {"shira_weight": torch.float32, "shira_indices": torch.int32}


def test_a_head_and_a_module_to_save_train_and_merge(tmp_path: Path) -> None:
    """Both stand where the loss looks for the head's weight, and change the embedding that it shares."""
    config = config_of("OFT", modules_to_save=["lm_head"])
    base = model_of()
    expected = logits(base)
    injection = inject(base, config, seed=0)
    assert "lm_head" in injection.layers
    disturb(injection.tensors())
    enabled = logits(base)
    with injection.disabled():
        torch.testing.assert_close(logits(base), expected, rtol=0, atol=0)
    fold_in(injection)
    torch.testing.assert_close(logits(base), enabled, rtol=1e-4, atol=1e-4)
    base.save_pretrained(tmp_path)
    written = type(base).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(written), enabled, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("peft_type", ["OFT", "VBLORA", "TRAINABLE_TOKENS"])
def test_a_whole_run(peft_type: str, tmp_path: Path) -> None:
    """Layers of their own, tensors that layers share, and the embedding with its tied head."""
    base = on_disk(tmp_path / "base")
    rows = [{"prompt": f"say {word}", "completion": word * 3} for word in ("a", "bc", "d", "ef", "g", "hi")]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    fields = {"token_indices": [1, 2, 70, 71]} if peft_type == "TRAINABLE_TOKENS" else {}
    run = lamina.train(
        {
            "model": str(base.source.folder),
            "data": {"train": str(tmp_path / "train.jsonl"), "eval": None, "max_length": 64},
            "method": config_of(peft_type, **fields).model_dump(mode="json"),
            "train": {"max_steps": 4, "learning_rate": 0.02},
            "dtype": "float32",
            "output_dir": str(tmp_path / "run"),
        }
    )
    assert run.summary is not None
    assert run.summary.train_loss_last < run.summary.train_loss_first
    loaded = lamina.load(run.path, dtype="float32")
    assert loaded.certify().passed, loaded.certify().reasons
    merged = lamina.merge(run.path, tmp_path / "merged")
    assert merged.certificate.passed


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peft_type": "OTF"}, ("'OTF' is not one of", "BOFT", "Did you mean")),
        ({"peft_type": "OFT", "oft_blok_size": 4}, ("method.oft_blok_size", "unknown key", "'oft_block_size'")),
        ({"peft_type": "HRA", "r": "four"}, ("method.r", "'four'", "valid integer")),
        ({"peft_type": "HRA", "r": 0}, ("peft refuses these settings", "positive integer")),
        ({"peft_type": "HRA", "r": 4, "target_modules": ["nope"]}, ("peft refuses these settings", "nope")),
        ({"peft_type": "HIRA", "r": 4, **QV, "rank_pattern": {"nope": 2}}, ("rank_pattern", "did not match")),
        ({"peft_type": "HRA", **QV, "bias": "all"}, ("method.bias: 'all'", "the base would be lost")),
        ({"peft_type": "HRA", **QV, "task_type": "SEQ_CLS"}, ("method.task_type", "remove it")),
        ({"peft_type": "VBLORA", **QV, "save_only_topk_weights": True}, ("does not save the trained tensors",)),
        ({"peft_type": "LORA", **QV, "init_lora_weights": "eva"}, ("reads data",)),
        ({"peft_type": "LORA", **QV, "init_lora_weights": "pissa"}, ("changes the base's own weights",)),
        ({"peft_type": "LORA", **QV, "init_lora_weights": "olora"}, ("changes the base's own weights",)),
        ({"peft_type": "LORA", **QV, "layer_replication": [[0, 1]]}, ("adds layers",)),
        ({"peft_type": "ADAMSS", **QV, "use_asa": True}, ("importance scores",)),
        ({"peft_type": "PREFIX_TUNING"}, ("PREFIX_TUNING cannot be trained here", "before the prompt")),
        ({"peft_type": "XLORA"}, ("were trained before",)),
    ],
)
def test_what_cannot_be_honoured_is_refused(fields: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        begun(model_of(), PeftConfig.model_validate({"type": "peft"} | fields))
    for word in words:
        assert word in str(caught.value)


def test_a_package_that_peft_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ConfigError, match=r"another package.*(scikit-learn|sklearn)"):
        begun(model_of(), PeftConfig.model_validate({"type": "peft", "peft_type": "ADAMSS", **QV}))


def test_lower_case_names_are_pefts_too() -> None:
    assert PeftConfig.model_validate({"type": "peft", "peft_type": "hra"}).peft_type == "HRA"


def test_what_lamina_has_itself_is_pointed_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.methods.peft.METHOD_CONFIGS", METHOD_CONFIGS)
    with pytest.raises(ConfigError, match=r"lamina implements LoRA itself.*type: lora"):
        begun(model_of(), PeftConfig.model_validate({"type": "peft", "peft_type": "LORA", "r": 4}))
    begun(model_of(), config_of("LORA"))  # lora_bias is peft's alone


# What lamina's own method says no to is no reason for `type: peft` to point back to it.
ELSEWHERE: list[tuple[str, dict[str, Any], str | None]] = [
    ("LORA", {"target_modules": ["q_proj"], "init_lora_weights": "mica"}, None),
    ("LORA", {"target_modules": ["q_proj"], "r": 64}, None),
    ("LORA", {"target_modules": ["q_proj"], "lora_bias": True}, None),
    ("LORA", {"target_modules": ["q_proj"], "ensure_weight_tying": True}, None),
    ("LORA", {"target_modules": ["q_proj"], "use_bdlora": {"target_modules_bd_a": ["q_proj"], "nblocks": 2}}, None),
    ("LN_TUNING", {"target_modules": ["q_proj"]}, None),
    ("LORA", {"target_modules": "q_proj"}, "write target_modules as a list"),
    ("LORA", {"target_modules": ["q_proj"], "kasa_config": {"beta": 0.1}}, "changes the base's own weights"),
    ("LORA", {"target_modules": ["q_proj"], "kasa_config": {"beat": 0.1}}, "must be an instance of KasaConfig"),
    ("LORA", {"target_modules": ["q_proj"], "alora_invocation_tokens": [1]}, "Fix: leave it out"),
    ("LORA", {"target_modules": ["q_proj"], "layer_replication": [[0, 2]]}, "Fix: leave it out"),
    ("VERA", {"target_modules": ["q_proj"], "bias": "all"}, "Fix: leave it out"),
    ("LORA", {"target_modules": ["q_proj"], "bias": "all"}, "use lamina's own, `type: lora`, which has bias"),
    ("LORA", {"target_modules": ["q_proj"], "init_lora_weights": "eva"}, "`type: lora`, which has init_lora_weights"),
    ("ADALORA", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "which has no modules_to_save"),
]


@pytest.mark.parametrize(("peft_type", "fields", "reason"), ELSEWHERE)
def test_no_advice_leads_in_a_circle(
    peft_type: str, fields: dict[str, Any], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("lamina.methods.peft", "lamina.methods.shared.peft_types"):
        monkeypatch.setattr(f"{module}.METHOD_CONFIGS", METHOD_CONFIGS)
    config = PeftConfig.model_validate({"type": "peft", "peft_type": peft_type} | fields)
    if reason is None:
        begun(model_of(), config)
        return
    with pytest.raises(ConfigError) as caught:
        begun(model_of(), config)
    assert reason in str(caught.value)
    if "`type: lora`, which has" in reason:
        method = load_config({"data": {"train": "x"}, "method": {"type": "lora"} | fields}).method
        inject(build_model("qwen2"), method, seed=0)


def test_lora_points_to_pefts_for_what_that_alone_has() -> None:
    method = {"type": "lora", "lora_bias": True}
    with pytest.raises(ConfigError, match=r"method\.\w+: unknown key.*`type: peft` and `peft_type: LORA`"):
        load_config({"data": {"train": "x"}, "method": method})
    begun(
        model_of(),
        PeftConfig.model_validate(method | {"type": "peft", "peft_type": "LORA", "target_modules": ["v_proj"]}),
    )


@pytest.mark.parametrize("fields", [{"target_modules": "all-linear"}, {"target_parameters": ["experts.down_proj"]}])
def test_experts_are_pointed_to_lora(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("lamina.methods.peft", "lamina.methods.shared.peft_types"):
        monkeypatch.setattr(f"{module}.METHOD_CONFIGS", METHOD_CONFIGS)
    config = PeftConfig.model_validate({"peft_type": "LORA", "r": 4, **fields})
    with pytest.raises(ConfigError, match="lamina implements LoRA itself"):
        begun(build("qwen3_moe"), config)


@pytest.mark.parametrize(
    ("pattern", "is_dead"), [("experts.down_proj", False), ("q_proj", False), ("up_proj", True), ("nothing", True)]
)
def test_ranks_of_parameters_count_and_those_of_nothing_are_refused(pattern: str, is_dead: bool) -> None:
    fields = {"target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"], "rank_pattern": {pattern: 2}}
    config = PeftConfig.model_validate({"peft_type": "LORA", "r": 4} | fields)
    if is_dead:
        with pytest.raises(ConfigError, match=f"rank_pattern: {pattern!r} did not match anything"):
            begun(build("qwen3_moe"), config)
        return
    ranks = {
        tensor.shape[0] for name, tensor in begun(build("qwen3_moe"), config).tensors().items() if "lora_A" in name
    }
    assert ranks == ({4, 4 * 2} if "down" in pattern else {2, 4 * 4})  # 4 experts in one tensor


def test_peft_is_named_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'lamina\[peft\]'"):
        inject(model_of(), config_of("HRA"), seed=0)


def test_it_is_asked_last_for_peft_adapters() -> None:
    asked = [name for name in METHOD_CONFIGS if find_method(name).fallback]
    assert asked == ["peft"]
    assert METHOD.reads_peft({"peft_type": "LORA"})
    saved = peft.LoraConfig(r=4, target_modules=["q_proj"]).to_dict() | {"target_modules": ["q_proj"]}
    assert method_config(saved | {"peft_type": "LORA", "task_type": None}).type == "lora"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "MULTITASK_PROMPT_TUNING"}, "a task number"),
        ({"peft_type": "NOPE"}, "'NOPE' is not one of"),
        ({"from_the_future": 1}, "does not have: from_the_future=1"),
    ],
)
def test_adapters_that_cannot_be_honoured_are_refused(changes: dict[str, Any], words: str) -> None:
    content = {"peft_type": "HRA", "r": 4, "target_modules": ["q_proj"], "peft_version": "0.21"} | changes
    with pytest.raises(AdapterError, match=words):
        method_config(content)


def test_defaults_of_a_peft_adapter_are_not_spelled_out() -> None:
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType.HRA]
    content = json.loads(json.dumps(kind(r=4, target_modules=["q_proj"]).to_dict(), default=sorted))
    read = method_config(content)
    assert fallback_config(content) == read
    assert isinstance(read, PeftConfig)
    assert read.fields == {"r": 4, "target_modules": ["q_proj"]}


def test_loraplus_reaches_the_b_matrices_of_pefts_methods() -> None:
    config = PeftConfig.model_validate({"peft_type": "HIRA", "r": 4, "target_modules": "all-linear"})
    injection = inject(build_model("llama"), config, seed=0)
    fast = injection.fast_tensors()
    assert fast == {name for name in injection.tensors() if "hira_B" in name}
    assert fast


def test_the_method_of_peft_must_be_named() -> None:
    with pytest.raises(ConfigError, match=r"method.peft_type: is required"):
        load_config({"data": {"train": "x"}, "method": {"type": "peft"}})
