"""The splits of a folder of data: what to train on, what is kept for evaluation, and which files are not data.

Sources, in this order: the `configs` in the metadata of a README.md, as in data sets on the hub; what `datasets` writes
next to its own files (`state.json`); and names of files and folders, with the keywords that `datasets` uses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lamina.errors import ConfigError, Problem

# The splits, and the keywords for each.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation", "holdout", "heldout"),
}
_KIND_OF = {word + end: kind for kind, words in _WORDS.items() for word in words for end in ("", "s", "set", "split")}
_LETTERS = re.compile(r"[a-z]+")
_SHARD = re.compile(r"(?P<split>\w[\w.-]*?)-\d{5,}-of-\d{5,}")
_SUFFIXES = re.compile(
    r"(\.(json|jsonl|ndjson|csv|tsv|xlsx|xlsm|parquet|arrow|feather|txt|text|gz|zst))+$", re.IGNORECASE
)

# Files that describe the data but contain none.
_DESCRIPTIONS = {f"{name}.json" for name in ("dataset_info", "dataset_infos", "dataset_dict", "state", "croissant")}
_DESCRIPTIONS |= {"metadata.json", "meta.json"}
_PAPERS = {"readme", "license", "licence", "notice", "citation", "changelog", "authors", "contributing", "requirements"}
# `datasets` keeps the results of `map` and `filter` next to the files; `lamina data check --fix` keeps a log of
# changes.
_BY_PRODUCT = re.compile(r"(cache-[0-9a-f]{16}.*\.arrow|.*\.log\.jsonl)", re.IGNORECASE)

# The splits to use for a role if the user names none, in order of preference.
_WANTED = {"train": ("train",), "eval": ("validation", "test"), "test": ("test", "validation")}
ALL = "all"


@dataclass(frozen=True)
class Layout:
    """The files of a folder, or those that match a pattern.

    Attributes:
        splits: Split name -> its files. Files without a recognizable split are under "".
        others: Files that are not data, or do not belong to the configuration that is read.
    """

    splits: Mapping[str, Sequence[Path]]
    others: Sequence[Path]

    def kind(self, kind: str) -> list[str]:
        """Returns the splits that are for `train`, `validation` or `test`."""
        return [name for name in self.splits if kind_of(name) == kind]


@dataclass(frozen=True)
class Choice:
    """The files of a layout to read.

    Attributes:
        files: The files, in order.
        names: Their splits.
        left: Split -> its files, for files that are not read.
    """

    files: Sequence[Path]
    names: Sequence[str]
    left: Mapping[str, Sequence[Path]]


def kind_of(name: str) -> str:
    """Returns the split that a name indicates: `train`, `validation`, `test`, or ''. The last keyword counts.

    >>> kind_of("gsm8k_test-v2"), kind_of("train_sft"), kind_of("latest")
    ('test', 'train', '')
    """
    kinds = [_KIND_OF[word] for word in _LETTERS.findall(name.lower()) if word in _KIND_OF]
    return kinds[-1] if kinds else ""


def layout_of(files: Iterable[Path], root: Path, configuration: str = "", field: str = "data.train") -> Layout:
    """Sorts files into splits.

    Args:
        files: All files found below `root`, in order.
        root: Only names below this folder count.
        configuration: Which configuration of a README.md to use; by default the only one, or the default one.
        field: The configuration field that the folder comes from, for errors.

    Raises:
        ConfigError: There are several configurations and none is the default, or the requested one does not exist.
    """
    found = list(files)
    declared = _declared(root)
    if declared and (chosen := _configuration(declared, root, configuration, field)):
        return _by_patterns(found, root, chosen)
    if configuration:
        raise ConfigError(Problem(field, f"{root} has no configuration {configuration!r}", "check the path"))
    saved = {folder: _saved(folder) for folder in {path.parent for path in found}}
    splits: dict[str, list[Path]] = {}
    others: list[Path] = []
    for path in found:
        state = saved[path.parent]
        if is_no_data(path) or (state is not None and path.name not in state.files):
            others.append(path)
            continue
        name = _split_of(path, root)
        if not name and state is not None and path.parent != root:
            name = state.split
        splits.setdefault(name, []).append(path)
    return Layout(splits, others)


def choose(layout: Layout, split: str, role: str, wanted: str, field: str, *, by_pattern: bool = False) -> Choice:
    """Selects the files for a role.

    Args:
        layout: The available files.
        split: The split that the user named; empty for none, `all` for every file.
        role: `train`, `eval` (during training) or `test` (after training).
        wanted: The folder or pattern, as the user gave it.
        field: The configuration field it comes from.
        by_pattern: Whether `wanted` is a pattern, so that everything it matches is used if there is nothing else.

    Raises:
        ConfigError: There is no such split, or none that may be used without naming it, or several.
    """
    if split:
        names = _named(layout, split)
        if not names:
            there = ", ".join(filter(None, layout.splits)) or "none that its names tell"
            fix = f"name an existing split, {wanted}:{ALL} for every file, or the files themselves"
            raise ConfigError(Problem(field, f"{wanted} has no split {split!r}; it has {there}", fix))
    else:
        names = _meant(layout, role)
        if not names and by_pattern:
            names = list(layout.splits)
        if not names:
            raise ConfigError(_not_named(layout, role, wanted, field))
        shards = [name for name in names if name not in _WORDS and name]
        if len(shards) > 1 or (shards and set(names) & set(_WORDS)):
            fix = f"name one, such as {wanted}:{names[0]}"
            what = "to train on" if role == "train" else "to evaluate on"
            raise ConfigError(Problem(field, f"{wanted} has several splits {what}: {', '.join(names)}", fix))
    files = sorted(path for name in names for path in layout.splits[name])
    left = {name: list(paths) for name, paths in layout.splits.items() if name not in names}
    return Choice(files, [name for name in names if name], left)


def _named(layout: Layout, split: str) -> list[str]:
    if split in layout.splits:
        return [split]
    if split == ALL:
        return list(layout.splits)
    kind = _KIND_OF.get(split.lower(), "")
    return [name for name in layout.kind(kind) if name == kind] or layout.kind(kind) if kind else []


def _meant(layout: Layout, role: str) -> list[str]:
    """Returns the splits for a role.

    Files without a split are for training, unless there are both a train and an evaluation split. They are for
    evaluation if there is neither.
    """
    held_out = layout.kind("validation") + layout.kind("test")
    unnamed = [name for name in layout.splits if not kind_of(name)]
    if role == "train":
        train = layout.kind("train")
        return train + unnamed if not held_out or not train else train
    for kind in _WANTED[role]:
        if layout.kind(kind):
            return layout.kind(kind)
    return [] if layout.kind("train") else unnamed


def _not_named(layout: Layout, role: str, wanted: str, field: str) -> Problem:
    there = ", ".join(filter(None, layout.splits))
    first = next(filter(None, layout.splits))
    if role == "train":
        message = f"{wanted} has no split to train on, only {there}, which is kept for evaluation"
        return Problem(field, message, f"to train on it anyway, name it: {wanted}:{first}")
    message = f"{wanted} has no split to evaluate on, only {there}"
    return Problem(field, message, f"give another file or, to use that split, {wanted}:{first}")


def _split_of(path: Path, root: Path) -> str:
    """Returns the split that the names of a file and its folders indicate; empty if none.

    A name that is exactly a split takes precedence over one that contains its keyword, and a file's name over a
    folder's.
    """
    stem = _SUFFIXES.sub("", path.name)
    shard = _SHARD.fullmatch(stem)
    folders = path.parent.relative_to(root).parts[::-1]
    if shard and kind_of(shard["split"]):
        return _KIND_OF.get(shard["split"].lower(), shard["split"])
    names = (stem, *folders)
    exact = (_KIND_OF[name.lower()] for name in names if name.lower() in _KIND_OF)
    told = (kind_of(name) for name in names)
    return next(exact, "") or next(filter(None, told), "")


def is_no_data(path: Path) -> bool:
    """Returns whether a file is known to describe the data or accompany it, and to contain no rows."""
    name = path.name.lower()
    return name in _DESCRIPTIONS or name.partition(".")[0] in _PAPERS or bool(_BY_PRODUCT.fullmatch(name))


@dataclass(frozen=True)
class _Saved:
    """What `Dataset.save_to_disk` recorded: its files, and the split that it was."""

    files: frozenset[str]
    split: str


def _saved(folder: Path) -> _Saved | None:
    """Returns the content of `state.json`; None if there is none from `datasets`."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = frozenset(str(entry["filename"]) for entry in state["_data_files"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return _Saved(files, str(state.get("_split") or ""))


def declares(folder: Path, configuration: str) -> bool:
    """Returns whether the folder's README.md has such a configuration."""
    return any(config.name == configuration for config in _declared(folder))


def saved_split(folder: Path) -> str:
    """Returns the split that a folder of `Dataset.save_to_disk` was saved from, if recorded."""
    state = _saved(folder)
    return state.split if state is not None else ""


@dataclass(frozen=True)
class _Configuration:
    """One of the `configs` in the metadata of a README.md: split -> patterns of its files, relative to the README."""

    name: str
    default: bool
    patterns: Mapping[str, Sequence[str]]


def _declared(folder: Path) -> list[_Configuration]:
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
        head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
        values = yaml.safe_load(head[1]) if head else None
    except (OSError, yaml.YAMLError):
        return []
    configs = values.get("configs") if isinstance(values, dict) else None
    return list(_configurations(configs if isinstance(configs, list) else []))


def _configurations(configs: Sequence[Any]) -> Iterator[_Configuration]:
    for config in configs:
        if isinstance(config, dict) and (patterns := _patterns(config.get("data_files"))):
            name = str(config.get("config_name") or "default")
            below = str(config.get("data_dir") or "").strip("/")
            if below:
                patterns = {split: [f"{below}/{each}" for each in listed] for split, listed in patterns.items()}
            yield _Configuration(name, bool(config.get("default")) or name == "default", patterns)


def _patterns(data_files: Any) -> dict[str, list[str]]:
    """Normalizes `data_files`, which may be a pattern, a list of patterns, or a mapping of splits to patterns."""
    if isinstance(data_files, list) and all(isinstance(entry, dict) for entry in data_files):
        data_files = {entry.get("split"): entry.get("path") for entry in data_files}
    if not isinstance(data_files, dict):
        data_files = {"train": data_files}
    listed = {
        str(split): [path] if isinstance(path, str) else [each for each in path or () if isinstance(each, str)]
        for split, path in data_files.items()
    }
    return {split: patterns for split, patterns in listed.items() if patterns}


def _configuration(declared: Sequence[_Configuration], root: Path, wanted: str, field: str) -> _Configuration | None:
    """Returns the configuration to use; None if no configuration has files here."""
    present = [config for config in declared if any(_matches(root, each) for each in config.patterns.values())]
    names = ", ".join(config.name for config in present)
    if wanted:
        found = next((config for config in present if config.name == wanted), None)
        if found is None:
            message = f"{root} has no configuration {wanted!r}; it has {names or 'none'}"
            raise ConfigError(Problem(field, message, "name an existing one, or a folder"))
        return found
    if len(present) < 2:
        return next(iter(present), None)
    default = [config for config in present if config.default]
    if len(default) != 1:
        fix = f"name one, such as {root}/{present[0].name}"
        raise ConfigError(Problem(field, f"{root} has several configurations: {names}", fix))
    return default[0]


def _matches(root: Path, patterns: Iterable[str]) -> list[Path]:
    inside = [each for each in patterns if not each.startswith("/") and "://" not in each]
    return sorted({path for each in inside for path in root.glob(each) if path.is_file() or path.is_symlink()})


def _by_patterns(found: Sequence[Path], root: Path, config: _Configuration) -> Layout:
    splits = {split: _matches(root, patterns) for split, patterns in config.patterns.items()}
    listed = {path for paths in splits.values() for path in paths}
    return Layout({split: paths for split, paths in splits.items() if paths}, [p for p in found if p not in listed])
