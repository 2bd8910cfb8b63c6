"""Every set of kernels defines what the protocol has, with its parameters."""

from __future__ import annotations

import inspect

import pytest

from lamina.compute.kernels import compiled, native, plain
from lamina.compute.kernels.protocol import Kernels

NAMES = [name for name, value in vars(Kernels).items() if inspect.isfunction(value) and not name.startswith("_")]


@pytest.mark.parametrize("name", NAMES)
def test_three_sets_have_one_signature(name: str) -> None:
    wanted = list(inspect.signature(getattr(Kernels, name)).parameters)[1:]
    for kernels in (native, plain):
        assert list(inspect.signature(getattr(kernels, name)).parameters) == wanted, kernels.__name__
    assert callable(getattr(compiled, name))


def test_there_are_some() -> None:
    assert len(NAMES) == 11
