"""API keys: from a file and the environment, compared as digests, none in a log."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.errors import ConfigError
from lamina.server.auth import Keys, read_keys
from lamina.server.settings import ServeSettings


def keys_of(text: str, tmp_path: Path, environment: dict[str, str] | None = None) -> Keys:
    (tmp_path / "keys").write_text(text)
    return read_keys(ServeSettings(api_key_file=str(tmp_path / "keys")), environment or {})


def scope(keys: Keys, key: str) -> str | None:
    caller = keys.find(f"Bearer {key}")
    return caller and caller.scope


def test_keys_of_a_file_and_of_the_environment(tmp_path: Path) -> None:
    environment = {"LAMINA_API_KEY": "three, four", "LAMINA_ADMIN_KEY": "five"}
    keys = keys_of("# ours\n\none\nadmin:two  \n", tmp_path, environment)
    assert [scope(keys, key) for key in ("one", "two", "three", "four", "five")] == [
        "user",
        "admin",
        "user",
        "user",
        "admin",
    ]
    for wrong in ("", "on", "onee", "admin:two", "# ours", "One"):
        assert scope(keys, wrong) is None
    assert keys.are_needed
    assert "one" not in repr(vars(keys))


def test_callers_are_told_apart_by_the_beginning_of_a_digest(tmp_path: Path) -> None:
    keys = keys_of("one\ntwo\n", tmp_path)
    ids = {caller.id for key in ("one", "two") if (caller := keys.find(f"Bearer {key}"))}
    assert len(ids) == 2
    assert all(len(each) == 12 and int(each, 16) >= 0 for each in ids)


def test_a_server_without_keys_lets_everybody_in() -> None:
    keys = read_keys(ServeSettings(no_auth=True), {"LAMINA_API_KEY": "one"})
    assert not keys.are_needed
    assert scope(keys, "anything") == "admin"
    caller = keys.find(None)
    assert caller is not None and caller.id == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("one\na b\n", "line 2 of .* is no key"),
        ("kéy\n", "line 1 of .* is no key"),
        ("admin:\n", "line 1 of .* is no key"),
        ("one\nadmin:one\n", "line 2 of .* has a key a second time"),
        ("# none\n\n", "has no key"),
    ],
)
def test_files_that_cannot_be_used(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        keys_of(text, tmp_path)
    assert "a b" not in str(raised.value)


def test_a_server_has_keys_or_says_that_it_has_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there are no API keys"):
        read_keys(ServeSettings(), {})
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(ServeSettings(api_key_file=str(tmp_path / "none")), {})
    with pytest.raises(ConfigError, match="LAMINA_API_KEY"):
        read_keys(ServeSettings(), {"LAMINA_API_KEY": "a b"})
