"""Declares the parameters of a C++ kernel, and checks every call against them. `table.py` declares the kernels.

Parameters are declared in the order of the C function. They determine its ctypes signature, the sizes that a call
passes, and the checks of every call. An argument that a kernel does not support raises a `KernelError`; it never causes
a wrong result or an out-of-bounds write.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch

from lamina.errors import KernelError

Argument = torch.Tensor | float | None  # whole numbers are floats to a type checker

SUFFIX = {torch.bfloat16: "bfloat16", torch.float32: "float32"}

_C_TYPE = {
    torch.float32: "float",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.uint8: "uint8_t",
    torch.int8: "int8_t",
}
_MASK = {dtype: dtype.itemsize - 1 for dtype in (*SUFFIX, *_C_TYPE)}
_KINDS = {"float": ctypes.c_float, "int64_t": ctypes.c_int64}


class Layout(Enum):
    """How a tensor may be stored in memory."""

    DENSE = "contiguous"
    ROWS = "each row contiguous, with any stride between rows"
    GRID = "rows and columns with any strides that do not overlap"


_DENSE, _GRID = Layout.DENSE, Layout.GRID


@dataclass(frozen=True)
class Tensor:
    """A tensor parameter: a pointer, followed by the strides that its layout allows, `NAME_row` and `NAME_column`.

    Attributes:
        name: The parameter's name in C++.
        shape: One letter per dimension. For a dense tensor a single letter means its number of elements, in any shape.
        dtype: The dtype; None for the dtype that the kernel is called for.
        layout: How the tensor may be stored.
        written: Whether the kernel writes it; then its rows must not overlap.
        optional: Whether it may be None.
    """

    name: str
    shape: str
    dtype: torch.dtype | None = None
    layout: Layout = Layout.DENSE
    written: bool = False
    optional: bool = False

    def declared(self) -> list[tuple[str, str]]:
        """Lists the C types and names; `T` is the type of the kernel's dtype."""
        element = "T" if self.dtype is None else _C_TYPE[self.dtype]
        pointer = f"{'' if self.written else 'const '}{element}*"
        strides = {Layout.DENSE: [], Layout.ROWS: ["row"], Layout.GRID: ["row", "column"]}[self.layout]
        return [(pointer, self.name), *(("int64_t", f"{self.name}_{stride}") for stride in strides)]

    def place(
        self, tensor: torch.Tensor, dtype: torch.dtype, sizes: dict[str, int], arguments: list[int | float | None]
    ) -> bool:
        """Whether a tensor fits. If it does, its C arguments are added to `arguments` and its sizes to `sizes`."""
        # A step checks thousands of tensors here, so a microsecond for each would be noticeable.
        wanted, layout, letters, strides = self.dtype or dtype, self.layout, self.shape, tensor.stride()
        pointer = tensor.data_ptr()
        if tensor.dtype != wanted or not pointer or pointer & _MASK[wanted] or not tensor.is_cpu:  # 0 if it is empty
            return False
        if len(letters) == 1:
            if sizes.setdefault(letters, tensor.numel()) != tensor.numel() or not tensor.is_contiguous():
                return False
            arguments.append(pointer)
            return True
        shape = tensor.shape
        if len(shape) != len(letters):
            return False
        for letter, size in zip(letters, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                return False
        if layout is _DENSE:
            arguments.append(pointer)
            return tensor.is_contiguous()
        if layout is _GRID:
            arguments += (pointer, *strides)
            return _rows_are_disjoint(shape, strides) or _rows_are_disjoint(shape[::-1], strides[::-1])
        width = shape[-1]
        if strides[-1] != 1 and width > 1:
            return False
        if len(shape) == 3:
            if strides[1] != width and shape[1] > 1:
                return False
            width *= shape[1]
        row = strides[0]
        arguments += (pointer, row)
        return not self.written or row >= width or shape[0] == 1


def _rows_are_disjoint(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether each row of a matrix ends before the next begins, so that rows do not overlap."""
    (rows, columns), (row, column) = shape, strides
    return (columns == 1 or column >= 1) and (rows == 1 or row > (columns - 1) * column)


@dataclass(frozen=True)
class Size:
    """A size parameter, which is read from the shapes of the tensors before it and not passed by the caller."""

    name: str
    letter: str


@dataclass(frozen=True)
class Whole:
    """An integer parameter from `least` to `most`. Rules can use it like a size, by its name."""

    name: str
    least: int
    most: int

    def holds(self, value: float) -> bool:
        """Whether `value` is such an integer."""
        return isinstance(value, int) and self.least <= value <= self.most

    def __str__(self) -> str:
        return f"a whole number from {self.least} to {self.most}"


@dataclass(frozen=True)
class Real:
    """A float32 parameter."""

    name: str

    def __str__(self) -> str:
        return "a number"


@dataclass(frozen=True)
class Rule:
    """A condition on the sizes: its text for error messages, and a function of the sizes by letter."""

    text: str
    holds: Callable[[Mapping[str, int]], bool]


@dataclass(frozen=True)
class Kernel:
    """A kernel: the C function `lamina_NAME_DTYPE` for each of its dtypes.

    Attributes:
        name: NAME.
        parameters: Parameters in the order of the C function. A call passes all but the sizes.
        rules: Conditions on the sizes.
        dtypes: The dtypes for which the kernel exists.
        everywhere: Whether the kernel exists on every CPU.
    """

    name: str
    parameters: tuple[Tensor | Size | Whole | Real, ...]
    rules: tuple[Rule, ...] = ()
    dtypes: tuple[torch.dtype, ...] = tuple(SUFFIX)
    everywhere: bool = True

    def declared(self) -> list[tuple[str, str]]:
        """Lists the C types and names of all parameters; `T` is the type of the kernel's dtype."""
        found: list[tuple[str, str]] = []
        for parameter in self.parameters:
            if isinstance(parameter, Tensor):
                found += parameter.declared()
            else:
                found.append(("float" if isinstance(parameter, Real) else "int64_t", parameter.name))
        return found

    def argtypes(self) -> list[type]:
        """Lists the ctypes types of all parameters."""
        return [_KINDS.get(declared, ctypes.c_void_p) for declared, _ in self.declared()]

    def bind(self, dtype: torch.dtype, given: Sequence[Argument]) -> list[int | float | None]:
        """Checks the arguments of a call and converts them for ctypes.

        Args:
            dtype: The dtype of the function that is called.
            given: Tensors and numbers in the order of `parameters`, without the sizes.

        Raises:
            KernelError: The kernel does not support them.
        """
        if dtype not in self.dtypes:
            raise self._refusal(f"has no form for {dtype}")
        arguments: list[int | float | None] = []
        sizes: dict[str, int] = {}
        values = iter(given)
        for parameter in self.parameters:
            if isinstance(parameter, Size):
                arguments.append(sizes[parameter.letter])
                continue
            value = next(values)
            if isinstance(parameter, Tensor):
                if value is None and parameter.optional:
                    arguments += (None, 0)[: len(parameter.declared())]
                elif not isinstance(value, torch.Tensor) or not parameter.place(value, dtype, sizes, arguments):
                    raise self._refusal(f"takes as {_described(parameter, dtype, sizes)}, not {_found(value)}")
                continue
            if not isinstance(value, int | float) or (isinstance(parameter, Whole) and not parameter.holds(value)):
                raise self._refusal(f"takes as {parameter.name} {parameter}, not {_found(value)}")
            if isinstance(parameter, Whole):
                sizes[parameter.name] = int(value)
            arguments.append(value)
        for rule in self.rules:
            if not rule.holds(sizes):
                found = ", ".join(f"{letter} = {size}" for letter, size in sizes.items())
                raise self._refusal(f"asks that {rule.text}; here {found}")
        return arguments

    def _refusal(self, reason: str) -> KernelError:
        return KernelError(
            f"the kernel {self.name} {reason}. This is a fault in lamina. Fix: report it; LAMINA_KERNELS=plain goes "
            "without these kernels."
        )


def _described(parameter: Tensor, dtype: torch.dtype, sizes: Mapping[str, int]) -> str:
    known = ", ".join(f"{letter} = {sizes[letter]}" for letter in parameter.shape if letter in sizes)
    shape = f"({', '.join(parameter.shape)}){f' with {known}' if known else ''}"
    return f"{parameter.name} a tensor {shape} of {parameter.dtype or dtype} on the CPU, {parameter.layout.value}"


def _found(value: Argument) -> str:
    if isinstance(value, torch.Tensor):
        shape, strides = tuple(value.shape), value.stride()
        return f"{shape} of {value.dtype} on {value.device}, strides {strides}, at {value.data_ptr():#x}"
    return repr(value)
