"""A backward has the kernels that its forward had, also where it runs in another thread, as autograd's does on CUDA."""

from __future__ import annotations

import ast
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import lamina
from lamina.compute.fusion import Recompute, fast_path
from lamina.compute.kernels import chosen_backend, native, plain, use_backend
from lamina.data.batch import build_batch
from lamina.losses.cross_entropy import cross_entropy
from lamina.structure.head import find_head
from tests.support.hot_path import documents, with_adapter
from tests.support.models_zoo import build_model

NAMES = [name for name in vars(plain) if callable(getattr(native, name, None)) and not name.startswith("_")]

# Functions of autograd whose backward asks for no kernels.
ASK_FOR_NONE = {
    "_ChunkedCrossEntropy",
    "_ChunkedDivergence",
    "_ChunkedLogProbs",
    "_DeltaLinear",
    "_PackedMatmul",
    "_BackwardDone",
    "_Combine",
    "_Exchange",
    "_Spread",
    "_Moved",
    "_Perturbed",
    "_PackedAttention",
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Grows by module and function with each call of a kernel, in whatever thread."""
    calls: list[tuple[str, str]] = []
    inside = threading.local()  # a native kernel may hand on to a plain one

    def watched(kernels: Any, name: str) -> Any:
        real = getattr(kernels, name)

        def call(*given: Any) -> Any:
            if getattr(inside, "busy", False):
                return real(*given)
            calls.append((kernels.__name__.rpartition(".")[2], name))
            inside.busy = True
            try:
                return real(*given)
            finally:
                inside.busy = False

        return call

    for kernels in (native, plain):
        for name in NAMES:
            monkeypatch.setattr(kernels, name, watched(kernels, name))
    return calls


def in_another_thread(work: Any, backend: str) -> None:
    """Where another choice was made."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            with use_backend(backend):
                work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


@pytest.mark.skipif(native.unavailable() is not None, reason=f"no kernels: {native.unavailable()}")
@pytest.mark.parametrize("backend", ["plain", "native"])
@pytest.mark.parametrize("recompute", [False, True, "selective"])
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"lora_dropout": 0.2}),
        ("gemma3", {"use_dora": True}),
        ("llama", {"bias": "all"}),
        ("phi", {"lora_dropout": 0.2}),  # not fused
        ("llama", {"target_modules": ["q_proj", "lm_head"]}),  # the head's chunks run again
    ],
    ids=str,
)
def test_whatever_thread(
    family: str, settings: dict[str, Any], recompute: Recompute, backend: str, asked: list[tuple[str, str]]
) -> None:
    other = {"plain": "native", "native": "plain"}[backend]
    injection = with_adapter(family, model=build_model(family), **settings)
    injection.model.train()
    tensors = list(injection.tensors().values())
    found = []
    for elsewhere in (False, True):
        with fast_path(injection.model, recompute, kernels=backend):
            asked.clear()
            torch.manual_seed(3)
            loss = cross_entropy(injection.model, find_head(injection.model), build_batch(documents()))
            work = lambda loss=loss: found.append(torch.autograd.grad(loss, tensors))  # noqa: E731
            in_another_thread(work, other) if elsewhere else work()
            assert {module for module, _ in asked} == {backend}
            assert len(asked) > 4
    assert all(torch.equal(here, there) for here, there in zip(*found, strict=True))


def test_a_backward_may_be_repeated(asked: list[tuple[str, str]]) -> None:
    """Also through layers that run again in it."""
    injection = with_adapter("phi")
    injection.model.train()
    tensors = list(injection.tensors().values())
    with fast_path(injection.model, True, kernels="plain"):
        loss = cross_entropy(injection.model, find_head(injection.model), build_batch(documents()))
        for _ in range(2):
            in_another_thread(lambda: torch.autograd.grad(loss, tensors, retain_graph=True), "auto")
    assert {module for module, _ in asked} == {"plain"}
    assert chosen_backend() == "auto"


def test_every_function_says_so() -> None:
    """A new one either keeps its forward's choice, or is put down here as asking for none."""
    for path in Path(lamina.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and any(
                ast.unparse(base).endswith("autograd.Function") for base in node.bases
            ):
                backward = next(n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "backward")
                keeps = "as_in_forward" in [ast.unparse(decorator) for decorator in backward.decorator_list]
                assert keeps != (node.name in ASK_FOR_NONE), f"{path}: {node.name}"
