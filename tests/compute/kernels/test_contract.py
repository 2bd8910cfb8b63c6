"""What kernels take is what their C++ declares, and whatever else they are given is an error, not a wrong number."""

from __future__ import annotations

import ast
import ctypes
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lamina.compute.kernels import build, native, packed
from lamina.compute.kernels.contract import SUFFIX, Argument, Kernel, Layout, Real, Size, Tensor, Whole
from lamina.compute.kernels.table import KERNELS
from lamina.errors import KernelError

FOLDER = Path(build.__file__).parent
needs_native = pytest.mark.skipif(native.unavailable() is not None, reason=f"no kernels: {native.unavailable()}")

# Sizes that every kernel's rules allow, and what they make of some numbers.
SIZES = {"T": 6, "D": 32, "H": 4, "J": 2, "R": 8, "V": 43, "N": 2, "M": 3, "O": 4, "I": 64, "L": 15, "C": 16, "S": 1536}
SIZES |= {"P": 128, "B": 4, "W": 256, "Q": 4, "K": 256, "G": 1, "U": 2}

# Sizes that only one tensor of a kernel has, and that may be anything.
FREE = {"rotary": "HD", "scale_columns": "T", "cross_entropy": "V", "attention": "N", "attention_backward": "N"}
FREE |= {"choose": "V", "log_normalizer": "V"}


@pytest.fixture(scope="module")
def declared() -> dict[str, tuple[str, str]]:
    """What the sources declare after the preprocessor: result and parameters of each function, by name."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("there is no compiler to preprocess the sources")
    sources = "".join(f'#include "{FOLDER / name}"\n' for name in build.SOURCES)
    command = [compiler, "-E", "-P", *build.FLAGS, "-x", "c++", "-"]
    text = subprocess.run(command, input=sources, capture_output=True, text=True, check=True).stdout
    found = re.findall(r'extern "C" (\w+) (lamina_\w+)\s*\(([^)]*)\)\s*\{', text)
    return {name: (result, parameters) for result, name, parameters in found}


def parsed(parameters: str, dtype: torch.dtype) -> list[tuple[str, str]]:
    """Types and names. What is of the kernel's dtype is called T, and untyped pointers are that too."""
    own = {"void", "float" if dtype == torch.float32 else "bf16"}
    found = []
    for parameter in parameters.split(","):
        kind, name = re.fullmatch(r"\s*(.*?)(\w+)\s*", parameter.replace("*", "* "), re.DOTALL).groups()
        kind = re.sub(r"\s+", " ", kind).replace(" *", "*").strip()
        const, element = re.fullmatch(r"(const )?(\w+)\*?", kind).groups()
        found.append((f"{const or ''}{'T' if element in own and '*' in kind else element}{'*' * ('*' in kind)}", name))
    return found


def test_signatures_are_those_of_the_sources(declared: dict[str, tuple[str, str]]) -> None:
    wanted = {f"lamina_{k.name}_{SUFFIX[dtype]}": (k, dtype) for k in KERNELS.values() for dtype in k.dtypes}
    assert declared.pop("lamina_has_pairs") == ("int64_t", "")
    # These take structures, which `decoding/layouts.py` declares and compares with the library's.
    by_structure = ("lamina_decode", "lamina_store_cache")
    declared = {name: kind for name, kind in declared.items() if not name.startswith(by_structure)}
    assert declared.keys() - wanted.keys() == set()
    assert all(not kernel.everywhere for name, (kernel, _) in wanted.items() if name not in declared)
    for name, (result, parameters) in declared.items():
        kernel, dtype = wanted[name]
        assert result == "void"
        # A float32 tensor of a float32 kernel may be either.
        ours = [(kind.replace("float*", "T*") if dtype == torch.float32 else kind, n) for kind, n in kernel.declared()]
        assert parsed(parameters, dtype) == ours, name


def test_signatures_are_set_on_the_functions() -> None:
    if native.unavailable() is not None:
        pytest.skip("no kernels")
    for kernel in KERNELS.values():
        for dtype in kernel.dtypes:
            if kernel.everywhere or build.load_kernels().has_pairs:
                function = build.load_kernels().function(kernel.name, dtype)
                assert (list(function.argtypes), function.restype) == (kernel.argtypes(), None)
                assert ctypes.c_void_p in function.argtypes


def given(kernel: Kernel, dtype: torch.dtype) -> list[Argument]:
    """Arguments that a kernel takes."""
    made: list[Argument] = []
    for parameter in kernel.parameters:
        if isinstance(parameter, Tensor):
            shape = tuple(SIZES[letter] for letter in parameter.shape)
            if parameter.name in ("nested", "nested_code", "nested_absmax"):
                made.append(None)  # its scales are in float32
            elif parameter.name == "lengths":
                made.append(torch.tensor([2, 4]))
            else:
                made.append(torch.zeros(shape, dtype=parameter.dtype or dtype))
        elif isinstance(parameter, Whole):
            made.append(max(parameter.least, 64 if parameter.name == "blocksize" else 0))
        elif isinstance(parameter, Real):
            made.append(0.5)
    return made


def spoiled(parameter: Tensor | Whole | Real, value: Argument, free: str) -> Iterator[tuple[str, Argument]]:
    """The same argument with one thing wrong, each in turn."""
    if not isinstance(parameter, Tensor):
        yield "a tensor for a number", torch.zeros(1)
        yield "none for a number", None
        if isinstance(parameter, Whole):
            yield "too small", parameter.least - 1
            yield "too large", parameter.most + 1
            yield "a fraction", 0.5
        return
    if not parameter.optional:
        yield "none", None
    yield "a number", 3
    assert isinstance(value, torch.Tensor)
    for dtype in (torch.float16, torch.float64, torch.int32, torch.float32, torch.bfloat16, torch.int64, torch.uint8):
        if dtype != value.dtype:
            yield f"{dtype}", value.to(dtype)
    yield "on another device", value.to("meta")
    for dim, letter in enumerate(parameter.shape):
        if letter not in free:
            yield f"one longer in {letter}", torch.cat([value, value.narrow(dim, 0, 1)], dim)
        yield f"empty in {letter}", value.narrow(dim, 0, 0)
    if value.dim() > 1:
        yield "one dimension more", value[None]
    apart = torch.zeros(*value.shape[:-1], 2 * value.shape[-1], dtype=value.dtype)[..., ::2]
    if parameter.layout is not Layout.GRID:
        yield "elements apart", apart
    if parameter.layout is Layout.DENSE and value.dim() > 1:
        yield "rows apart", torch.zeros(value.shape[0], value.shape[1] + 1, dtype=value.dtype)[:, :-1]
    if value.dim() == 3:
        wide = torch.zeros(value.shape[0], value.shape[1], value.shape[2] + 1, dtype=value.dtype)
        yield "heads apart", wide[..., :-1]
    if parameter.written and parameter.layout is not Layout.DENSE:
        yield "rows on each other", value[:1].expand(value.shape)
    size = value.element_size()
    if size > 1:
        memory = torch.zeros(value.nbytes + size, dtype=torch.uint8).numpy()[1 : value.nbytes + 1]
        yield "between two elements", torch.frombuffer(memory, dtype=value.dtype).view(value.shape)


@needs_native
@pytest.mark.parametrize("name", KERNELS)
def test_what_a_kernel_does_not_take_is_an_error(name: str) -> None:
    """Each argument spoiled in each way, one at a time."""
    kernel = KERNELS[name]
    parameters = [parameter for parameter in kernel.parameters if not isinstance(parameter, Size)]
    for dtype in kernel.dtypes:
        right = given(kernel, dtype)
        kernel.bind(dtype, right)
        for place, (parameter, value) in enumerate(zip(parameters, right, strict=True)):
            if value is None:
                continue
            for how, other in spoiled(parameter, value, FREE.get(name, "")):
                wrong = [*right[:place], other, *right[place + 1 :]]
                with pytest.raises(KernelError, match=f"the kernel {name} .*This is a fault in lamina"):
                    kernel.bind(dtype, wrong)
                    pytest.fail(f"{name} took {parameter.name} {how}")
        with pytest.raises(KernelError, match=r"has no form for torch\.float16"):
            kernel.bind(torch.float16, right)


@needs_native
def test_rules_among_sizes() -> None:
    x = torch.zeros(4, 2, 24)
    with pytest.raises(KernelError, match="the head size D is a multiple of 32"):
        native.attention(x, x, x, [4], 1.0, None, None, torch.zeros(4, 2, 24))
    q, k = torch.zeros(4, 3, 32), torch.zeros(4, 2, 32)
    with pytest.raises(KernelError, match="query heads H are a multiple of the key heads J; here T = 4, H = 3"):
        native.attention(q, k, k, [4], 1.0, None, None, torch.zeros(4, 3, 32))
    for lengths in ([3], [5], [5, -1]):
        with pytest.raises(KernelError, match="do not make up a sequence of 4"):
            native.attention(k, k, k, lengths, 1.0, None, None, torch.zeros(4, 2, 32))
    with pytest.raises(KernelError, match="a window of 0 tokens"):
        native.attention(k, k, k, [4], 1.0, 0, None, torch.zeros(4, 2, 32))
    with pytest.raises(KernelError, match="R is even, at most D"):
        native.rotary_(torch.zeros(4, 2, 8), torch.zeros(4, 10), torch.zeros(4, 10), False)
    for target in (-100, 7):
        with pytest.raises(KernelError, match="are not among 7 logits"):
            native.cross_entropy_(torch.zeros(2, 7), torch.tensor([1, target]), 1.0, None, True)
    with pytest.raises(KernelError, match="W weights are B blocks"):
        native.call("pack_4bit", torch.float32, torch.zeros(2, 64), 32, *_tables(), torch.zeros(2))
    with pytest.raises(KernelError, match="the blocksize is a multiple of 32"):
        native.call("pack_4bit", torch.float32, torch.zeros(3, 33), 33, *_tables(), torch.zeros(3))


def _tables() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.zeros(15), torch.zeros(16, dtype=torch.uint8), torch.zeros(64, dtype=torch.uint8)


@needs_native
@pytest.mark.parametrize("rows", [0, packed.MOST_ROWS + 1])
def test_packed_weights_are_multiplied_with_few_rows_and_not_with_none(rows: int) -> None:
    """No row at all had been taken for the most that there is a kernel for."""
    from lamina.config.quantization import QuantizationConfig
    from lamina.quantization.pack import pack_weight

    pytest.importorskip("bitsandbytes.functional")
    for bits in (4, 8):
        linear = pack_weight(torch.randn(40, 96), QuantizationConfig(bits=bits))
        x = torch.randn(rows, 96)
        assert not packed.can_multiply(x, linear)
        torch.testing.assert_close(linear.product(x), x @ linear.dense().T)


@needs_native
@pytest.mark.parametrize("dtype", SUFFIX)
def test_no_tokens(dtype: torch.dtype) -> None:
    """As an expert has that nobody asks: kernels take none of it, and plain torch gives nothing."""
    out = torch.full((3, 5), 7.0)
    native.narrow_product(torch.empty(0, 3, dtype=dtype), torch.empty(0, 5, dtype=dtype), out, 1.0)
    assert not out.any()
    assert not native.supports(torch.empty(0, 5, dtype=dtype))


def test_checks_are_no_assertions() -> None:
    """`python -O` leaves those out."""
    for path in FOLDER.glob("*.py"):
        assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)], path
