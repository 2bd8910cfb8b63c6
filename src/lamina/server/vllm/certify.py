"""Whether a server applies an adapter: its probes, replayed through the server's own log-probabilities.

The certificate's tolerance has to hold for any base, and in bfloat16 it is wide: a layer that is missing, or another
adapter of the same family, can be within it. So the bare base answers the same probes on the same server, and shows
what rounding does there. An adapter that lies much farther from its record than the base from its own is not the one
that was recorded. Nor is one that lies nearer to what was recorded with one of its layers left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lamina.adapters.adapter import Adapter
from lamina.adapters.certificate import Certificate, replay_probes
from lamina.adapters.lock import Lock
from lamina.adapters.logits import TopLogprobs
from lamina.adapters.probes import Probe
from lamina.errors import AdapterError
from lamina.server.vllm.client import VllmClient

# How much farther than the base an adapter may be from what was recorded, as root mean squares.
_TIMES_BASE = 2.0

# Standard errors, over positions, by which a server must lie nearer to what was recorded without a layer's part of the
# adapter than to what was recorded with it. Of layers that are there and change nothing,
# fewer than one in 10,000 would.
_SURE = 4.0

# Of log-probabilities in float32, what is no difference: both come as decimal text.
_FLOOR = 1e-4

# A sequence for an adapter without probes, of tokens that every vocabulary has.
_ANY_TOKENS = tuple(range(3, 35))

Row = Mapping[int, float]


@dataclass(frozen=True)
class Sealed:
    """An adapter as it was checked, without its tensors.

    Attributes:
        path: Where the user has it.
        copy: What vLLM reads.
        digest: Of its tensors and settings.
        method: Name of its method.
        lock: What it is bound to; None for an adapter that lamina did not train.
        probes: Empty for such an adapter.
        changes: Whether its tensors change anything: no B is all zeros.
        nbytes: Of its tensors.
    """

    path: Path
    copy: Path
    digest: str
    method: str
    lock: Lock | None
    probes: Sequence[Probe]
    changes: bool
    nbytes: int


def has_effect(adapter: Adapter) -> bool:
    """Whether a LoRA adapter changes anything."""
    return any(
        bool(tensor.any()) for name, tensor in adapter.tensors.items() if "lora_B" in name or "embedding_B" in name
    )


def certify(client: VllmClient, model: str, base: str, adapter: Sealed, dtype: str) -> Certificate | None:
    """Replays an adapter's probes on a server.

    Args:
        client: The server.
        model: What the server calls the adapter.
        base: What it calls the base.
        adapter: What it should be.
        dtype: What the server holds the base in.

    Returns:
        The certificate, passed or not; None for an adapter without probes, which is seen to change something.

    Raises:
        AdapterError: It has no probes, and the server gives the bare base's answers in its stead.
        Refused, Unreachable: The server does not give log-probabilities.
    """
    if adapter.lock is None or not adapter.probes:
        if adapter.changes and client.logprobs(model, _ANY_TOKENS) == client.logprobs(base, _ANY_TOKENS):
            raise AdapterError(
                f"{adapter.path}: vLLM at {client.url} took it and gives the bare base's numbers to the last digit. "
                "Fix: use a version of vLLM that applies it to this architecture, or lamina's own engine "
                "(--engine lamina)."
            )
        return None
    own = _Asked(lambda ids: client.logprobs(model, ids))
    bare = _Asked(lambda ids: client.logprobs(base, ids))
    certificate = replay_probes(
        TopLogprobs(own),
        adapter.probes,
        subject=f"{adapter.path} on vLLM at {client.url}",
        adapter_digest=adapter.digest,
        modules_expected=1,
        modules_matched=1,
        trained_dtype=adapter.lock.base_dtype,
        dtype=dtype,
    )
    return _beside_base(certificate, adapter.probes, own, bare, dtype)


class _Asked:
    """A server's answers about sequences, each asked for once."""

    def __init__(self, ask: Callable[[Sequence[int]], list[dict[int, float]]]) -> None:
        self._ask = ask
        self._rows: dict[tuple[int, ...], list[dict[int, float]]] = {}

    def __call__(self, ids: Sequence[int], positions: Sequence[int]) -> list[dict[int, float]]:
        key = tuple(ids)
        if key not in self._rows:
            self._rows[key] = self._ask(ids)
        return [self._rows[key][place] for place in positions]


def _beside_base(
    certificate: Certificate, probes: Sequence[Probe], own: _Asked, bare: _Asked, dtype: str
) -> Certificate:
    """The certificate with what the bare base shows of rounding on the same server."""
    base_rests, own_rests = [], []
    for probe in probes:
        base_rests += _rests(bare(probe.input_ids, probe.positions), probe.token_ids, probe.base_logits)
        own_rests += _rests(own(probe.input_ids, probe.positions), probe.token_ids, probe.adapter_logits)
    if not base_rests:
        return certificate.failed("the server gives too few of the bare base's log-probabilities")
    base, rests = torch.cat(base_rests), torch.cat(own_rests) if own_rests else torch.tensor([torch.inf])
    if not bool(base.abs().max() <= certificate.tolerance):
        return certificate.failed(
            f"the server's bare base itself differs from the one that the adapter was trained on, by "
            f"{float(base.abs().max()):.3g}"
        )
    noise, found = _size(base), _size(rests)
    if found > _TIMES_BASE * max(noise, _FLOOR):
        return certificate.failed(
            f"it lies {found:.2g} from its record (root mean square), where the bare base lies {noise:.2g} from its own"
        )
    missing, unknown = _layers_missing(probes, own)
    if missing:
        return certificate.failed(f"its numbers are nearer to those without the adapter's part of {', '.join(missing)}")
    if unknown:
        note = (
            f"whether {len(unknown)} of the adapter's layers are there cannot be told one by one: in {dtype}, rounding "
            "hides what each of them changes"
        )
        return replace(certificate, notes=[*certificate.notes, note])
    return certificate


def _layers_missing(probes: Sequence[Probe], own: _Asked) -> tuple[list[str], list[str]]:
    """Finds the layers that a server seems to leave out, and those of which that cannot be told.

    A server without a layer is as near to what was recorded without it as one with all layers is to the adapter's
    record, whatever the rounding of the recordings and its own. So the nearer of the two is what the server does, if it
    is nearer at enough positions.
    """
    missing, unknown = [], []
    records = [(own(probe.input_ids, probe.layers.positions), probe.layers) for probe in probes if probe.layers]
    for layer in records[0][1].without if records else ():
        nearer = []
        for rows, record in records:
            there = _rests(rows, record.token_ids, record.whole)
            left_out = _rests(rows, record.token_ids, record.without.get(layer, record.whole))
            nearer += [a.square().sum() - b.square().sum() for a, b in zip(there, left_out, strict=True)]
        each = torch.stack(nearer or [torch.zeros(())]).double()
        error = float(each.std()) / len(each) ** 0.5 if len(each) > 1 else 0.0
        if float(each.mean()) > _SURE * error:
            missing.append(layer)
        elif float(each.mean()) >= -_SURE * error:
            unknown.append(layer)
    return missing, unknown


def _rests(
    rows: Sequence[Row], token_ids: Sequence[Sequence[int]], recorded: Sequence[Sequence[float]]
) -> list[torch.Tensor]:
    """At each position, what is given less what was recorded, both less their means; of the tokens that are given."""
    found = []
    for row, ids, logits in zip(rows, token_ids, recorded, strict=True):
        known = [place for place, token in enumerate(ids) if token in row]
        if len(known) > 1:
            rest = torch.tensor([row[ids[place]] - logits[place] for place in known])
            found.append(rest - rest.mean())
    return found


def _size(rests: torch.Tensor) -> float:
    return float(rests.square().mean().sqrt())
