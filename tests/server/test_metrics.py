"""Counters: vLLM's names, labels that do not grow without end."""

from __future__ import annotations

import re

from tests.support.serving import FakeEngine, build, chat_body, client_of


def test_what_vllm_counts_is_counted_by_the_same_names() -> None:
    client = client_of(build())
    client.post("/v1/chat/completions", json=chat_body(n=2))
    client.post("/v1/chat/completions", json=chat_body(nonsense=1))
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = dict(re.findall(r"^(lamina:[^ ]+) (.+)$", response.text, re.MULTILINE))
    assert found["lamina:num_requests_running"] == "1.0"
    assert found["lamina:num_requests_waiting"] == "2.0"
    assert found["lamina:kv_cache_usage_perc"] == "0.5"
    assert found["lamina:num_preemptions_total"] == "1.0"
    assert found["lamina:prefix_cache_queries_total"] == "40.0"
    assert found["lamina:prefix_cache_hits_total"] == "10.0"
    assert found['lamina:request_success_total{finished_reason="stop",model_name="a"}'] == "2.0"
    assert found['lamina:generation_tokens_total{model_name="a"}'] == "14.0"
    assert float(found['lamina:prompt_tokens_total{model_name="a"}']) > 10
    assert found['lamina:time_to_first_token_seconds_count{model_name="a"}'] == "2.0"
    assert found['lamina:inter_token_latency_seconds_count{model_name="a"}'] == "12.0"
    assert found['lamina:e2e_request_latency_seconds_count{model_name="a"}'] == "1.0"
    assert found['lamina:http_requests_total{route="/v1/chat/completions",status="200"}'] == "1.0"
    assert found['lamina:http_requests_total{route="/v1/chat/completions",status="400"}'] == "1.0"


def test_labels_are_bounded() -> None:
    engine = FakeEngine(names=tuple(f"x{n}" for n in range(150)))
    service = build(engine)
    client = client_of(service)
    for name in engine.names:
        client.post("/v1/completions", json={"model": name, "prompt": "x", "max_tokens": 1})
    for path in ("/v1/models/one", "/v1/models/two", "/nothing", "/nothing/else"):
        client.get(path)
    text = client.get("/metrics").text
    assert len(set(re.findall(r'model_name="([^"]+)"', text))) == 101
    assert 'lamina:prompt_tokens_total{model_name="others"} 50.0' in text
    assert set(re.findall(r'route="([^"]+)"', text)) == {"/v1/completions", "/v1/models/{model_id:path}", "none"}
