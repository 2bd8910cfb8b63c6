"""Compilers that are missing, fail or hang, caches that cannot keep anything: asked once, and said truly.

And what `doctor` says of the kernels is what a run then has.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

import lamina
from lamina import doctor
from lamina.compute.kernels import (
    KernelState,
    build,
    kernel_notes,
    kernel_state,
    kernels_for,
    native,
    plain,
    prepare_kernels,
)
from lamina.errors import ConfigError
from lamina.runs import Run
from lamina.signals import stop_on_signals
from tests.support.training import notes_into, write_rows

CPU = torch.device("cpu")

# In shell: what follows is done when more than the version is asked; `to` becomes the last argument, the library.
COMPILING, LAST = '[ "$1" = --version ] ||', 'for to in "$@"; do :; done'

# In shell: hangs, as only this process' compilers do.
HANG = f"sleep 600.{os.getpid()}"

# Runs of the compiler that make the library: one for each source, and one that links.
ALL = len(build.SOURCES) + 1

needs_native = pytest.mark.skipif(native.unavailable() is not None, reason=f"no kernels: {native.unavailable()}")
posix = pytest.mark.skipif(sys.platform == "win32", reason="compilers here are shell scripts")
pytestmark = posix


@pytest.fixture(autouse=True)
def _ask_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test is a process that has not loaded any kernels yet, and so are those that follow."""
    for name in ("LAMINA_KERNELS", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(build, "COMPILERS", 1)  # so that the first that fails is the last that is asked
    native.load_kernels.cache_clear()
    yield
    monkeypatch.undo()
    native.load_kernels.cache_clear()


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes $CXX a script that notes its runs in a file, which is returned, and then does as it is told."""

    def make(does: str) -> Path:
        script, runs = tmp_path / "compiler", tmp_path / "runs"
        script.write_text(f'#!/bin/sh\necho "$@" >> {runs}\n{does}\n')
        script.chmod(0o755)
        runs.touch()
        monkeypatch.setenv("CXX", str(script))
        return runs

    return make


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def at_hand() -> str:
    """What a script does that has the kernels at hand, instead of compiling them: seconds less."""
    native.load_kernels.cache_clear()
    if native.unavailable() is not None:
        pytest.skip(f"no kernels: {native.unavailable()}")
    made = native.load_kernels().loaded  # and not the newest in the cache, which may be a sanitizer's
    assert made is not None
    return f'{COMPILING} {{ {LAST}; cp {made._name} "$to"; }}'


def train(folder: Path, model: Path, **settings: object) -> tuple[Run, list[str]]:
    """A run of two steps, and the notes that it gave."""
    notes: list[str] = []
    config = {
        "model": str(model),
        "data": {"train": str(write_rows(folder / "rows.jsonl")), "max_length": 64},
        "method": {"type": "lora", "r": 3},
        "train": {"max_steps": 2, **settings},
        "output_dir": str(folder / "run"),
    }
    return lamina.train(config, notes_into(notes)), notes


def count(runs: Path) -> int:
    return len(runs.read_text().splitlines())


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("does", "asked", "reason"),
    [
        ("exit 3", 1, "ended with 3"),
        (
            f"{COMPILING} {{ echo 'in a file:'; echo 'fatal error: cmath: none'; exit 1; }} >&2",
            2,
            ": fatal error: cmath",
        ),
        (f"{COMPILING} kill -9 $$", 2, "was ended by signal 9"),
        (
            f'{COMPILING} {{ {LAST}; echo "no library" > "$to"; }}',
            1 + 2 * ALL,
            "made cannot be loaded (file too short)",
        ),
    ],
)
def test_a_failing_compiler_is_asked_once_in_a_whole_run(
    does: str, asked: int, reason: str, compiler: Callable[[str], Path], tmp_path: Path, model_folder: Path
) -> None:
    """And once again in a temporary folder, if what it made cannot be loaded."""
    runs = compiler(does)
    run, notes = train(tmp_path, model_folder)
    assert run.manifest.kernels == "plain"
    assert count(runs) == asked
    (note,) = [note for note in notes if "Plain torch is used instead" in note]
    assert reason in note
    assert "is right" not in note
    assert kernels_for(torch.zeros(2, 2)) is plain
    assert count(runs) == asked


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("hangs", [HANG, f"{COMPILING} {HANG}"], ids=["at once", "compiling"])
def test_a_hanging_compiler_is_waited_for_once(
    hangs: str, compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "COMPILE_SECONDS", 1.0)
    monkeypatch.setattr(build, "VERSION_SECONDS", 0.5)
    runs, began = compiler(f"{hangs} & wait"), time.monotonic()
    assert "had not ended after" in str(native.unavailable())
    waited = time.monotonic() - began
    assert 0.4 < waited < 10.0
    asked = count(runs)
    for _ in range(100):
        assert "had not ended after" in kernel_notes(CPU, "auto")[0]
    assert time.monotonic() - began < waited + 5.0
    assert count(runs) == asked
    assert HANG not in children()


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("at_once", [1, 3])
def test_several_compilers_run_at_once(
    at_once: int, at_hand: str, compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "COMPILERS", at_once)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    running = tmp_path / "running"
    running.mkdir()
    counted = f"{COMPILING} {{ touch {running}/$$; sleep 0.1; ls {running} | wc -l >> {tmp_path}/counts; }}"
    runs = compiler(f"{counted}; {at_hand}; rm -f {running}/$$")
    assert native.unavailable() is None and count(runs) == 1 + ALL
    assert max(int(line) for line in (tmp_path / "counts").read_text().split()) == at_once


@pytest.mark.usefixtures("cache")
def test_one_that_fails_ends_the_others(
    compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "COMPILERS", 3)
    monkeypatch.setattr(build, "COMPILE_SECONDS", 60.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    all_run = f"until [ $(wc -l < {tmp_path}/runs) -eq 4 ]; do sleep 0.05; done"
    runs = compiler(f'case "$*" in *choose*) {all_run}; exit 3;; *-c*) {HANG} & wait;; esac')
    began = time.monotonic()
    monkeypatch.setattr(build, "SOURCES", ("attention.cpp", "decode.cpp", "choose.cpp"))
    assert "ended with 3" in str(native.unavailable())
    assert time.monotonic() - began < 20.0 and count(runs) == 4
    assert HANG not in children()


@pytest.mark.usefixtures("cache")
def test_one_that_fails_ends_another_amid_its_start(
    compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(command: Sequence[str]) -> subprocess.Popen[str]:
        child = started(command)
        time.sleep(1.0 if any("decode" in word for word in command) else 0.0)
        return child

    started = build._started
    monkeypatch.setattr(build, "_started", slowly)
    monkeypatch.setattr(build, "COMPILERS", 3)
    monkeypatch.setattr(build, "COMPILE_SECONDS", 30.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(build, "SOURCES", ("choose.cpp", "decode.cpp"))
    compiler(f'case "$*" in *choose*) exit 3;; *-c*) {HANG} & wait;; esac')
    began = time.monotonic()
    assert "ended with 3" in str(native.unavailable())
    assert time.monotonic() - began < 20.0
    assert HANG not in children()


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ("g++ '-DX=", r"\$CXX is .*which a shell could not read \(No closing quotation\)"),
        ("-O2 -g", r"\$CXX is '-O2 -g', options without a compiler"),
    ],
)
def test_what_names_no_compiler(named: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", named)
    assert re.search(reason, str(native.unavailable()))
    assert "$CXX" in build.load_kernels().fix or "CXX=" in build.load_kernels().fix


@pytest.mark.usefixtures("cache")
def test_complaints_in_another_encoding(compiler: Callable[[str], Path]) -> None:
    compiler(f"{COMPILING} {{ printf 'error: f\\374r\\n'; exit 1; }} >&2")
    assert "error: f\N{REPLACEMENT CHARACTER}r" in str(native.unavailable())


@pytest.mark.usefixtures("cache")
def test_objects_are_linked_as_such_whatever_language_the_compiler_is_told(
    at_hand: str, compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = compiler(at_hand)
    monkeypatch.setenv("CXX", f"{os.environ['CXX']} -x c++")
    assert native.unavailable() is None
    words = runs.read_text().splitlines()[-1].split()
    assert "c++" in words and words.index("-xnone") > words.index("c++")
    assert words.index("-xnone") < min(place for place, word in enumerate(words) if word.endswith(".o"))


def children() -> str:
    """Commands of all processes, among them those that this one has started and left."""
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("slow", [False, True])
def test_compiling_is_said_if_it_takes_long(
    slow: bool, at_hand: str, compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamina.compute.kernels.MOMENT_SECONDS", 0.5 if slow else 60.0)
    compiler(f"{COMPILING} sleep 1; {at_hand}" if slow else at_hand)
    said: list[str] = []
    assert prepare_kernels(CPU, "auto", said.append).backend == "native"
    assert said == ["Compiling the kernels for this machine ..."] * slow


@pytest.mark.usefixtures("cache")
@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("noted", [True, False], ids=["noted", "raised"])
def test_a_signal_ends_the_wait(noted: bool, name: str, compiler: Callable[[str], Path]) -> None:
    """Training's handler takes a note of it, the command line's raises: either is called, at once."""
    compiler(f"{HANG} & wait")
    number, began = getattr(signal, name), time.monotonic()
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), number))
    before = signal.signal(number, signal.default_int_handler)
    try:
        timer.start()
        if noted:
            with stop_on_signals() as stop:
                assert f"{name} came" in str(native.unavailable())
                assert stop.signal == name
        else:
            with pytest.raises(KeyboardInterrupt):
                native.unavailable()
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        timer.join()
        signal.signal(number, before)
    assert time.monotonic() - began < 20.0
    assert HANG not in children()


def test_a_cache_that_cannot_be_written_is_no_missing_compiler(
    at_hand: str, compiler: Callable[[str], Path], cache: Path, tmp_path: Path, model_folder: Path
) -> None:
    runs = compiler(at_hand)
    cache.write_text("a file, where a folder would have to be")
    assert native.unavailable() is None
    assert kernels_for(torch.zeros(2, 2)) is native
    (note,) = kernel_notes(CPU, "auto")
    assert note.startswith(f"The compiled kernels cannot be kept in {cache / 'kernels'} (Not a directory)")
    assert "Fix: set LAMINA_CACHE to a folder that can be written." in note
    asked = count(runs)
    kernels_for(torch.zeros(2, 2)).scale_columns_(torch.ones(2, 2), torch.ones(2))
    assert count(runs) == asked == 1 + ALL
    assert not list(Path(tmp_path).rglob("*.so"))


def test_neither_cache_nor_temporary_folder(
    at_hand: str, compiler: Callable[[str], Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(at_hand)
    cache.write_text("")
    monkeypatch.setattr(build.tempfile, "tempdir", str(cache / "tmp"))
    reason = native.unavailable()
    assert reason is not None
    assert "cannot be kept in" in reason
    assert "nor can they be made in a temporary folder (Not a directory)" in reason


def test_a_full_disk(
    at_hand: str, compiler: Callable[[str], Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(at_hand)
    usage = shutil.disk_usage
    full = lambda path: usage("/")._replace(free=1000) if str(path).startswith(str(cache)) else usage(path)  # noqa: E731
    monkeypatch.setattr(build.shutil, "disk_usage", full)
    assert native.unavailable() is None
    assert "(No space left on device)" in kernel_notes(CPU, "auto")[0]
    assert not list(cache.rglob("*.so"))


def test_a_damaged_library_is_made_again(
    at_hand: str, compiler: Callable[[str], Path], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = compiler(at_hand)
    assert native.unavailable() is None
    (library,) = cache.rglob("*.so")
    assert count(runs) == 1 + ALL
    native.load_kernels.cache_clear()
    assert native.unavailable() is None
    assert count(runs) == 2 + ALL  # its version alone
    damaged = tmp_path / "other" / "kernels" / library.name  # elsewhere, since a process loads a file once
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(library.read_bytes()[:100])
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "other"))
    native.load_kernels.cache_clear()
    assert native.unavailable() is None
    assert damaged.read_bytes() == library.read_bytes()
    assert count(runs) == 3 + 2 * ALL


def test_an_unknown_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMINA_KERNELS", "Plain")
    with pytest.raises(ConfigError, match=r"LAMINA_KERNELS: .*unknown value 'Plain'. Fix: set it to plain, or unset"):
        native.unavailable()


def _working(compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, cache: Path, at_hand: str) -> None:
    compiler(at_hand)


def _missing(compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, cache: Path, at_hand: str) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)


def _absent(compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, cache: Path, at_hand: str) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/g++")


def _failing(compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, cache: Path, at_hand: str) -> None:
    compiler(f"{COMPILING} {{ echo 'fatal error: cmath: none' >&2; exit 1; }}")


def _unwritable(compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, cache: Path, at_hand: str) -> None:
    compiler(at_hand)
    cache.mkdir()
    (cache / "kernels").write_text("")


def _plain(compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, cache: Path, at_hand: str) -> None:
    monkeypatch.setenv("LAMINA_KERNELS", "plain")


@pytest.mark.parametrize(
    "state", [_working, _missing, _absent, _failing, _unwritable, _plain], ids=lambda s: s.__name__
)
def test_doctor_says_what_a_run_then_has(
    state: Callable[..., None],
    compiler: Callable[[str], Path],
    cache: Path,
    at_hand: str,
    tmp_path: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it reports of this machine, as if it were another process, beside a run's notes, manifest and kernels."""
    state(compiler, monkeypatch, cache, at_hand)
    finding, attention = doctor._kernels(CPU), doctor._attention(CPU)
    native.load_kernels.cache_clear()
    called: list[str] = []
    call = native.call
    monkeypatch.setattr(native, "call", lambda name, *given: (called.append(name), call(name, *given))[1])
    run, notes = train(tmp_path, model_folder)
    about = [note for note in notes if "kernels" in note.lower()]
    assert called == [] if finding.value.startswith("plain torch") else "rms_norm" in called
    assert run.manifest.kernels == ("compiled" if called else "plain")
    assert finding.value.startswith("C++ kernels" if called else "plain torch: ")
    assert attention.value.startswith("C++ kernels" if called else "scaled_dot_product_attention")
    assert (finding.level, bool(finding.advice)) == (("slow", True) if about else ("ok", False))
    assert len(about) <= 1
    for note in about:  # the same reason and the same fix
        reason = finding.value.removeprefix("plain torch: ").removeprefix("C++ kernels; ")
        assert reason in note[0].lower() + note[1:] or reason in note
        assert finding.advice in note
    assert kernel_state(CPU).name == run.manifest.kernels


def test_torch_compile_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from lamina.compute.kernels import compiled

    tried: list[torch.Tensor] = []

    def compiling(y: torch.Tensor, scale: torch.Tensor) -> None:
        tried.append(y)
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(compiled, "scale_columns_", compiling)
    compiled.problem.cache_clear()
    try:
        for _ in range(3):
            assert compiled.problem("cpu") == "torch.compile does not work here (no compiler)"
        assert len(tried) == 1
    finally:
        compiled.problem.cache_clear()


@pytest.mark.parametrize("problem", [None, "torch.compile does not work here (no compiler)"])
def test_torch_compile_where_it_is_asked_for(problem: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on CUDA, where it is what `auto` means: without it there is plain torch, and the reason is said."""
    from lamina.compute.kernels import compiled

    monkeypatch.setattr(compiled, "problem", lambda device: problem)
    gpu = torch.device("cuda")
    for device in (CPU, gpu):
        assert kernel_state(device, False) == KernelState("plain")
        if problem is None:
            assert kernel_state(device, True) == KernelState("compiled")
        else:
            with pytest.raises(
                ConfigError, match=r"train.compile: True was asked for, but torch.compile does not work"
            ):
                kernel_state(device, True)
    assert kernel_state(gpu).backend == ("compiled" if problem is None else "plain")
    assert len(kernel_notes(gpu, "auto")) == (problem is not None)
    assert doctor._kernels(gpu).level == ("ok" if problem is None else "slow")
