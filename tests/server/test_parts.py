"""Small parts: calls in texts, tokens as bytes, samplings as data, lines in files."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from lamina.engine.generator import TokenLogprobs
from lamina.engine.guides import Guide
from lamina.engine.sampling import Sampling
from lamina.errors import AdapterError, CertificateError, ConfigError, LaminaError, Problem, StorageError
from lamina.server.errors import ApiError, as_api_error
from lamina.server.fingerprint import read_sampling, sampling_values
from lamina.server.logprobs import TokenTexts, chat_logprobs, completion_logprobs
from lamina.server.logs import EventLog, Lines
from lamina.server.tool_calls import CallReader, read_calls
from tests.support.models_zoo import build_tokenizer
from tests.support.serving import build, chat_body, client_of

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "content", "count"),
    [
        ("plain", "plain", 0),
        (CALL, "", 1),
        (f"Well.\n{CALL}\n{CALL}", "Well.", 2),
        (f"{CALL} and more", f"{CALL} and more", 0),
        ("<tool_call>\nno json\n</tool_call>", "<tool_call>\nno json\n</tool_call>", 0),
        ('<tool_call>\n{"name": "f"', '<tool_call>\n{"name": "f"', 0),
        ("<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>", 0),
        ('<tool_call>{"name": 5}</tool_call>', '<tool_call>{"name": 5}</tool_call>', 0),
        (
            '<tool_call>{"name": "f", "arguments": 5}</tool_call>',
            '<tool_call>{"name": "f", "arguments": 5}</tool_call>',
            0,
        ),
        ('<tool_call>{"name": "f"}</tool_call>', "", 1),
        ("a < b <tool", "a < b <tool", 0),
    ],
)
def test_calls_are_read_whole_and_in_pieces(text: str, content: str, count: int) -> None:
    found, calls = read_calls(text)
    assert (found, len(calls)) == (content, count)
    assert all(isinstance(json.loads(call["function"]["arguments"]), dict) for call in calls)
    assert len({call["id"] for call in calls}) == count
    for size in (1, 3, 1000):
        reader = CallReader()
        told = "".join(reader.hear(text[place : place + size]) for place in range(0, len(text), size))
        rest, calls = reader.end()
        assert ((told + rest).strip(), len(calls)) == (content.strip(), count)


def test_a_token_that_is_a_part_of_a_character_has_its_bytes() -> None:
    tokenizer = build_tokenizer()
    texts = TokenTexts(tokenizer)
    ids: Any = tokenizer("é a", add_special_tokens=False).input_ids
    assert [texts.bytes(token) for token in ids] == [[0xC3], [0xA9], [32], [97]]
    assert texts.text(ids[0]) == "\ufffd"
    assert texts.decode([]) == ""
    assert texts.bytes(1) == list(b"<|im_start|>")

    class Pieces:
        """A tokenizer of another kind."""

        def decode(self, ids: list[int], **_: Any) -> str:
            return "\ufffd"

        def convert_ids_to_tokens(self, token: int) -> str:
            return {0: "<0xE2>", 1: "▁?"}[token]

    other = TokenTexts(Pieces())  # type: ignore[arg-type]
    assert other.bytes(0) == [0xE2]
    assert other.bytes(1) == list("\ufffd".encode())


def test_logprobs_that_json_cannot_have() -> None:
    texts = TokenTexts(build_tokenizer())
    found = [TokenLogprobs(70, -math.inf, ((71, 0.0), (72, math.nan)))]
    (entry,) = chat_logprobs(found, texts)["content"]
    assert entry["logprob"] == -9999.0
    assert [top["logprob"] for top in entry["top_logprobs"]] == [0.0, -9999.0]
    shown = completion_logprobs([70], found, texts, begin=4)
    assert shown["text_offset"] == [4]
    json.dumps(shown, allow_nan=False)


def test_samplings_are_read_as_they_were_written() -> None:
    sampling = Sampling(
        temperature=0.5, stop=("a",), stop_token_ids=(1,), logit_bias={5: 1.0}, guide=Guide("regex", "a+"), seed=2**63
    )
    assert read_sampling(json.loads(json.dumps(sampling_values(sampling)))) == sampling
    with pytest.raises(TypeError):
        read_sampling({"heat": 1})


@pytest.mark.parametrize(
    ("error", "param", "status", "named"),
    [
        (ConfigError(Problem("sampling.guide", "no", "mend it")), None, 400, "response_format"),
        (ConfigError(Problem("request.adapter", "'x' is gone", "load it")), None, 404, "model"),
        (ConfigError(Problem("other", "no")), None, 400, "other"),
        (CertificateError("did not pass", None), "path", 400, "path"),
        (AdapterError("changed"), None, 500, None),
        (AdapterError("no adapter"), "path", 400, "path"),
        (LaminaError("the engine is closed."), None, 500, None),
        (ValueError("secret"), None, 500, None),
        (ApiError(429, "full"), None, 429, None),
    ],
)
def test_errors_of_the_engine_as_clients_see_them(error: Any, param: Any, status: int, named: Any) -> None:
    found = as_api_error(error, param)
    assert (found.status, found.param) == (status, named)
    assert "secret" not in found.message
    json.dumps(found.body())


def test_events_go_where_nobody_reads_without_an_error() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    EventLog(Closed()).write("x", value=Path("a"))
    out = io.StringIO()
    EventLog(out).write("x", value=Path("a"))
    assert json.loads(out.getvalue())["value"] == "a"


def test_lines_are_for_their_owner_alone(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "log.jsonl")
    lines.add({"a": "é"})
    lines.close()
    assert (tmp_path / "log.jsonl").stat().st_mode & 0o777 == 0o600
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"a": "é"}
    with pytest.raises(StorageError):
        lines.add({})
    with pytest.raises(StorageError, match="opening failed"):
        Lines(tmp_path / "none" / "log.jsonl")


def test_a_disk_that_is_full_is_an_event_and_no_error_of_a_request(tmp_path: Path) -> None:
    log = io.StringIO()
    service = build(log=log, log_requests=str(tmp_path / "log.jsonl"))
    assert service.requests is not None
    service.requests.close()
    assert client_of(service).post("/v1/chat/completions", json=chat_body()).status_code == 200
    service.pool.shutdown(wait=True)
    (failed,) = [line for line in map(json.loads, log.getvalue().splitlines()) if line["event"] == "write_failed"]
    assert failed["file"] == str(tmp_path / "log.jsonl")
