"""`/metrics`: counters for Prometheus, by vLLM's names with the prefix `lamina:`; labels are bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from lamina.engine.engine import EngineStats

# Names that get a label of their own; all others share one.
_MOST_NAMES = 100
_OTHERS = "others"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_TOKENS = (1, 8, 32, 128, 512, 2048, 8192, 32768)


class Metrics:
    """What is counted."""

    def __init__(self, stats: Callable[[], EngineStats], waiting: Callable[[], int]) -> None:
        """
        Args:
            stats: How the engine is doing.
            waiting: Answers that have not begun.
        """
        self.registry = CollectorRegistry()
        self._names: set[str] = set()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"lamina:{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"lamina:{name}", text, ("model_name",), buckets=buckets, registry=self.registry)

        self._success = counter(
            "request_success", "Answers by the reason of their end", "model_name", "finished_reason"
        )
        self._prompt = counter("prompt_tokens", "Tokens of prompts", "model_name")
        self._answer = counter("generation_tokens", "Tokens of answers", "model_name")
        self._http = counter("http_requests", "HTTP requests", "route", "status")
        self._shadows = counter("shadow_requests", "Copies of requests for shadows", "outcome")
        self._aliases = counter("alias_changes", "Moves of followed aliases", "model_name", "outcome")
        self._first = histogram("time_to_first_token_seconds", "From a request to its first token", _SECONDS)
        self._between = histogram("inter_token_latency_seconds", "Between two pieces of an answer", _BETWEEN)
        self._whole = histogram("e2e_request_latency_seconds", "From a request to the end of its answers", _SECONDS)
        self._prompts = histogram("request_prompt_tokens", "Tokens of a prompt", _TOKENS)
        self._answers = histogram("request_generation_tokens", "Tokens of an answer", _TOKENS)
        self.registry.register(_Engine(stats, waiting))

    def label(self, name: str) -> str:
        """The label of a model: its name, while there are few."""
        if name not in self._names and len(self._names) >= _MOST_NAMES:
            return _OTHERS
        self._names.add(name)
        return name

    def first(self, name: str, seconds: float) -> None:
        """Notes the time to a first token."""
        self._first.labels(self.label(name)).observe(seconds)

    def between(self, name: str, seconds: float) -> None:
        """Notes the time between two pieces."""
        self._between.labels(self.label(name)).observe(seconds)

    def prompt(self, name: str, tokens: int) -> None:
        """Notes a prompt."""
        label = self.label(name)
        self._prompt.labels(label).inc(tokens)
        self._prompts.labels(label).observe(tokens)

    def answer(self, name: str, tokens: int, reason: str) -> None:
        """Notes an answer that is over."""
        label = self.label(name)
        self._answer.labels(label).inc(tokens)
        self._answers.labels(label).observe(tokens)
        self._success.labels(label, reason).inc()

    def whole(self, name: str, seconds: float) -> None:
        """Notes a request that is over."""
        self._whole.labels(self.label(name)).observe(seconds)

    def http(self, route: str, status: int) -> None:
        """Notes an HTTP request."""
        self._http.labels(route, str(status)).inc()

    def shadow(self, outcome: str) -> None:
        """Notes a copy for a shadow."""
        self._shadows.labels(outcome).inc()

    def alias(self, name: str, outcome: str) -> None:
        """Notes that a followed alias led to another version, or that this could not be loaded."""
        self._aliases.labels(self.label(name), outcome).inc()

    def text(self) -> bytes:
        """All of them, in Prometheus' format."""
        return generate_latest(self.registry)


class _Engine(Collector):
    """What the engine itself counts, read when it is asked for."""

    def __init__(self, stats: Callable[[], EngineStats], waiting: Callable[[], int]) -> None:
        self._stats, self._waiting = stats, waiting

    def describe(self) -> list[Any]:
        return []  # so that registering does not ask the engine

    def collect(self) -> Iterator[Any]:
        stats = self._stats()
        share = stats.used_blocks / stats.cache_blocks if stats.cache_blocks else 0.0
        done = stats.counters
        gauges = {
            "num_requests_running": ("Requests that are being answered", stats.running),
            "num_requests_waiting": ("Requests that wait", max(stats.waiting, self._waiting() - stats.running, 0)),
            "kv_cache_usage_perc": ("Share of the cache's blocks that requests hold", share),
        }
        counters = {
            "num_preemptions": ("Requests that were put back", done.preemptions),
            "prefix_cache_queries": (
                "Tokens of prompts looked for in the cache",
                done.prompt_tokens + done.cached_tokens,
            ),
            "prefix_cache_hits": ("Those that were found there", done.cached_tokens),
            "engine_steps": ("Steps of the engine", done.steps),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"lamina:{name}", text, value=value)
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"lamina:{name}", text, value=value)
