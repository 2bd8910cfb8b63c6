"""What is written beside the weights: the base's own files, changed only where something changed, and where to stop."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Gemma3Config,
)

import lamina
from lamina.adapters.adapter import save_adapter
from lamina.adapters.lock import build_lock
from lamina.chat.template import build_template
from lamina.chat.tokenizer import fingerprint_tokenizer
from lamina.config import METHOD_CONFIGS
from lamina.engine.probes import record_probes
from lamina.errors import ConfigError, ModelError, StorageError
from lamina.methods.shared.base import inject
from lamina.models import companions
from lamina.models.fingerprint import fingerprint_base
from lamina.models.gguf import convert_gguf
from lamina.models.load import load_base
from lamina.models.rope_words import MARK, add_old_rope_words
from lamina.models.source import find_model
from tests.support.hub_bases import COMPANIONS, FAMILIES, LEFT_BEHIND, add_files, write_base
from tests.support.models_zoo import CHATML, build_model, build_tokenizer

CHATML_EOS = CHATML.replace("<|im_end|>", "<|im_end|>{{ eos_token }}")


def adapter_on(base: Path, template: str | None = None, **method: Any) -> Path:
    """An adapter with random tensors, saved as training saves one."""
    config = read(base / "config.json")
    loaded = load_base(str(base), config.get("torch_dtype") or config["dtype"])
    chosen = build_template(loaded.tokenizer, template)
    settings = {"type": "lora", **method}
    injection = inject(loaded.model, METHOD_CONFIGS[settings["type"]].model_validate(settings), seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in injection.tensors().values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.05)
    path = base.parent / "adapter"
    save_adapter(path, injection, loaded, build_lock(loaded, chosen, []), record_probes(injection, chosen))
    return path


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.fixture
def merged(tmp_path: Path) -> Callable[..., Path]:
    """Writes a base, puts an adapter on it and merges it; base and result lie in `base` and `merged`."""

    def build(family: str = "llama3", trained_with: str | None = None, **base: Any) -> Path:
        write_base(tmp_path / "base", family, **base)
        add_files(tmp_path / "base")
        return lamina.merge(adapter_on(tmp_path / "base", trained_with), tmp_path / "merged").path

    return build


@pytest.mark.parametrize("family", FAMILIES)
def test_config_is_the_bases_but_for_where_to_stop(merged: Callable[..., Path], family: str, tmp_path: Path) -> None:
    folder = merged(family)
    base, written = read(tmp_path / "base/config.json"), read(folder / "config.json")
    assert written == {**base, "eos_token_id": [0, 2]}
    # transformers 5 makes the model of it that it makes of the base.
    ours, theirs = (AutoConfig.from_pretrained(path).to_dict() for path in (folder, tmp_path / "base"))
    assert ours == {**theirs, "eos_token_id": [0, 2], "_name_or_path": str(folder)}


def test_every_file_that_is_no_weight_goes_along(merged: Callable[..., Path], tmp_path: Path) -> None:
    folder = merged(eos="<|im_end|>", generation={"eos_token_id": [0, 2], "temperature": 0.6})
    for name in (*COMPANIONS, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"):
        assert (folder / name).read_bytes() == (tmp_path / "base" / name).read_bytes(), name
    assert (folder / "generation_config.json").read_bytes() == (tmp_path / "base/generation_config.json").read_bytes()
    ours = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert not ours & (LEFT_BEHIND.keys() - {"lamina_certificate.json"})
    assert (folder / "lamina_certificate.json").read_text() != LEFT_BEHIND["lamina_certificate.json"]


def test_what_is_too_large_stays_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, said = write_base(tmp_path / "base"), []
    (base / "huge.txt").write_text("x" * 100_000)
    adapter = adapter_on(base)
    monkeypatch.setattr(companions, "MAX_BYTES", 50_000)
    folder = lamina.merge(adapter, tmp_path / "merged", notify=said.append).path
    assert not (folder / "huge.txt").exists()
    assert any("huge.txt" in message for message in said)


@pytest.mark.parametrize(
    ("base", "template", "stop", "config", "generation"),
    [
        ({"generation": {"eos_token_id": 0}}, None, "<|im_end|>", [0, 2], [0, 2]),
        ({"generation": {"eos_token_id": [0, 1]}}, None, "<|im_end|>", [0, 2], [0, 1, 2]),
        ({"generation": {"temperature": 0.6, "top_p": 0.9}}, None, "<|im_end|>", [0, 2], 2),  # Llama 2's is like that
        ({}, None, "<|im_end|>", [0, 2], [0, 2]),
        ({"template": None}, "chatml", "<|im_end|>", [0, 2], [0, 2]),
        ({"template": None}, None, "<|endoftext|>", 0, 0),  # the built-in template `plain` ends with the base's own
        ({"eos": "<|im_end|>"}, None, "<|im_end|>", 2, 2),
        ({"template": CHATML_EOS}, None, "<|endoftext|>", [0, 2], [0, 2]),  # it writes EOS as well, which must stay so
    ],
)
def test_the_stop_token_is_wherever_software_looks(
    merged: Callable[..., Path],
    base: dict[str, Any],
    template: str | None,
    stop: str,
    config: Any,
    generation: Any,
) -> None:
    folder = merged(trained_with=template, **base)
    assert read(folder / "config.json")["eos_token_id"] == config
    assert read(folder / "generation_config.json")["eos_token_id"] == generation
    for key, value in base.get("generation", {}).items():
        assert key == "eos_token_id" or read(folder / "generation_config.json")[key] == value
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == stop
    special = read(folder / "special_tokens_map.json")["eos_token"]
    assert (special["content"] if isinstance(special, dict) else special) == stop
    assert fingerprint_tokenizer(tokenizer) == fingerprint_tokenizer(build_tokenizer())
    # The reader of llama.cpp's converter takes one token alone.
    assert gguf.SpecialVocab(folder).special_token_ids["eos"] == tokenizer.eos_token_id
    # With this token alone left to say, plain generation ends after one.
    assert read(folder / "lamina_certificate.json")["answers"]["differences"] == 0


@pytest.mark.parametrize("own", [None, CHATML.replace("assistant", "bot"), [{"name": "default", "template": "x"}]])
def test_the_template_of_training_is_the_folders_in_both_forms(tmp_path: Path, own: Any) -> None:
    base = write_base(tmp_path / "base", template=None)
    if own is not None:
        config = read(base / "tokenizer_config.json")
        (base / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": own}))
        (base / "additional_chat_templates").mkdir()
        (base / "additional_chat_templates/tool_use.jinja").write_text("another")
        (base / "chat_template.json").write_text("{}")
    folder = lamina.merge(adapter_on(base, "chatml"), tmp_path / "merged").path
    text = build_template(build_tokenizer(), "chatml").source
    assert (folder / "chat_template.jinja").read_text() == text
    assert read(folder / "tokenizer_config.json")["chat_template"] == text
    assert AutoTokenizer.from_pretrained(folder).chat_template == text
    assert not (folder / "chat_template.json").exists()


def test_the_dtype_changes_in_the_words_that_are_there(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", dtype="bfloat16")
    folder = lamina.merge(adapter_on(base), tmp_path / "merged", dtype="float32").path
    written = read(folder / "config.json")
    assert written["torch_dtype"] == "float32"
    assert "dtype" not in written
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.float32


def test_a_head_of_its_own_is_in_the_config(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "qwen2")
    assert read(base / "config.json")["tie_word_embeddings"]
    folder = lamina.merge(adapter_on(base, target_modules=["lm_head"]), tmp_path / "merged").path
    assert read(folder / "config.json") == {
        **read(base / "config.json"),
        "tie_word_embeddings": False,
        "eos_token_id": [0, 2],
    }


def test_a_base_of_transformers_5_gets_the_words_of_4_too(tmp_path: Path) -> None:
    build_model("llama", vocab_size=264, rope_parameters={"rope_theta": 3e4, "rope_type": "default"}).save_pretrained(
        tmp_path / "base"
    )
    build_tokenizer().save_pretrained(tmp_path / "base")
    assert read(tmp_path / "base/tokenizer_config.json")["tokenizer_class"] == "TokenizersBackend"
    folder = lamina.merge(adapter_on(tmp_path / "base"), tmp_path / "merged").path
    written = read(folder / "config.json")
    assert (written["rope_theta"], written["rope_parameters"]["rope_theta"]) == (3e4, 3e4)
    assert written["dtype"] == written["torch_dtype"] == "float32"
    assert AutoConfig.from_pretrained(folder).rope_parameters == {"rope_theta": 3e4, "rope_type": "default"}
    tokenizer = read(folder / "tokenizer_config.json")
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["model_input_names"] == ["input_ids", "attention_mask"]
    assert not tokenizer.keys() & {"is_local", "local_files_only"}


ROPE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("llama", {"rope_theta": 3e4, "rope_type": "default"}, {"rope_theta": 3e4}),
    "scaled": (
        "qwen3",
        {"rope_theta": 3e4, "rope_type": "linear", "factor": 2.0},
        {"rope_theta": 3e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ),
    "part of the head": (
        "phi",
        {"rope_theta": 3e4, "rope_type": "default", "partial_rotary_factor": 0.25},
        {"rope_theta": 3e4, "partial_rotary_factor": 0.25},
    ),
    "words of its own": (
        "gpt_neox",
        {"rope_theta": 3e4, "rope_type": "default", "partial_rotary_factor": 0.5},
        {"rotary_emb_base": 3e4, "rotary_pct": 0.5},
    ),
    "by kinds of layers": (
        "gemma3_text",
        {
            "full_attention": {"rope_theta": 3e4, "rope_type": "linear", "factor": 8.0},
            "sliding_attention": {"rope_theta": 2e4, "rope_type": "default"},
        },
        {
            "rope_theta": 3e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "rope_local_base_freq": 2e4,
        },
    ),
    "a family that none of them reaches": ("gpt2", {"rope_theta": 3e4, "rope_type": "default"}, {}),
    "another family's": ("no_such_family", {"rope_theta": 3e4, "rope_type": "default"}, {}),
}


@pytest.mark.parametrize("case", ROPE)
def test_rotary_positions_in_the_words_of_transformers_4(case: str) -> None:
    kind, parameters, words = ROPE[case]
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    layers = {"layer_types": ["sliding_attention", "full_attention"]} if kind == "gemma3_text" else {}
    config = {"model_type": kind, **sizes, **layers, "rope_parameters": parameters}
    for outer in (config, {"model_type": "some_vision_model", "text_config": config}):
        changed = json.loads(json.dumps(outer))
        add_old_rope_words(changed)
        part = changed.get("text_config", changed)
        assert {key: part.get(key) for key in part.get(MARK, ())} == words
        again = json.loads(json.dumps(changed))
        add_old_rope_words(again)
        assert again == changed
        for key in (*words, *([MARK] if words else [])):
            del part[key]
        assert changed == outer


def test_repeated_words_are_no_part_of_the_digest_and_others_are(tmp_path: Path) -> None:
    build_model("llama", rope_parameters={"rope_theta": 3e4, "rope_type": "default"}).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    before, config = fingerprint_base(tmp_path), read(path)
    add_old_rope_words(config)
    assert config["rope_theta"] == 3e4
    path.write_text(json.dumps(config))
    assert fingerprint_base(tmp_path) == before
    path.write_text(json.dumps({**config, "rope_theta": 4e4}))  # which transformers 5 would take for the truth
    assert fingerprint_base(tmp_path) != before
    path.write_text(json.dumps({key: value for key, value in config.items() if key != MARK}))
    assert fingerprint_base(tmp_path) != before


@pytest.mark.parametrize(
    ("rows", "eos"), [("text", "<|endoftext|>"), ("prompt", "<|im_end|>"), (None, "<|endoftext|>")]
)
def test_the_tokenizer_ends_texts_as_training_did(rows: str | None, eos: str, tmp_path: Path) -> None:
    """Plain texts, chats, and an adapter of which nobody says what it was trained on."""
    base = write_base(tmp_path / "base")
    said = [{rows or "prompt": f"word {number} it is", "completion": "yes"} for number in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, said)))
    settings = {
        "model": str(base),
        "data": {"train": str(tmp_path / "rows.jsonl"), "eval": None, "max_length": 64},
        "dtype": "float32",
        "train": {"max_steps": 2},
        "output_dir": str(tmp_path / "run"),
    }
    if rows == "text":
        settings["data"] |= {"format": "text"}
    run = lamina.train(settings)
    if rows is None:
        (run.adapter / "lamina.json").unlink()
    folder = lamina.merge(run.path, tmp_path / "merged").path
    assert AutoTokenizer.from_pretrained(folder).eos_token == eos
    # A run on texts answers without the template, so only what ends a text ends its answers.
    assert read(folder / "generation_config.json")["eos_token_id"] == (0 if rows == "text" else [0, 2])
    untouched = (folder / "tokenizer_config.json").read_bytes() == (base / "tokenizer_config.json").read_bytes()
    assert untouched == (rows is None)  # a run on texts leaves the chat template beside one for bare text


def test_a_quantized_base_and_what_is_merged_into_it(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes.functional")
    base = write_base(tmp_path / "base", "llama3")
    add_files(base)
    rows = [{"prompt": f"say {number}", "completion": f"number {number}"} for number in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {
        "model": str(base),
        "data": {"train": str(tmp_path / "rows.jsonl"), "eval": None, "max_length": 64},
        "dtype": "float32",
        "quantization": {"bits": 4, "blocksize": 32},
        "train": {"max_steps": 2},
        "output_dir": str(tmp_path / "run"),
    }
    packed = lamina.quantize(settings, tmp_path / "packed").path
    written = read(packed / "config.json")
    packing = written.pop("quantization_config")
    assert packing["load_in_4bit"]
    assert written == {**read(base / "config.json"), "eos_token_id": [0, 2]}
    assert read(packed / "generation_config.json")["eos_token_id"] == [0, 2]
    for name in (*COMPANIONS, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (packed / name).read_bytes() == (base / name).read_bytes(), name  # nothing has been taught yet
    assert not (packed / "pytorch_model.bin").exists()

    run = lamina.train({**settings, "model": str(packed), "quantization": None})
    merged = lamina.merge(run.path, tmp_path / "merged").path
    assert read(merged / "config.json") == {**read(base / "config.json"), "eos_token_id": [0, 2]}
    assert AutoTokenizer.from_pretrained(merged).eos_token == "<|im_end|>"
    assert not (merged / "quantization_report.json").exists()
    assert AutoModelForCausalLM.from_pretrained(merged, dtype="auto").dtype == torch.float32


def write_gguf(path: Path, template: str) -> None:
    """A two-layer Llama with a byte-level tokenizer whose EOS is not what its chat template ends turns with."""
    tokenizer = build_tokenizer()
    tokens = [*sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__), "ab"]
    model = build_model("llama", vocab_size=len(tokens), tie_word_embeddings=False)
    writer = gguf.GGUFWriter(path, "llama")
    config = model.config
    writer.add_context_length(256)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(30000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_chat_template(template)
    names = {
        "embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "gate_proj": "ffn_gate",
        "up_proj": "ffn_up",
        "down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for name, tensor in model.state_dict().items():
        stem = name.removesuffix(".weight")
        place = f"blk.{stem.split('.')[2]}." if ".layers." in stem else ""
        (new,) = (there for here, there in names.items() if stem.endswith(here))
        writer.add_tensor(f"{place}{new}.weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_converted_gguf_stops_and_is_read_by_both_versions(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", CHATML)
    folder = tmp_path / "converted"
    folder.mkdir()
    convert_gguf(tmp_path / "model.gguf", folder)
    config = read(folder / "config.json")
    assert (config["rope_theta"], config["rope_parameters"]["rope_theta"]) == (30000.0, 30000.0)
    assert config["torch_dtype"] == "bfloat16"
    assert config["eos_token_id"] == 0  # adapters are locked to it
    assert read(folder / "generation_config.json")["eos_token_id"] == [0, 2]
    tokenizer = read(folder / "tokenizer_config.json")
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not tokenizer.keys() & {"is_local", "local_files_only"}
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == [0, 2]


def test_a_gguf_whose_template_is_of_no_use_is_converted_all_the_same(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", "{% for %}")
    folder = tmp_path / "converted"
    folder.mkdir()
    convert_gguf(tmp_path / "model.gguf", folder)
    assert read(folder / "generation_config.json")["eos_token_id"] == 0
    with pytest.raises(ConfigError, match="not valid Jinja"):
        build_template(AutoTokenizer.from_pretrained(folder))
    assert build_template(AutoTokenizer.from_pretrained(folder), "chatml").stop_token == "<|im_end|>"


def test_a_full_disk_is_not_taken_for_a_bad_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_gguf(tmp_path / "model.gguf", CHATML)
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lamina.models.gguf.complete_converted", full)
    with pytest.raises(StorageError, match="the disk is full"):
        find_model(str(tmp_path / "model.gguf"))
    monkeypatch.setattr("lamina.models.gguf.complete_converted", lambda *_: None)
    (tmp_path / "model.gguf").write_bytes(b"GGUF, but not for long")
    with pytest.raises(ModelError, match="transformers cannot read this GGUF file"):
        find_model(str(tmp_path / "model.gguf"))


def test_a_vision_language_model_is_one_afterwards(tmp_path: Path) -> None:
    """Its processors go along, its config keeps the vision part, and only the text's embedding has an end."""
    base = tmp_path / "base"
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6}
    text = {**sizes, "vocab_size": 264, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8}
    vision = {**sizes, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, eos_token_id=[0, 1])
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.save_pretrained(base)
    build_tokenizer().save_pretrained(base)
    add_files(base)
    adapter = adapter_on(base, target_modules=".*language_model.*_proj")
    folder = lamina.merge(adapter, tmp_path / "merged").path
    for name in COMPANIONS:
        assert (folder / name).read_bytes() == (base / name).read_bytes()
    written, before = read(folder / "config.json"), read(base / "config.json")
    assert written["eos_token_id"] == [0, 1, 2]
    assert written["vision_config"] == before["vision_config"]
    assert written["architectures"] == before["architectures"]
    again: Any = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(again) is type(model)
    assert set(again.state_dict()) == set(model.state_dict())
    assert load_file(folder / "model.safetensors").keys() == load_file(base / "model.safetensors").keys()
