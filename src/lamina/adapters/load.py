"""`load`: a base with an adapter on it, checked against the adapter's lock."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lamina import files
from lamina.adapters.adapter import Adapter, read_adapter
from lamina.adapters.certificate import Certificate, replay_on_model
from lamina.adapters.fit import fit
from lamina.adapters.lock import check_lock
from lamina.chat.bare import BARE, CHAT
from lamina.chat.template import ChatTemplate, build_template
from lamina.config.aliases import ALIASES
from lamina.config.places import inside_run, read_origin, start_folders
from lamina.config.quantization import QuantizationConfig
from lamina.errors import AdapterError, ConfigError, ModelError
from lamina.machine.hardware import default_device, find_device
from lamina.methods.shared.base import Injection, find_method
from lamina.methods.shared.counts import ParameterCounts, count_parameters, total_parameters
from lamina.methods.shared.peft_layers import PeftLayer, remove_peft_layers
from lamina.models.copies import bare_copy
from lamina.models.fingerprint import fingerprint_base
from lamina.models.load import Base, load_base, load_tokenizer, load_tokenizer_in
from lamina.models.new_tokens import NewTokens, missing_tokens
from lamina.models.source import find_model
from lamina.progress import Notify
from lamina.registry.resolve import local_path
from lamina.runs import ADAPTER_FOLDER, open_run, run_of


@dataclass(frozen=True)
class Loaded:
    """A model with an adapter, ready to be called.

    Attributes:
        model: A transformers causal language model whose adapted layers are replaced; `model(input_ids=ids).logits`.
        tokenizer: The base's tokenizer.
        adapter: What was loaded.
        base: The base, whose `model` is the same object as `model`.
        injection: The adapter's layers; `with injection.disabled():` gives the bare base.
        template: Renders conversations as in training.
        notes: Mismatches that were allowed, that there is no lock, and what of peft's file was passed over.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    adapter: Adapter
    base: Base
    injection: Injection
    template: ChatTemplate
    notes: list[str]

    def certify(self) -> Certificate:
        """Replays the adapter's probes on the model as it is now.

        Raises:
            AdapterError: The adapter has no probes: lamina did not train it, or it is a checkpoint.
        """
        if self.adapter.lock is None:
            raise AdapterError(f"{self.adapter.path}: has no lamina.json, so there are no probes to replay.")
        return replay_on_model(
            self.model,
            self.adapter.probes,
            subject=str(self.adapter.path),
            adapter_digest=self.adapter.digest,
            modules_expected=len(self.injection.layers),
            modules_matched=len(self.injection.layers),
            trained_dtype=self.adapter.lock.base_dtype,
            notes=self.notes,
            update_kept=1.0 if self._is_whole() else None,
        )

    def load_beside(self, path: str | Path, *, allow_base_mismatch: bool = False) -> Loaded:
        """Loads another adapter on the same base, whose weights both share: either can be called at any time.

        Args:
            path: A run directory or an adapter folder, lamina's or peft's.
            allow_base_mismatch: As for `load`.

        Raises:
            AdapterError: It is missing, damaged, or does not fit the model.
            BaseMismatchError: It is locked to another base.
        """
        adapter, bare = read_adapter(adapter_folder(path)), bare_copy(self.model)
        if any(isinstance(layer, PeftLayer) for layer in self.injection.layers.values()):
            remove_peft_layers(bare)
        return _put_on(adapter, replace(self.base, model=bare), allow_base_mismatch)

    def parameter_counts(self) -> ParameterCounts:
        """Counts the parameters of adapter and base; printed, it is a line."""
        return ParameterCounts(count_parameters(self.injection.tensors().values()), total_parameters(self.model))

    def _is_whole(self) -> bool:
        """Whether the layers hold the adapter's tensors, and take part."""
        held = self.injection.saved_tensors()
        return all(layer.enabled for layer in self.injection.layers.values()) and all(
            name in held and torch.equal(held[name].cpu().to(tensor.dtype), tensor)
            for name, tensor in self.adapter.tensors.items()
        )


def template_of(adapter: Adapter, base: Base) -> ChatTemplate:
    """The chat template that an adapter was trained with; the model's own without a lock."""
    lock = adapter.lock
    if lock is None:
        return build_template(base.tokenizer)
    wanted = None if lock.chat_template == "model" else lock.chat_template
    return build_template(
        base.tokenizer,
        wanted,
        lock.thinking,
        lock.chat_template_text or "",
        lock.enable_thinking,
        lock.chat_template_kwargs,
    )


def asked_template(template: ChatTemplate, chat: bool | None) -> ChatTemplate:
    """The template that prompts are rendered with: that of training, unless the user asks for another.

    Args:
        template: That of training, or the model's own.
        chat: True for the chat template, False for prompts as they are, None for as in training.
    """
    if chat is None or chat != template.is_bare:
        return template
    return build_template(template.tokenizer, CHAT if chat else BARE)


def adapter_folder(path: str | Path) -> Path:
    """The adapter folder of a run directory or of a version in the registry, or the folder itself.

    Args:
        path: Where it is: a run, or any folder that holds an adapter, such as a run's checkpoint; or a reference, such
            as `support@prod` or `support:7`.

    Raises:
        AdapterError: Neither is there.
        ConfigError, RegistryError: It is a reference, and the registry has no such version, or lost its files.
    """
    path = local_path(path)
    for place in (path / ADAPTER_FOLDER, path):
        files.recover(place)
    if (path / ADAPTER_FOLDER / "adapter_config.json").is_file():
        return path / ADAPTER_FOLDER
    if path.is_dir():
        if (path / "config.yaml").is_file() and not (path / "adapter_config.json").is_file():
            run = open_run(path)
            usable = sorted(run.checkpoints.glob("step-*/adapter_config.json"))
            other = f"; or use its newest checkpoint, {usable[-1].parent}" if usable else ""
            raise AdapterError(
                f"{path}: this run has no adapter yet ({run.status}). Fix: finish it with: {run.resume_command}{other}"
            )
        return path
    raise AdapterError(f"{path}: there is no such run or adapter folder. Fix: check the path.")


def base_of(adapter: Adapter, notify: Notify) -> str:
    """The base that an adapter names, by a name that leads to it from here.

    Raises:
        AdapterError: It names none, or there is nothing of that name.
    """
    wanted = adapter.lock.base if adapter.lock else adapter.base_ref
    if not wanted:
        raise AdapterError(f"{adapter.path}: names no base model. Fix: give one with --model.")
    places = _places_of(adapter, wanted)
    if len(places) > 1:  # something of that name in several places: the lock says which it is
        places = [place for place in places if _is_locked_base(adapter, place)] or places
    ref = places[0] if places else wanted
    try:
        find_model(ref, notify)
    except (ConfigError, ModelError) as error:
        raise AdapterError(_not_there(adapter, wanted, error)) from None
    return ref


def _places_of(adapter: Adapter, wanted: str) -> list[str]:
    """Where something is that a relative path may mean, the likeliest first; empty if it is none, or nothing is there.

    A run knows where its paths start from; peft's file has the path in full, as it was then.
    """
    run = adapter.path.parent
    if adapter.path.name == ADAPTER_FOLDER and (kept := inside_run(wanted, run, read_origin(run))):
        return [kept]
    if wanted in ALIASES or Path(wanted).expanduser().is_absolute():
        return []
    candidates = [str(folder / wanted) for folder in _start_folders(adapter)]
    if Path(adapter.base_ref).is_absolute():
        candidates.append(adapter.base_ref)
    found: dict[Path, str] = {}
    for place in (*candidates, wanted):
        if Path(place).exists():
            found.setdefault(Path(place).resolve(), place)
    return list(found.values())


def _start_folders(adapter: Adapter) -> list[Path]:
    run = run_of(adapter.path)
    return [] if run is None else start_folders(run.path, read_origin(run.path))


def _not_there(adapter: Adapter, wanted: str, error: ConfigError | ModelError) -> str:
    if isinstance(error, ConfigError):
        reason, fix = error.problems[0].message, error.problems[0].fix
        looked = {str(folder) for folder in (*_start_folders(adapter), Path.cwd())}
        if not Path(wanted).is_absolute():
            reason = f"{reason.removesuffix('.')}, seen from {' or '.join(sorted(looked))}."
    else:
        reason, _, fix = str(error).partition(" Fix: ")
    check = ", and its digest is checked" if adapter.lock else ""
    return (
        f"{adapter.path}: was trained on the base {wanted!r}, which is not here: {reason.removesuffix('.')}. "
        f"Fix: say where it is with --model{check}; or {fix.removesuffix('.') or 'put it back'}."
    )


def _is_locked_base(adapter: Adapter, place: str) -> bool:
    try:
        return adapter.lock is not None and fingerprint_base(Path(place)).tensors == adapter.lock.base_tensors
    except (ModelError, OSError, ValueError):
        return False


def load_base_for(
    adapter: Adapter,
    *,
    model: str | Path | None = None,
    dtype: str = "auto",
    device: torch.device | None = None,
    original_base: bool = False,
    notify: Notify = lambda message: None,
) -> Base:
    """Loads the base that an adapter was trained on, in the form in which it was then.

    Args:
        adapter: The adapter, which stays on disk.
        model: The base to load; by default the one it names.
        dtype, device, original_base, notify: As for `load`.

    Raises:
        AdapterError: The base that it names is not there, or it fits the quantized base alone.
        ModelError: The base cannot be loaded.
    """
    ref = base_of(adapter, notify) if model is None else model
    device = device or default_device()
    if dtype == "auto" and adapter.lock and adapter.lock.base_dtype == "float32":
        dtype = "float32"
    packed = adapter.lock.quantization if adapter.lock and not original_base else None
    loftq = find_method(adapter.config.type).plan_loftq(adapter.config)
    if loftq and packed is None:
        raise AdapterError(
            f"{adapter.path}: began with LoftQ, as what quantizing took from its base, so it fits that quantized base "
            "alone. Fix: use it without --original-base."
        )
    offload = "auto" if adapter.config.base_is_read_only else False
    quantization = QuantizationConfig(**packed) if packed else None
    tokens = _tokens_of(adapter, str(ref), notify)
    return load_base(ref, dtype, device, notify, quantization, loftq, offload, tokens)


def _tokens_of(adapter: Adapter, ref: str, notify: Notify) -> NewTokens:
    """The tokens that an adapter's base lacks: by its lock, or by the tokenizer that another trainer left beside it."""
    if adapter.lock is not None:
        return NewTokens.from_json(adapter.lock.added_tokens)
    if not (adapter.path / "tokenizer_config.json").is_file():
        return NewTokens()
    try:
        theirs = load_tokenizer_in(adapter.path)
        own = load_tokenizer(find_model(ref, notify))
    except ModelError:  # a tokenizer that cannot be read says nothing of the adapter
        return NewTokens()
    return missing_tokens(own, theirs)


def load(
    path: str | Path,
    *,
    model: str | Path | None = None,
    dtype: str = "auto",
    device: torch.device | str | None = None,
    allow_base_mismatch: bool = False,
    original_base: bool = False,
    chat: bool | None = None,
    notify: Notify = lambda message: None,
) -> Loaded:
    """Loads an adapter on its base, in evaluation mode.

    Args:
        path: A run directory or an adapter folder, lamina's or peft's.
        model: The base to load it on; by default the one it names.
        dtype: `bfloat16`, `float16` or `float32` for the base; `auto` is what the adapter was trained on, but what
            suits this machine if it does not multiply bfloat16 natively.
        device: Where to put it, as a device or by its name; by default CUDA if there is one.
        allow_base_mismatch: Go on although the lock does not fit.
        original_base: Do not quantize the base, although it was when the adapter was trained.
        chat: Whether to render prompts with the chat template; by default as in training.
        notify: Called with a sentence before anything that takes a while.

    Raises:
        AdapterError: It is missing, damaged, or does not fit the model; or the base that it names is not there.
        BaseMismatchError: It is locked to another base.
        ModelError: The base cannot be loaded.
    """
    if isinstance(device, str):
        device = find_device(device)
    adapter = read_adapter(adapter_folder(path))
    base = load_base_for(adapter, model=model, dtype=dtype, device=device, original_base=original_base, notify=notify)
    return _put_on(adapter, base, allow_base_mismatch, chat)


def is_base_of(adapter: Adapter, base: Base) -> bool:
    """Whether a base in memory is in the form in which an adapter's own is loaded: quantized so, and with no tokens or
    weights that come with the adapter. Which weights it has, `load_on` checks by the lock."""
    if find_method(adapter.config.type).plan_loftq(adapter.config) or _tokens_of(adapter, base.source.ref, _quietly):
        return False
    packed = adapter.lock and adapter.lock.quantization
    return adapter.lock is None or base.quantization == (QuantizationConfig(**packed) if packed else None)


def load_on(adapter: Adapter, base: Base) -> Loaded:
    """Puts an adapter on a base in memory, whose modules become the adapter's.

    Args:
        adapter: The adapter, as read.
        base: A bare base, for which `is_base_of` holds.

    Raises:
        AdapterError: It does not fit the model.
        BaseMismatchError: It is locked to another base.
    """
    return _put_on(adapter, base, allow_base_mismatch=False)


def _quietly(message: str) -> None:
    """Tells nobody."""


def _put_on(adapter: Adapter, base: Base, allow_base_mismatch: bool, chat: bool | None = None) -> Loaded:
    """Puts an adapter on a bare base that it is checked against."""
    template = template_of(adapter, base)
    if adapter.lock:
        notes = check_lock(adapter.lock, base, template, allow_base_mismatch)
    else:
        notes = ["the adapter has no lamina.json, so it could not be checked that this is the base it was trained on"]
    fitted = fit(adapter, base.model)
    adapter = replace(adapter, tensors=dict(fitted.tensors))
    base.model.eval().requires_grad_(False)
    template = asked_template(template, chat)
    return Loaded(base.model, base.tokenizer, adapter, base, fitted.injection, template, [*notes, *fitted.notes])
