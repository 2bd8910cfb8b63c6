"""A certificate is made from logits, or from a server's log-probabilities, whoever computes them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch

from lamina.adapters.certificate import Certificate, replay_on_model, replay_probes
from lamina.adapters.logits import Logits, TopLogprobs, bare_logits, model_logits
from lamina.adapters.probes import Probe
from lamina.chat.template import build_template
from lamina.config.methods.lora import LoraConfig
from lamina.engine.probes import record_probes
from lamina.errors import AdapterError
from lamina.methods.shared.base import Injection, inject
from tests.support.models_zoo import build_model, build_tokenizer

# Reads the table of a file, and answers each line of ids and positions with a line of logits.
SERVER = """
import json, sys
table = json.load(open(sys.argv[1]))
for line in sys.stdin:
    print(json.dumps(table[json.dumps(json.loads(line))]), flush=True)
"""


def trained(seed: int = 5, dtype: torch.dtype = torch.float32) -> Injection:
    injection = inject(build_model("llama", dtype, vocab_size=259), LoraConfig(r=4, lora_alpha=8), seed=0)
    injection.model.eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in injection.tensors().items():
            if "lora_B" in name:
                tensor.normal_(0.0, 0.15, generator=generator)
    return injection


def twice() -> Logits:
    injection = trained()
    for layer in injection.layers.values():
        layer.scaling *= 2.0  # type: ignore[operator]
    return model_logits(injection.model)


def one_layer_missing() -> Logits:
    injection = trained()
    injection.layers["model.layers.1.mlp.down_proj"].enabled = False
    return model_logits(injection.model)


WRONG: dict[str, Callable[[], Logits]] = {
    "absent": lambda: bare_logits(trained()),
    "applied twice": twice,
    "another adapter": lambda: model_logits(trained(seed=6).model),
    "one layer missing": one_layer_missing,
}


@pytest.fixture(scope="module")
def probes() -> list[Probe]:
    return record_probes(trained(), build_template(build_tokenizer()))


def replay(logits: Logits | TopLogprobs, probes: list[Probe], dtype: str = "float32") -> Certificate:
    return replay_probes(
        logits,
        probes,
        subject="a server",
        adapter_digest="sha256:test",
        modules_expected=14,
        modules_matched=14,
        trained_dtype="float32",
        dtype=dtype,
    )


def table_of(logits: Logits, probes: list[Probe]) -> dict[str, list[list[float]]]:
    """What is said to each probe, as plain numbers."""
    return {
        json.dumps([probe.input_ids, probe.positions]): logits(probe.input_ids, probe.positions).tolist()
        for probe in probes
    }


def from_table(table: dict[str, list[list[float]]]) -> Logits:
    """A plain function that knows no model."""

    def logits(ids: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        return torch.tensor(table[json.dumps([ids, positions])])

    return logits


def top(logits: Logits, count: int) -> TopLogprobs:
    """What a server tells of the same logits."""

    def ask(ids: Sequence[int], positions: Sequence[int]) -> list[Mapping[int, float]]:
        highest = logits(ids, positions).log_softmax(-1).topk(count)
        pairs = zip(highest.indices.tolist(), highest.values.tolist(), strict=True)
        return [dict(zip(tokens, values, strict=True)) for tokens, values in pairs]

    return TopLogprobs(ask)


def test_a_table_is_as_good_as_the_model(probes: list[Probe]) -> None:
    injection = trained()
    ours = replay(from_table(table_of(model_logits(injection.model), probes)), probes)
    options = {"subject": "a server", "adapter_digest": "sha256:test", "trained_dtype": "float32"}
    theirs = replay_on_model(injection.model, probes, modules_expected=14, modules_matched=14, **options)
    assert ours == theirs
    assert ours.passed and ours.max_logit_difference == 0.0 and ours.effect_kept == pytest.approx(1.0)


@pytest.mark.parametrize("fault", WRONG)
def test_whatever_serves_the_wrong_adapter_is_caught(fault: str, probes: list[Probe]) -> None:
    logits = from_table(table_of(WRONG[fault](), probes))
    for source in (logits, top(logits, 20), top(logits, 40)):
        certificate = replay(source, probes)
        assert not certificate.passed, certificate.line()
    if fault == "absent":
        certificate = replay(logits, probes)
        assert certificate.effect_kept == pytest.approx(0.0, abs=1e-6)
        assert "0% of the adapter's recorded effect" in certificate.line()


def test_another_process_may_compute_them(probes: list[Probe], tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table_of(model_logits(trained().model), probes)))
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        pipes = server.stdin, server.stdout

        def logits(ids: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
            pipes[0].write(json.dumps([ids, positions]) + "\n")
            pipes[0].flush()
            return torch.tensor(json.loads(pipes[1].readline()))

        certificate = replay(logits, probes)
        server.stdin.close()
    assert certificate.passed and certificate.max_logit_difference == 0.0


@pytest.mark.parametrize("count", [12, 20, 259])
def test_a_few_log_probabilities_are_enough(count: int, probes: list[Probe]) -> None:
    certificate = replay(top(model_logits(trained().model), count), probes)
    assert certificate.passed, certificate.line()
    assert certificate.effect_kept == pytest.approx(1.0, abs=1e-3)
    assert certificate.max_logit_difference < 1e-4
    rounded = replay(top(model_logits(trained(dtype=torch.bfloat16).model), count), probes, "bfloat16")
    assert rounded.passed, rounded.line()
    assert 0 < rounded.max_logit_difference < rounded.tolerance


def test_too_few_log_probabilities_certify_nothing(probes: list[Probe]) -> None:
    right = model_logits(trained().model)
    few = replay(top(right, 3), probes)
    assert not few.passed and "the server returned log-probabilities for only 38% of the recorded tokens" in few.reasons
    for nothing in (top(right, 1), TopLogprobs(lambda ids, positions: [{} for _ in positions])):
        certificate = replay(nothing, probes)
        assert not certificate.passed and "log-probabilities for only 0%" in certificate.line()


def test_numbers_that_are_none_are_caught(probes: list[Probe]) -> None:
    broken = from_table(
        {key: [[float("nan")] * len(row) for row in rows] for key, rows in table_of(WRONG["absent"](), probes).items()}
    )
    for source in (broken, TopLogprobs(lambda ids, at: [dict.fromkeys(range(259), float("nan")) for _ in at])):
        certificate = replay(source, probes)
        assert not certificate.passed and "the logits are not finite" in certificate.reasons


def test_logits_of_another_shape_are_named(probes: list[Probe]) -> None:
    right = model_logits(trained().model)
    wrong: list[Logits | TopLogprobs] = [
        lambda ids, positions: right(ids, positions)[:-1],
        lambda ids, positions: right(ids, positions)[:, :5],
        lambda ids, positions: right(ids, positions)[None],
        TopLogprobs(lambda ids, positions: []),
    ]
    for logits in wrong:
        with pytest.raises(AdapterError, match=r"asked for at \d+ positions"):
            replay(logits, probes)
    with pytest.raises(AdapterError, match="no probes"):
        replay(right, [])
    with pytest.raises(AdapterError, match="no tolerance for the dtype 'int8'"):
        replay(right, probes, "int8")
