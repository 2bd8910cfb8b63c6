"""`AttachedModels`: copies of the base with a method attached, kept for the next adapter with the same settings.

Attaching a method takes much longer than filling in an adapter's tensors. The kernels copy what they need of an
adapter, so the model that it was attached to is free again at once.
"""

from __future__ import annotations

import json
import queue
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel

from lamina.adapters.adapter import Adapter, check_tensors
from lamina.adapters.fit import fit
from lamina.methods.shared.base import Injection
from lamina.models.copies import shared_copy

# Models that are kept. Each takes the memory of one adapter, since all of them share the base's weights.
_KEPT = 4


@dataclass(frozen=True)
class Attached:
    """An adapter in its place, on a model that nobody else uses.

    Attributes:
        injection: Its layers, with its tensors in them.
        notes: What of the adapter was passed over.
        settings: What an adapter must have in common with it to take its place; None if none can.
        places: The names in the adapter's file, by the names that the model has.
    """

    injection: Injection
    notes: tuple[str, ...]
    settings: str | None
    places: Mapping[str, str]

    @property
    def model(self) -> PreTrainedModel:
        """The model that the adapter is attached to."""
        return self.injection.model


class AttachedModels:
    """Copies of one base, each with a method attached. Safe to use from several threads."""

    def __init__(self, bare: PreTrainedModel) -> None:
        """
        Args:
            bare: The base, without adapters.
        """
        self._bare = bare
        self._lock = threading.Lock()
        self._free: OrderedDict[str, Attached] = OrderedDict()
        self._copies: queue.SimpleQueue[PreTrainedModel] = queue.SimpleQueue()

    def attach(self, adapter: Adapter) -> Attached:
        """Attaches an adapter to a model, to one that is kept if it has the same settings.

        Raises:
            AdapterError: It does not fit the base.
        """
        settings = _settings(adapter)
        with self._lock:
            kept = self._free.pop(settings, None)
        if kept is None:
            return self._attach_anew(adapter, settings)
        if adapter.lock is not None:
            check_tensors(adapter, kept.injection)
        kept.injection.load_tensors({place: adapter.tensors[name] for place, name in kept.places.items()})
        return kept

    def give_back(self, attached: Attached) -> None:
        """Keeps a model for the next adapter. Nobody may use it any more."""
        if attached.settings is None:
            return
        with self._lock:
            self._free[attached.settings] = attached
            while len(self._free) > _KEPT:
                self._free.popitem(last=False)

    def _attach_anew(self, adapter: Adapter, settings: str) -> Attached:
        fitted = fit(adapter, self._copy())
        fitted.injection.model.eval().requires_grad_(False)
        names = {id(tensor): name for name, tensor in adapter.tensors.items()}
        places = {place: names[id(tensor)] for place, tensor in fitted.tensors.items() if id(tensor) in names}
        # Tensors that were converted, or only compared with the base's, call for the whole way every time.
        is_plain = len(places) == len(fitted.tensors) == len(adapter.tensors)
        return Attached(fitted.injection, tuple(fitted.notes), settings if is_plain else None, places)

    def _copy(self) -> PreTrainedModel:
        """A copy of the base; one more is made meanwhile, so that the next adapter does not wait for it."""
        try:
            return self._copies.get_nowait()
        except queue.Empty:
            return shared_copy(self._bare)
        finally:
            if self._copies.empty():
                model, copies = self._bare, self._copies
                threading.Thread(target=lambda: copies.put(shared_copy(model)), daemon=True).start()


def _settings(adapter: Adapter) -> str:
    """Everything but the numbers in an adapter's tensors."""
    shapes = [(name, list(tensor.shape)) for name, tensor in sorted(adapter.tensors.items())]
    peft_config = None if adapter.lock is not None else adapter.peft_config
    return json.dumps([adapter.settings, peft_config, shapes], sort_keys=True, default=str)
