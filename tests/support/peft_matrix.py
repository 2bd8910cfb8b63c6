"""The matrix: configurations of peft's methods on tiny models of 22 families, each a `Case` to be saved and loaded.

A case names modules by their part in a layer, which `names_of` finds in each family: two projections of the attention,
one of the feed-forward part, a norm, the embedding and the head.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

import lamina
from lamina.errors import LaminaError
from lamina.machine.quiet import quiet_transformers
from tests.support.architectures import build_architecture
from tests.support.models_zoo import build_tokenizer
from tests.support.peft_pairs import logits, peft_logits, train_with_peft

# Each family's name in `ARCHITECTURES`, and settings that make it another one.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "qwen2_tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3_text", {}),
    "mistral": ("mistral", {}),
    "phi": ("phi", {}),
    "phi3": ("phi3", {}),
    "gpt2": ("gpt2", {}),
    "gptj": ("gptj", {}),
    "gpt_neo": ("gpt_neo", {}),
    "opt": ("opt", {}),
    "bloom": ("bloom", {}),
    "gpt_neox": ("gpt_neox", {}),
    "falcon": ("falcon", {}),
    "mixtral": ("mixtral", {}),
    "qwen3_moe": ("qwen3_moe", {}),
    "gpt_oss": ("gpt_oss", {}),
    "llama4": ("llama4_text", {}),
}


@dataclass(frozen=True)
class Names:
    """A family's names of its modules; those of a layer without their path.

    Attributes:
        a, b: Two linear layers of the attention; the same where there is but one.
        up: A linear layer of the feed-forward part, or of the attention where that has none.
        norm: A norm of a layer.
        embedding, head: The ends of the model.
        layer: The path of the first decoder layer.
        experts: Weights of experts that are stacked in one tensor; empty if it has none.
    """

    a: str
    b: str
    up: str
    norm: str
    embedding: str
    head: str
    layer: str
    experts: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """One cell of the matrix: `peft.KIND(**fields)` on a family."""

    family: str
    label: str
    kind: str
    fields: dict[str, Any]


def build_family(family: str) -> PreTrainedModel:
    """The family's model, frozen, in float32."""
    name, changes = FAMILIES[family]
    return build_architecture(name, **changes)


def names_of(model: PreTrainedModel) -> Names:
    """Finds a family's names."""
    modules = dict(model.named_modules())
    first = next(name for name in modules if name.endswith(".0"))
    inside = {
        name.removeprefix(f"{first}."): module for name, module in modules.items() if name.startswith(f"{first}.")
    }
    linears = [name for name, module in inside.items() if isinstance(module, nn.Linear | Conv1D)]
    attention = [name for name in linears if "att" in name] or linears
    rest = [name for name in linears if name not in attention] or attention
    ends = {id(model.get_input_embeddings()): "embedding", id(model.get_output_embeddings()): "head"}
    found = {ends[id(module)]: name.rpartition(".")[2] for name, module in modules.items() if id(module) in ends}
    norms = [name for name, module in inside.items() if "norm" in type(module).__name__.lower()]
    norms.sort(key=lambda name: name.count("."))  # those of the layer itself first
    stacked = [
        name.removeprefix(f"{first}.")
        for name, parameter in model.named_parameters()
        if name.startswith(f"{first}.") and ".experts." in name and parameter.ndim == 3
    ]
    last = [name.rpartition(".")[2] for name in (attention[0], attention[-1], rest[-1], norms[0])]
    return Names(last[0], last[1], last[2], last[3], found["embedding"], found["head"], first, tuple(stacked))


def cases_of(family: str, names: Names) -> list[Case]:
    """The cases of a family: LoRA with each of its settings and pairs of them; other methods with the common ones."""
    rows = [*_lora(names), *_others(names)]
    return [Case(family, label, kind, fields) for label, kind, fields in rows]


Row = tuple[str, str, dict[str, Any]]


def _common(n: Names, target: str) -> dict[str, dict[str, Any]]:
    """Settings that most of peft's methods have, for an adapter on `target`."""
    return {
        "plain": {},
        "dead names": {"target_modules": [target, "W_pack", "query_key_value_dense"]},
        "regex": {"target_modules": rf".*\.{target}"},
        "all-linear": {"target_modules": "all-linear"},
        "whole names": {"target_modules": [f"{n.layer[:-1]}1.{target}" if "." not in target else target, target]},
        "exclude_modules": {"exclude_modules": [n.layer]},
        "exclude_modules regex": {"exclude_modules": rf"{n.layer}\..*"},
        "layers_to_transform": {"layers_to_transform": [1]},
        "layers_to_transform number": {"layers_to_transform": 0},
        "layers_pattern": {"layers_to_transform": [0], "layers_pattern": n.layer.split(".")[-2]},
        "save head": {"modules_to_save": [n.head]},
        "save embedding": {"modules_to_save": [n.embedding]},
        "save norm": {"modules_to_save": [n.norm]},
        "save both ends": {"modules_to_save": [n.embedding, n.head]},
        "bias all": {"bias": "all"},
        "rank_pattern": {"rank_pattern": {n.b: 2}, "target_modules": [n.a, n.b]},
        "alpha_pattern": {"alpha_pattern": {n.b: 3}, "target_modules": [n.a, n.b]},
        "on head": {"target_modules": [n.head, target]},
        "on embedding": {"target_modules": [n.embedding, target]},
    }


def _lora(n: Names) -> Iterator[Row]:
    base: dict[str, Any] = {"r": 4, "target_modules": [n.a, n.up]}
    single: dict[str, dict[str, Any]] = _common(n, n.a) | {
        "default": {"target_modules": None},
        "rslora": {"use_rslora": True, "lora_alpha": 7.5},
        "dora": {"use_dora": True},
        "lora_bias": {"lora_bias": True},
        "bias lora_only": {"bias": "lora_only"},
        "tokens": {"trainable_token_indices": [5, 6, 7]},
        "tokens named": {"trainable_token_indices": {n.embedding: [1, 9]}},
        "weight tying": {"ensure_weight_tying": True},
        "weight tying, saved": {"ensure_weight_tying": True, "modules_to_save": [n.embedding]},
        "weight tying, tokens": {"ensure_weight_tying": True, "trainable_token_indices": [5, 6]},
        "weight tying, on embedding": {"ensure_weight_tying": True, "target_modules": [n.embedding, n.a]},
        "rank 40": {"r": 40, "target_modules": "all-linear"},
        "dead rank_pattern": {"rank_pattern": {"nothing": 2}},
        "rank_pattern regex": {"rank_pattern": {rf"^{n.layer}\..*": 2}},
        "rank_pattern path": {"rank_pattern": {f"{n.layer}.*{n.a}": 2}, "alpha_pattern": {f"{n.layer}.*{n.a}": 5}},
        "save twice": {"modules_to_save": [n.norm, n.head]},
        "head alone": {"target_modules": [n.head]},
        "embedding alone": {"target_modules": [n.embedding]},
        "fan_in_fan_out": {"fan_in_fan_out": True},
        "dropout": {"lora_dropout": 0.3},
        "qalora": {"use_qalora": True, "qalora_group_size": 4},
        "replication": {"layer_replication": [[0, 2], [1, 2]]},
        "alora": {"alora_invocation_tokens": [7, 60]},
        "bdlora": {"use_bdlora": {"target_modules_bd_a": [n.a], "nblocks": 2}},
        "arrow": {"arrow_config": {"top_k": 1}},
        "kasa": {"kasa_config": {"beta": 0.01, "gamma": 0.01}},
        "velora": {"velora_config": {"num_groups": 2, "init_type": "random"}},
        "monteclora": {"monteclora_config": {}},
        "no exclusion": {"exclude_modules": ["nothing"]},
    }
    for init in (False, "gaussian", "orthogonal", "eva", "olora", "pissa", "pissa_niter_2", "mica", "corda", "loftq"):
        single[f"init {init}"] = {"init_lora_weights": init}
    if n.experts:
        single |= {
            "experts": {"target_parameters": list(n.experts)},
            "one expert weight": {"target_parameters": [n.experts[0]]},
            "experts alone": {"target_modules": [], "target_parameters": list(n.experts)},
            "experts, rank_pattern": {"target_parameters": list(n.experts), "rank_pattern": {n.experts[0]: 2}},
            "experts, saved head": {"target_parameters": [n.experts[-1]], "modules_to_save": [n.head]},
        }
    for label, fields in single.items():
        yield f"LORA {label}", "LoraConfig", base | fields
    for one, two in _PAIRS:
        if one in single and two in single:
            both = base | single[one] | single[two]
            targets = [s["target_modules"] for s in (single[one], single[two]) if "target_modules" in s]
            if len(targets) == 2 and all(isinstance(each, list) for each in targets):
                both["target_modules"] = list(dict.fromkeys([*targets[0], *targets[1]]))
            yield f"LORA {one} + {two}", "LoraConfig", both


_PAIRS = [
    (one, two)
    for one in ("dora", "lora_bias", "tokens", "save head", "on head", "on embedding", "rank_pattern", "dead names")
    for two in (
        "exclude_modules",
        "layers_to_transform",
        "bias all",
        "rslora",
        "save embedding",
        "save norm",
        "alpha_pattern",
        "weight tying",
        "experts",
    )
]

# The other methods with layers, each with what fits a width of 64.
_METHODS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "ADALORA": ("AdaLoraConfig", {"init_r": 4, "target_r": 2, "total_step": 10}, ("*",)),
    "IA3": ("IA3Config", {"feedforward_modules": []}, ("*",)),
    "LOHA": ("LoHaConfig", {"r": 4}, ("*",)),
    "LOKR": ("LoKrConfig", {"r": 4}, ("*",)),
    "VERA": ("VeraConfig", {"r": 8}, ("*",)),
    "LN_TUNING": ("LNTuningConfig", {}, ("plain", "exclude_modules", "save head", "save embedding", "dead names")),
    "OFT": ("OFTConfig", {"r": 0, "oft_block_size": 4}, ("plain", "exclude_modules", "save head", "bias all")),
    "BOFT": ("BOFTConfig", {"boft_block_size": 4}, ("plain", "save norm")),
    "HRA": ("HRAConfig", {"r": 4}, ("plain", "layers_to_transform", "save head")),
    "FOURIERFT": ("FourierFTConfig", {"n_frequency": 50}, ("plain", "layers_to_transform", "save head")),
    "VBLORA": ("VBLoRAConfig", {"r": 4, "num_vectors": 16, "vector_length": 4}, ("plain", "save head")),
    "RANDLORA": ("RandLoraConfig", {"r": 4}, ("plain", "save head")),
    "HIRA": ("HiraConfig", {"r": 4}, ("plain", "rank_pattern")),
    "MISS": ("MissConfig", {"r": 4}, ("plain", "save head")),
    "DELORA": ("DeloraConfig", {"r": 4}, ("plain", "rank_pattern")),
    "SHIRA": ("ShiraConfig", {"r": 2}, ("plain", "save head")),
    "ROAD": ("RoadConfig", {"group_size": 8}, ("plain",)),
    "WAVEFT": ("WaveFTConfig", {"n_frequency": 48}, ("plain",)),
    "C3A": ("C3AConfig", {"block_size": 4}, ("plain",)),
    "GRALORA": ("GraloraConfig", {"r": 4, "gralora_k": 2, "alpha": 8}, ("plain",)),
    "TRAINABLE_TOKENS": ("TrainableTokensConfig", {"token_indices": [5, 9, 17]}, ("plain",)),
    "PROMPT_TUNING": ("PromptTuningConfig", {"num_virtual_tokens": 4}, ("plain",)),
    "PREFIX_TUNING": ("PrefixTuningConfig", {"num_virtual_tokens": 4}, ("plain",)),
    "P_TUNING": ("PromptEncoderConfig", {"num_virtual_tokens": 4, "encoder_hidden_size": 16}, ("plain",)),
}


def _others(n: Names) -> Iterator[Row]:
    for method, (kind, base, wanted) in _METHODS.items():
        target = n.norm if method == "LN_TUNING" else n.a
        common = _common(n, target)
        if method == "IA3":
            common["feedforward"] = {"target_modules": [n.a, n.up], "feedforward_modules": [n.up]}
            common["feedforward, excluded"] = common["feedforward"] | {"exclude_modules": [n.layer]}
            common["feedforward, saved"] = common["feedforward"] | {"modules_to_save": [n.head]}
        fields = (
            base
            if method.endswith(("TOKENS", "TUNING")) and method != "LN_TUNING"
            else {"target_modules": [target], **base}
        )
        for label, more in common.items():
            if wanted == ("*",) or label in wanted:
                yield f"{method} {label}", kind, fields | more


def all_cases(families: Sequence[str]) -> list[Case]:
    """The whole matrix, or that of some families."""
    return [case for family in families for case in cases_of(family, names_of(build_family(family)))]


TOLERANCE = 1e-5  # of the largest logit


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Attributes:
        family, label: Which case.
        result: "loaded", "refused", "wrong", "crashed", or "none" if peft has no such adapter.
        method: By which of lamina's methods it was loaded.
        why: The reason of a refusal; the difference; the exception.
    """

    family: str
    label: str
    result: str
    method: str = ""
    why: str = ""


def run_case(case: Case, folder: Path) -> Outcome:
    """Saves an adapter with peft, and loads it with peft and with lamina.

    Args:
        case: Which.
        folder: For bases and adapters; a base is written once.
    """
    base, path = _base_folder(case.family, folder), folder / "adapter"
    shutil.rmtree(path, ignore_errors=True)
    try:
        with _silence():
            config: Any = getattr(peft, case.kind)(task_type="CAUSAL_LM", **case.fields)
            trained = logits(train_with_peft(build_family(case.family), config, path))
            expected = peft_logits(build_family(case.family), path)
    except Exception as error:  # whatever peft raises for what it has not
        return Outcome(case.family, case.label, "none", why=f"{type(error).__name__}: {error}"[:200])
    if not expected.isfinite().all():
        return Outcome(case.family, case.label, "none", why="peft's logits are not finite")
    try:
        with _silence():
            loaded = lamina.load(path, model=str(base), dtype="float32")
            found = logits(loaded.model)
    except LaminaError as error:
        return Outcome(case.family, case.label, "refused", why=str(error).replace(str(path), "PATH"))
    except Exception as error:  # a fault, which is what this looks for
        return Outcome(case.family, case.label, "crashed", why=f"{type(error).__name__}: {error}")
    difference = float((found - expected).abs().max())
    # Where peft does not load what it trained, as a tied head beside an embedding named `wte`, what it trained counts.
    as_trained = float((found - trained).abs().max())
    if min(difference, as_trained) <= TOLERANCE * float(expected.abs().max()):
        return Outcome(case.family, case.label, "loaded", loaded.injection.config.type)
    with _silence():
        again = float((peft_logits(build_family(case.family), path) - expected).abs().max())
    result = "none" if again > 0 else "wrong"  # an adapter that draws numbers whenever it is loaded
    return Outcome(case.family, case.label, result, loaded.injection.config.type, f"differs by {difference:.3g}")


def _base_folder(family: str, folder: Path) -> Path:
    path = folder / "bases" / family
    if not path.is_dir():
        with _silence():
            build_family(family).save_pretrained(path)
            build_tokenizer().save_pretrained(path)
    return path


@contextlib.contextmanager
def _silence() -> Any:
    with (
        warnings.catch_warnings(),
        quiet_transformers(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
