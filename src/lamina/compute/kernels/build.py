"""Compiles the C++ kernels into a library on first use, for this machine, and keeps it in lamina's cache.

The sources include only the standard library, so compiling takes seconds and needs neither torch's headers nor
Python's. They use torch's OpenMP threads. The result of `load_kernels`, including a failure, is cached for the process,
so a compiler that fails is run once.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import itertools
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

from lamina.cache.folder import cache_folder
from lamina.compute.kernels.contract import SUFFIX
from lamina.compute.kernels.table import KERNELS
from lamina.errors import ConfigError, Problem

SOURCES = ("pointwise.cpp", "dropout.cpp", "attention.cpp", "narrow.cpp", "packed.cpp", "decode.cpp", "choose.cpp")
HEADERS = ("numbers.h", "memory.h", "blocks.h", "packed.h", "rows.h", "products.h", "adapted.h", "step.h", "cached.h")
FLAGS = (
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-std=gnu++17",
    "-fPIC",
)
# g++ links these libraries by default; gcc, which $CXX may name, does not.
LINKED = ("-shared", *(("-lstdc++", "-lm") if sys.platform == "linux" else ()))

# How many compilers run at once, at most; the largest source takes a third of the time of all.
COMPILERS = 3
# Time limits: for all runs of the compiler together, and for its `--version`. Compiling takes 5 to 20 s.
COMPILE_SECONDS, VERSION_SECONDS = 300.0, 30.0
# Free disk space that compiling needs.
FREE_BYTES = 2**24

Function = Callable[..., None]


class Unavailable(Exception):
    """Why there are no compiled kernels here, and how to fix it."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason)
        self.fix = fix


class _NotLoaded(OSError):
    """A file that is not a library, or that is on a file system mounted `noexec`."""


@dataclass(frozen=True)
class Library:
    """The compiled kernels, or why there are none.

    Attributes:
        loaded: The library; None if there is none.
        reason: Why there is none, or why it cannot be cached; else empty.
        fix: How to fix that.
    """

    loaded: ctypes.CDLL | None
    reason: str = ""
    fix: str = ""
    _functions: dict[tuple[str, torch.dtype], Function] = field(default_factory=dict)

    def function(self, name: str, dtype: torch.dtype) -> Function:
        """Returns the C function of a kernel for a dtype; its arguments come from `contract.Kernel.bind`."""
        found = self._functions.get((name, dtype))
        if found is None:
            found = getattr(self.loaded, f"lamina_{name}_{SUFFIX[dtype]}")
            found.argtypes, found.restype = KERNELS[name].argtypes(), None
            self._functions[name, dtype] = found
        return found

    @functools.cached_property
    def has_pairs(self) -> bool:
        """Whether the CPU has instructions for bfloat16 products: AMX or AVX512-BF16."""
        asked = self.loaded.lamina_has_pairs  # pyright: ignore[reportOptionalMemberAccess]
        asked.argtypes, asked.restype = (), ctypes.c_int64
        return bool(asked())


@functools.cache
def load_kernels() -> Library:
    """Loads the kernels, and compiles them first if the cache has none. The result is cached for the process.

    Raises:
        ConfigError: LAMINA_KERNELS has an unknown value.
    """
    setting = os.environ.get("LAMINA_KERNELS", "")
    if setting not in ("", "plain"):
        message = f"the environment variable has the unknown value {setting!r}"
        raise ConfigError(Problem("LAMINA_KERNELS", message, "set it to plain, or unset it"))
    if setting == "plain":
        return Library(None, "LAMINA_KERNELS=plain asks for plain torch", "unset LAMINA_KERNELS for compiled kernels")
    try:
        return _build()
    except Unavailable as problem:
        return Library(None, str(problem), problem.fix)


def _build() -> Library:
    """Loads the library from the cache, or compiles a new one."""
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    try:
        compiler = shlex.split(found or "")  # $CXX may contain options and a wrapper, as in `ccache g++`
    except ValueError as error:
        raise Unavailable(
            f"$CXX is {found!r}, which a shell could not read ({error})", "correct $CXX, or unset it"
        ) from error
    if not compiler:
        raise Unavailable("no C++ compiler was found", "install g++ or clang++, or name a compiler in $CXX")
    if not _programs(compiler):
        raise Unavailable(
            f"$CXX is {found!r}, options without a compiler", "name the compiler first, as in CXX='g++ -O2'"
        )
    began = time.monotonic()
    library = cache_folder() / "kernels" / f"{_key(compiler)}.so"
    with contextlib.suppress(OSError):  # a damaged library is compiled again
        if library.exists():
            return Library(ctypes.CDLL(str(library)))
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        return Library(_compile(compiler, library.parent, began, library))
    except OSError as error:
        not_kept = f"the compiled kernels cannot be kept in {library.parent} ({error.strerror})"
    try:
        loaded = _compile(compiler, Path(tempfile.gettempdir()), began)
    except _NotLoaded as error:
        raise Unavailable(
            f"the library that the C++ compiler {compiler[0]} made cannot be loaded ({error.strerror})", _fix(compiler)
        ) from error
    except OSError as error:
        raise Unavailable(
            f"{not_kept}, nor can they be made in a temporary folder ({error.strerror})",
            "set LAMINA_CACHE to a folder that can be written",
        ) from error
    fix = "set LAMINA_CACHE to a folder that can be written"
    return Library(loaded, f"{not_kept}, so each process compiles them again", fix)


def _key(compiler: list[str]) -> str:
    """Computes the cache key: a digest of the sources, the compiler and its options, and the CPU's capabilities."""
    version = _run([[*_programs(compiler), "--version"]], VERSION_SECONDS)
    files = [Path(__file__).with_name(name) for name in SOURCES + HEADERS]
    parts = [
        version.encode(),
        repr(sorted(torch.cpu.get_capabilities().items())).encode(),
        " ".join(_command(compiler, *LINKED)).encode(),
    ]
    return hashlib.sha256(b"\0".join(parts + [path.read_bytes() for path in files])).hexdigest()[:32]


def _programs(compiler: list[str]) -> list[str]:
    return list(itertools.takewhile(lambda word: not word.startswith("-"), compiler))


def _command(compiler: list[str], *arguments: str) -> list[str]:
    # Compilers avoid 512-bit vectors by default, because they lower the clock of older CPUs.
    wide = ["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else []
    programs = _programs(compiler)
    # The options of $CXX come last, so that they take precedence.
    return [*programs, *FLAGS, *wide, *compiler[len(programs) :], *arguments]


def _compile(compiler: list[str], folder: Path, began: float, library: Path | None = None) -> ctypes.CDLL:
    """Compiles in a folder and loads the result, which is stored at `library` if that is given.

    Raises:
        OSError: The folder cannot be written, or libraries cannot be loaded from it.
    """
    if shutil.disk_usage(folder).free < FREE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    # Compiled in a temporary folder and then renamed, so that two processes can compile at once, and a partly written
    # library is never loaded.
    with tempfile.TemporaryDirectory(dir=folder, prefix="lamina-") as temporary:
        made = Path(temporary) / "kernels.so"
        sources = sorted((Path(__file__).with_name(name) for name in SOURCES), key=_size, reverse=True)
        objects = [str(Path(temporary) / f"{source.stem}.o") for source in sources]
        pairs = zip(sources, objects, strict=True)
        for commands in (
            [_command(compiler, "-c", str(source), "-o", made_of_it) for source, made_of_it in pairs],
            [_command(compiler, "-xnone", *objects, *LINKED, "-o", str(made))],  # $CXX may have -xc++
        ):
            _run(commands, max(0.0, began + COMPILE_SECONDS - time.monotonic()))
        place = made if library is None else made.replace(library)
        try:
            return ctypes.CDLL(str(place))
        except OSError as error:
            place.unlink()
            raise _NotLoaded(errno.ENOEXEC, str(error).removeprefix(f"{place}: ")) from error


def _size(path: Path) -> int:
    return path.stat().st_size


def _run(commands: Sequence[Sequence[str]], seconds: float) -> str:
    """Runs compilers, a few at once, and returns what the first of them printed.

    Args:
        commands: What to run, in this order.
        seconds: How long all may take.

    Raises:
        Unavailable: One cannot be run, fails, or exceeds the time limit; or a signal came.
    """
    name, fix, until = commands[0][0], _fix(commands[0]), time.monotonic() + seconds
    children: list[subprocess.Popen[str]] = []
    failed = threading.Event()
    pool = ThreadPoolExecutor(min(COMPILERS, torch.get_num_threads()), "compiler")
    with _ended_by_signals(children) as came, pool:

        def run(command: Sequence[str]) -> str:
            if came or failed.is_set():
                return ""
            try:
                children.append(child := _started(command))
                if came or failed.is_set():  # amid the start, so that nobody has killed this one
                    _kill([child])
                said, complained = child.communicate(timeout=max(0.0, until - time.monotonic()))
                if child.returncode and not came and not failed.is_set():
                    raise Unavailable(f"the C++ compiler {name} {_ending(child.returncode, complained)}", fix)
            except BaseException:
                failed.set()
                _kill(children)
                raise
            return said

        try:
            said = list(pool.map(run, commands))
        except OSError as error:
            raise Unavailable(f"the C++ compiler {name} cannot be run ({error.strerror})", fix) from error
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"the C++ compiler {name} had not ended after {seconds:.0f} s", fix) from error
        finally:
            failed.set()
            _kill(children)
    if came:
        raise Unavailable(f"{came[0]} came while the C++ compiler {name} ran", "start again")
    return said[0]


def _started(command: Sequence[str]) -> subprocess.Popen[str]:
    # In its own session, so that its child processes can be killed with it.
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        text=True,
        errors="replace",  # messages may be in the encoding of another locale
        start_new_session=True,
    )


def _ending(code: int, complained: str) -> str:
    """How a compiler ended, and the first error among its complaints."""
    lines = [line.strip() for line in complained.splitlines() if line.strip()]
    line = next((line for line in lines if "error" in line), lines[0] if lines else "")
    ended = f"ended with {code}" if code > 0 else f"was ended by signal {-code}"
    return f"{ended}{f': {line[:300]}' if line else ''}"


def _fix(compiler: Sequence[str]) -> str:
    return f"fix {compiler[0]}, or name another C++ compiler in $CXX; LAMINA_KERNELS=plain needs none"


def _kill(children: Sequence[subprocess.Popen[str]]) -> None:
    """Kills processes that nobody has waited for to the end, with all processes in their sessions."""
    for child in children:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


@contextlib.contextmanager
def _ended_by_signals(children: Sequence[subprocess.Popen[str]]) -> Iterator[list[str]]:
    """Inside the block, a signal that asks this process to stop kills the children first, since its own handler may
    return.

    Args:
        children: Those that are running; may grow.

    Yields:
        The names of the signals that came.
    """
    came: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {int(number): signal.getsignal(number) for number in (getattr(signal, name) for name in names)}
    # Without ignored signals, and without handlers not set by Python, which cannot be restored.
    before = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}

    def on_signal(number: int, frame: FrameType | None) -> None:
        came.append(signal.Signals(number).name)
        _kill(children)
        signal.signal(number, before[number])
        handler = before[number]
        if callable(handler):
            handler(number, frame)
        else:
            os.kill(os.getpid(), number)

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield came
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is on_signal:
                signal.signal(number, handler)
