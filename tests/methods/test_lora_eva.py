"""EVA against peft's: the decomposition, the factors and ranks of a whole model; and a run that is cut and resumed."""

from __future__ import annotations

import functools
import json
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft.tuners.lora.eva import get_eva_state_dict
from peft.utils.incremental_pca import IncrementalPCA

import lamina
from lamina.config.methods.lora import EvaConfig, LoraConfig
from lamina.data.batch import Documents
from lamina.data.example import EncodedExample
from lamina.methods.lora import METHOD
from lamina.methods.shared import lora_eva
from lamina.methods.shared.base import Injection
from lamina.methods.shared.lora_eva import IncrementalPca
from lamina.runs.events import Event
from tests.support.lora_cases import attached, bare, disturb, logits, on_disk, save


def token_ids(count: int = 5, length: int = 48) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, 250, (1, length), generator=generator) for _ in range(count)]


def fitted(family: str, batches: Sequence[torch.Tensor], **settings: Any) -> tuple[Injection, LoraConfig]:
    injection = METHOD.prepare(attached(family, init_lora_weights="eva", **settings), batches)
    assert isinstance(injection.config, LoraConfig)
    return injection, injection.config


def _whole_pca(cls: type, n_components: int, **settings: Any) -> IncrementalPCA:
    return cls(n_components=n_components)


def _whole_svd(matrix: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    _, S, V = torch.linalg.svd(matrix, full_matrices=False)
    largest = V[:k].gather(1, V[:k].abs().argmax(1, keepdim=True))
    return S[:k], V[:k] * largest.sign()


class Watched(Sequence[torch.Tensor]):
    """Documents that are made when they are asked for, and say how many of them are held at once."""

    def __init__(self, documents: list[torch.Tensor]) -> None:
        self._documents = documents
        self._made: list[weakref.ref[torch.Tensor]] = []
        self.asked: list[int] = []
        self.most = 0

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, place: Any) -> Any:
        self._made = [made for made in self._made if made() is not None]
        made = self._documents[place].clone()
        self._made.append(weakref.ref(made))
        self.asked.append(place)
        self.most = max(self.most, len(self._made))
        return made


@pytest.mark.parametrize("count", [3, 40, 400])
def test_documents_are_looked_at_one_at_a_time(count: int) -> None:
    """As many as are needed, in turn, and none is kept; the factors are those of the same documents in memory."""
    documents = token_ids(count, length=12)
    watched = Watched(documents)
    ours, _ = fitted("llama", watched, r=4, target_modules=["q_proj", "down_proj"])
    theirs, _ = fitted("llama", documents, r=4, target_modules=["q_proj", "down_proj"])
    assert watched.most <= 2  # the last one and the one before it
    assert len(watched.asked) <= lora_eva.MAX_STEPS + 1
    assert watched.asked[1:] == [step % count for step in range(len(watched.asked) - 1)]
    for name, tensor in theirs.tensors().items():
        assert torch.equal(ours.tensors()[name], tensor)


def test_documents_of_a_run_are_made_from_its_examples() -> None:
    examples = [EncodedExample(np.arange(n, dtype=np.int32), np.zeros(n, dtype=bool), n) for n in (1, 4, 2)]
    documents = Documents(examples, torch.device("cpu"))
    assert [document.tolist() for document in documents] == [[list(range(n))] for n in (1, 4, 2)]
    assert documents[0].dtype == torch.int64 and len(documents[1:]) == 2


@pytest.mark.parametrize("k", [3, 20])  # a truncated and a whole decomposition
def test_the_decomposition_is_that_of_peft(k: int) -> None:
    ours, theirs = IncrementalPca(k), IncrementalPCA(n_components=k, lowrank=k == 3, lowrank_seed=42)
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(1.0, -2.0, 24)
    for rows in (40, 25, 61):
        x = torch.randn(rows, 24, generator=generator) * scales + 1.0
        ours.update(x)
        theirs.partial_fit(x)
    torch.testing.assert_close(ours.directions, theirs.components_.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.singular_values, theirs.singular_values_.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.explained.float(), theirs.explained_variance_ratio_.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("settings", [{"rho": 2.0, "tau": 0.9}, {"rho": 1.0, "tau": 0.9, "whiten": True}])
def test_factors_and_ranks_are_those_of_peft(
    family: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With whole decompositions in both: of inputs without a steep spectrum, truncated ones depend on their draws."""
    monkeypatch.setattr("peft.tuners.lora.eva.IncrementalPCA", functools.partial(_whole_pca, IncrementalPCA))
    monkeypatch.setattr(lora_eva, "_truncated_svd", _whole_svd)
    targets = ["q_proj", "v_proj", "up_proj", "down_proj"] if family == "llama" else ["c_attn", "c_fc"]
    if "whiten" in settings:  # peft whitens the directions of layers with the same input once for each of them
        targets = [name for name in targets if name != "v_proj"]
    batches = token_ids()
    theirs = peft.get_peft_model(
        bare(family),
        peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=4,
            lora_alpha=6,
            target_modules=targets,
            init_lora_weights="eva",
            eva_config=peft.EvaConfig(**settings),
        ),
    )
    inputs = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in batches]
    expected = get_eva_state_dict(theirs, inputs, show_progress_bar=False)

    ours, config = fitted(family, batches, target_modules=targets, eva_config=EvaConfig(**settings))
    found = ours.layers
    ranks = {key.removeprefix("base_model.model."): len(A) for key, A in expected.items()}
    assert {name: rank for name, rank in ranks.items() if rank} == {
        n: layer.lora_A.shape[0] for n, layer in found.items()
    }
    assert sum(ranks.values()) == 4 * len(ranks)
    if settings["rho"] > 1.0:
        assert len(set(ranks.values())) > 1
    for key, A in expected.items():
        if len(A):
            layer = found[key.removeprefix("base_model.model.")]
            torch.testing.assert_close(layer.lora_A.detach(), A.float(), rtol=1e-3, atol=1e-3)
            assert layer.scaling == pytest.approx(6 / 4)
            assert not layer.lora_B.any()
    for name, layer in found.items():
        assert config.rank_of(name) == layer.lora_A.shape[0]
        assert config.scaling_of(name) == pytest.approx(layer.scaling)


def test_short_documents_are_joined_and_the_adapter_is_saved_as_plain_lora(tmp_path: Path) -> None:
    ours, config = fitted("llama", token_ids(count=30, length=3), eva_config=EvaConfig(rho=2.0, tau=0.5))
    base = on_disk("llama", tmp_path / "base")
    disturb(ours)
    save(ours, base, tmp_path / "adapter")
    saved = METHOD.saved(ours).config
    assert saved == config.model_copy(update={"init_lora_weights": True, "eva_config": None})
    theirs = peft.PeftModel.from_pretrained(bare("llama"), tmp_path / "adapter")
    torch.testing.assert_close(logits(theirs), logits(ours.model), rtol=1e-4, atol=1e-4)


def test_a_layer_that_is_left_without_rank_goes_back_to_the_base() -> None:
    ours, config = fitted("gpt2", token_ids(), r=1, bias="all", eva_config=EvaConfig(rho=8.0, tau=0.5))
    name = "transformer.h.0.mlp.c_proj"
    assert list(ours.layers[name].adapter_tensors()) == ["bias"]  # `bias: all` still trains that
    assert name not in config.target_modules and "transformer.h.1.attn.c_proj" in config.target_modules
    torch.testing.assert_close(logits(ours.model), logits(bare("gpt2")), rtol=0, atol=0)

    ours, config = fitted("gpt2", token_ids(), r=1, eva_config=EvaConfig(rho=8.0, tau=0.5))
    assert name not in ours.layers and set(ours.layers) == set(config.target_modules)
    again = METHOD.attach(bare("gpt2"), config, seed=1)
    assert {n: t.shape for n, t in again.tensors().items()} == {n: t.shape for n, t in ours.tensors().items()}


def test_an_input_that_never_changes_has_nothing_to_explain() -> None:
    pca = IncrementalPca(2)
    for _ in range(2):
        pca.update(torch.ones(8, 6))
    assert not pca.explained.any()


def test_the_same_data_give_the_same_adapter_and_the_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    first, second = (fitted("llama", token_ids()) for _ in range(2))
    assert first[1] == second[1]
    assert all(
        torch.equal(a, b) for a, b in zip(first[0].tensors().values(), second[0].tensors().values(), strict=True)
    )
    torch.set_rng_state(state)


@pytest.mark.parametrize(
    "method",
    [
        {"init_lora_weights": "eva", "eva_config": {"tau": 0.8}},
        {"init_lora_weights": "pissa"},
        {"lora_fa": True, "init_lora_weights": "eva"},
        {"modules_to_save": ["embed_tokens"], "rank_pattern": {"q_proj": 2}},
    ],
)
def test_a_cut_run_gives_the_same_adapter(method: dict[str, Any], tmp_path: Path) -> None:
    base = on_disk("llama", tmp_path / "base")
    rows = [{"prompt": f"say {word}", "completion": word * 3} for word in ("a", "bc", "d", "ef", "g", "hi")]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    def settings(run: str) -> dict[str, Any]:
        return {
            "model": str(base.source.folder),
            "data": {"train": str(tmp_path / "train.jsonl"), "eval": None, "max_length": 64, "packing": False},
            "method": {"type": "lora", "r": 4, **method},
            "train": {
                "max_steps": 4,
                "per_device_train_batch_size": 2,
                "save_steps": 1,
                "learning_rate": 0.02,
                "compile": False,
            },
            "dtype": "float32",
            "output_dir": str(tmp_path / run),
        }

    def cut(event: Event) -> None:
        if event.kind == "checkpoint" and event.step == 2:
            raise KeyboardInterrupt

    whole = lamina.train(settings("whole"))
    with pytest.raises(KeyboardInterrupt):
        lamina.train(settings("cut"), cut)
    resumed = lamina.train(settings("cut"), resume=True)
    assert resumed.summary is not None and whole.summary is not None
    assert resumed.summary.adapter_digest == whole.summary.adapter_digest
    assert lamina.load(resumed.path, dtype="float32").certify().passed
    assert lamina.merge(resumed.path, tmp_path / "merged").certificate.passed
