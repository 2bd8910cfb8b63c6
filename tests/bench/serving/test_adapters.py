"""Adapters that are made for a load: the engine loads each, mixes them, and each has an effect."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lamina.adapters.adapter import read_adapter
from lamina.bench.serving.adapters import METHODS, AdapterMaker
from lamina.engine.engine import Engine
from lamina.models.load import Base, load_base


@pytest.fixture(scope="module")
def base(model_folder: Path) -> Base:
    return load_base(str(model_folder), "float32", torch.device("cpu"))


def test_adapters_of_every_kind_answer_in_one_engine(base: Base, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    maker = AdapterMaker(base, tmp_path)
    adapters = maker.first(9)
    assert maker.first(3) == adapters[:3]
    assert {adapter.method for adapter in adapters} == set(METHODS)
    assert {adapter.rank for adapter in adapters if adapter.method == "lora"} == {4, 8, 16, 32, 48}  # 48 is the width
    ids, places = [5, 9, 17, 33, 4, 101, 7, 60], [6, 7]
    with Engine(base, {adapter.name: adapter.path for adapter in adapters}) as engine:
        assert not [facts.name for facts in engine.loaded() if facts.alone_because]
        bare = engine.logits(ids, places)
        answers = [engine.logits(ids, places, adapter.name) for adapter in adapters]
    for adapter, logits in zip(adapters, answers, strict=True):
        assert float((logits - bare).abs().max()) > 1e-5, adapter.name
        assert torch.isfinite(logits).all()
    assert not torch.equal(answers[0], answers[8])  # one kind, other numbers
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())


def test_numbers_are_those_of_the_seed(base: Base, tmp_path: Path) -> None:
    digests = []
    for name, seed, count in (("a", 0, 2), ("b", 0, 2), ("c", 1, 2)):
        adapters = AdapterMaker(base, tmp_path / name, ["lora"], seed).first(count)
        assert [adapter.method for adapter in adapters] == ["lora"] * count
        digests.append([read_adapter(Path(adapter.path)).digest for adapter in adapters])
    assert digests[0] == digests[1]
    assert not set(digests[0]) & set(digests[2])


def test_what_a_row_reads_of_them(base: Base, tmp_path: Path) -> None:
    lora, dora, _, ia3, _, prefix = AdapterMaker(base, tmp_path).first(6)
    saved = read_adapter(Path(lora.path)).tensors
    assert lora.parameters == sum(tensor.numel() for tensor in saved.values())
    assert 0 < ia3.parameters < dora.parameters < lora.parameters
    assert (prefix.parameters, prefix.virtual_tokens, lora.virtual_tokens) == (0, 8, 0)
