"""`train`: the whole of a run, from configuration to adapter.

Setting up is in `setup.py`, one step in `step.py`, what is saved in `checkpoint.py`. In order: bare base evaluated,
steps with evaluations and checkpoints, the best adapter saved with its lock and probes, and read again. The loop can be
cut anywhere, and goes on from the newest checkpoint to the same adapter, bit for bit (with as many threads).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from lamina import files
from lamina.config import Config, load_config
from lamina.data.batch import PACKED
from lamina.data.example import EncodedExample
from lamina.errors import Interrupted, LaminaError, TrainingError
from lamina.fusion import FusionReport, Recompute, fast_path
from lamina.kernels import kernel_notes
from lamina.methods.adapter import save_adapter
from lamina.methods.lock import build_lock
from lamina.methods.probes import record_probes
from lamina.methods.reload import check_written
from lamina.models.memory import peak_bytes
from lamina.optim import LayerwiseGaloreAdamW
from lamina.plan.memory import choose_checkpointing
from lamina.plan.time import measured_tokens_per_second
from lamina.runs import Run, check_start, exclusive, recorded, start_run, timestamp
from lamina.training.checkpoint import (
    TrainState,
    checkpoint_step,
    load_best,
    load_checkpoint,
    newest_checkpoint,
    random_state,
    restore_random_state,
    save_best,
    save_checkpoint,
)
from lamina.training.events import Event, EventLog, OnEvent
from lamina.training.finite import check_adapter, check_evaluation
from lamina.training.preview import colored_example
from lamina.training.setup import Session, build_session, count_parameters, data_digests, is_only_text
from lamina.training.signals import StopRequest, stop_on_signals
from lamina.training.step import StepAbandoned, StepResult, evaluation_loss, training_step
from lamina.training.summary import summarise, total_parameters

# One bad batch is passed over; so many in a row are a broken run.
MAX_SKIPPED_IN_A_ROW = 5

# `train.compile`, in the kernels' own terms.
KERNELS: dict[str | bool, str] = {"auto": "auto", True: "compiled", False: "plain"}


def train(
    config: Config | Mapping[str, Any] | str | Path, on_event: OnEvent | None = None, *, resume: bool = False
) -> Run:
    """Trains an adapter.

    Args:
        config: A `Config`, or what `load_config` takes.
        on_event: Called with each `Event` as it happens.
        resume: Go on with the run in `output_dir`, or with the one whose own configuration file is given. Model and
            data may have other places than they had, if they are the same by their digests.

    Returns:
        The finished run: `run.adapter` is the adapter's folder, `run.summary` the figures.

    Raises:
        ConfigError, DataError, ModelError: Before anything is trained.
        RunError: There is a run already, or the one to go on with was started with something else.
        TrainingError: The loss or the gradient is not finite.
        Interrupted: A signal came, or nobody reads any more what `on_event` writes; a checkpoint was saved.
        StorageError: Something could not be written; the last checkpoint is untouched.
        KeyboardInterrupt: A second signal came; what was done since the last checkpoint is lost.
        Exception: What else comes up in the middle leaves a checkpoint too, if it can.
    """
    config = load_config(config)
    check_start(config, resume)
    with exclusive(Run(Path(config.output_dir))), ExitStack() as stack:
        run = start_run(config, resume)
        for folder in (run.path, run.checkpoints):
            files.remove_leftovers(folder)
        if run.summary is not None and run.adapter.is_dir():
            if on_event is not None:
                on_event(Event("note", run.summary["steps"], {"message": "The run is already finished."}))
            return run
        checkpoint = newest_checkpoint(run.checkpoints)
        begun = -1 if checkpoint is None else checkpoint_step(checkpoint)
        was_killed = run.begun and run.manifest["status"] == "running"  # by somebody who has the lock no more
        stack.enter_context(recorded(run))
        stop = stack.enter_context(stop_on_signals())
        log = stack.enter_context(EventLog(run, config.train.report_to, on_event, begun, stop))
        if was_killed:
            log.emit("note", max(begun, 0), message="The run was killed before; what is after its checkpoint is lost.")
        session = build_session(config, run, lambda message: log.emit("note", max(begun, 0), message=message))
        stack.enter_context(torch.random.fork_rng(devices=_cuda_devices(session)))
        state = _take_up(session, checkpoint, log)
        _Loop(session, log, stop, state).run()
    return run


def _take_up(session: Session, checkpoint: Path | None, log: EventLog) -> TrainState:
    """The state to start from: the checkpoint's, put back into adapter, optimizer and generators, or a fresh one."""
    if checkpoint is None:
        torch.manual_seed(session.config.seed)
        return TrainState()
    state, random = load_checkpoint(checkpoint, session.tensors, session.optimizer, session.hooks)
    restore_random_state(random, session.base.model.device)
    log.emit("note", state.step, message=f"Resumed from step {state.step} of {session.total_steps}.")
    return state


class _Loop:
    """The steps of one run in this process."""

    def __init__(self, session: Session, log: EventLog, stop: StopRequest, state: TrainState) -> None:
        self.session = session
        self.config = session.config.train
        self.run_dir = session.run
        self.model = session.base.model
        self.log = log
        self.stop = stop
        self.state = state
        self.layout = PACKED  # until it is found out what the model allows
        self.random = random_state(self.model.device)  # as it was when state.step was done
        self.parameters = list(session.tensors.values())
        self.first_step = state.step + 1
        self.whole = True  # whether tensors, optimizer and method are those of state.step
        self.window: list[StepResult] = []  # steps since the last metrics line
        self.window_seconds = 0.0

    def run(self) -> None:
        self.model.train()
        kernels = KERNELS[self.config.compile]
        with fast_path(self.model, self._choose_checkpointing, kernels, self.session.longest_document) as fusion:
            self.layout = fusion.layout
            self._announce(fusion)
            try:
                self._steps()
            except StepAbandoned:
                self._leave()
            except LaminaError:  # of a diverged run, or of a disk that takes nothing: the last checkpoint is the one
                raise
            except Exception as error:
                self._save_what_is_there(error)
                raise
        self._finish()

    def _choose_checkpointing(self, fusion: FusionReport) -> Recompute:
        setting = self.config.gradient_checkpointing
        return choose_checkpointing(setting, self.model, self.session.longest, fusion.complete)

    def _steps(self) -> None:
        session, state = self.session, self.state
        if session.dataset.eval and state.eval_loss_first is None:
            with session.injection.disabled():
                state.eval_loss_first = self._evaluate("bare base")
            self.log.emit("eval", 0, eval_loss=state.eval_loss_first, of="base")
        epoch, plan = -1, []
        while not self._done():
            if self._eval_due():  # also when a run was cut between a step and its evaluation
                self._evaluate_and_keep_best()
                continue
            if state.step > 0 and self._save_due():
                self._save()
            wanted, position = divmod(state.step, session.steps_per_epoch)
            if wanted != epoch:
                epoch, plan = wanted, session.epoch_plan(wanted)
            accumulate = self.config.gradient_accumulation_steps
            self._step(plan[position * accumulate : (position + 1) * accumulate])
        if self._eval_due():
            self._evaluate_and_keep_best()
        self._save()

    def _step(self, micro_batches: Sequence[list[EncodedExample]]) -> None:
        session, state, began = self.session, self.state, time.perf_counter()
        first = state.step + 1 == self.first_step
        result = training_step(
            self.model,
            session.head,
            session.optimizer,
            self.parameters,
            micro_batches,
            session.schedule(state.step),
            self.config.max_grad_norm,
            state.step + 1,
            session.hooks,
            stop=self._asked_to_stop,
            check=self._check_gradients if first else lambda: None,
            layout=self.layout,
            moving=self._moving,
        )
        seconds = time.perf_counter() - began
        if not result.finite:
            self._skip(result, micro_batches)
        else:
            state.skipped_in_a_row = 0
        state.step += 1
        self.random = random_state(self.model.device)
        self.whole = True
        if result.finite:
            state.tokens += result.tokens
            state.supervised_tokens += result.supervised_tokens
            state.train_loss_last = result.loss
            if state.train_loss_first is None:
                state.train_loss_first = result.loss
            self.window.append(result)
            self.window_seconds += seconds
        if not first or self.session.total_steps == 1:
            state.timed_tokens += result.tokens
            state.timed_seconds += seconds
        state.peak_memory_bytes = max(state.peak_memory_bytes, peak_bytes(self.model.device))
        if self.window and (state.step % self.config.logging_steps == 0 or state.step == self.session.total_steps):
            self._log_window()
        if self._asked_to_stop():
            raise StepAbandoned

    def _moving(self) -> None:
        self.whole = False

    def _log_window(self) -> None:
        window, state = self.window, self.state
        supervised = sum(result.supervised_tokens for result in window)
        self.log.emit(
            "step",
            state.step,
            loss=sum(result.loss * result.supervised_tokens for result in window) / supervised,
            learning_rate=self.session.schedule(state.step - 1),
            grad_norm=window[-1].grad_norm,
            tokens=sum(result.tokens for result in window),
            supervised_tokens=supervised,
            seconds=self.window_seconds,
            step_seconds=self.window_seconds / len(window),
            epoch=state.step / self.session.steps_per_epoch,
            memory_bytes=state.peak_memory_bytes,
        )
        self.window, self.window_seconds = [], 0.0

    def _skip(self, result: StepResult, micro_batches: Sequence[list[EncodedExample]]) -> None:
        state = self.state
        state.skipped_steps += 1
        state.skipped_in_a_row += 1
        step = state.step + 1
        rows = [example.row for examples in micro_batches for example in examples][:8]
        what = f"step {step}: loss {result.loss}, gradient norm {result.grad_norm}"
        if state.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW or step == 1:
            raise TrainingError(
                f"{what}: not finite{'' if step == 1 else f', {state.skipped_in_a_row} steps in a row'} (learning rate "
                f"{self.session.schedule(state.step):.3g}, rows {', '.join(map(str, rows))}). Fix: lower "
                "train.learning_rate, look at those rows, or check that the base model itself is sound. "
                f"The last checkpoint in {self.run_dir.checkpoints} is untouched."
            )
        self.log.emit("note", step, message=f"{what}: not finite, so the step was skipped.", rows=rows)

    def _check_gradients(self) -> None:
        """The first step's self-check: every adapter tensor takes part, and some gradient is not zero."""
        optimizer = self.session.optimizer
        if isinstance(optimizer, LayerwiseGaloreAdamW):  # which has let go of the gradients by now
            norms = optimizer.gradient_norms
        else:
            norms = {p: p.grad.norm() for p in self.parameters if p.grad is not None}
        without = [name for name, tensor in self.session.tensors.items() if tensor not in norms]
        if without:
            raise TrainingError(
                f"{len(without)} of {len(self.parameters)} adapter tensors get no gradient (first: {without[0]}), so "
                "their modules take no part in the model's output. Fix: choose other method.target_modules."
            )
        if not any(bool(norm) for norm in norms.values()):
            raise TrainingError("every gradient of the first step is zero: the adapter has no effect on the loss.")

    def _evaluate(self, what: str) -> float:
        examples = self.session.dataset.eval

        def progress(done: int) -> None:
            self.log.show("progress", self.state.step, what=what, done=done, total=len(examples))

        size = self.config.per_device_eval_batch_size
        head = self.session.head
        loss = evaluation_loss(self.model, head, examples, size, self._asked_to_stop, progress, self.layout)
        return check_evaluation(loss, what, self.state.step)

    def _evaluate_and_keep_best(self) -> None:
        state = self.state
        loss = self._evaluate("adapter")
        state.last_eval_step, state.eval_loss_last = state.step, loss
        margin = self.config.early_stopping_threshold
        if not self.session.hooks.is_settled():
            pass  # the method changes it yet, so this is no adapter to keep or to compare with
        elif state.best_eval_loss is None or loss < state.best_eval_loss - margin:
            state.best_eval_loss, state.best_step, state.evals_without_gain = loss, state.step, 0
            if self.config.load_best_model_at_end:
                save_best(self.run_dir.checkpoints, state, self.session.tensors)
        else:
            state.evals_without_gain += 1
        self.log.emit("eval", state.step, eval_loss=loss, of="adapter", best_step=state.best_step)
        if self._stopped_early():
            self.log.emit(
                "note",
                state.step,
                message=f"Stopped early: {state.evals_without_gain} evaluations without a better loss than "
                f"{state.best_eval_loss:.4f} at step {state.best_step}.",
            )

    def _eval_due(self) -> bool:
        state, session = self.state, self.session
        if not session.dataset.eval or state.step == 0 or state.last_eval_step == state.step:
            return False
        every = self.config.eval_steps or session.steps_per_epoch
        return state.step % every == 0 or state.step >= session.total_steps

    def _save_due(self) -> bool:
        return self.state.step % self.config.save_steps == 0 and self.state.step >= self.first_step

    def _save(self) -> None:
        path = self._write_checkpoint()
        self.log.emit("checkpoint", self.state.step, path=str(path))

    def _write_checkpoint(self) -> Path:
        folder, keep, session = self.run_dir.checkpoints, self.config.save_total_limit, self.session
        tensors, optimizer, hooks = session.tensors, session.optimizer, session.hooks
        return save_checkpoint(folder, self.state, tensors, optimizer, hooks, self.random, keep)

    def _save_what_is_there(self, error: Exception) -> None:
        """A run that ends by an unforeseen error leaves what one that is stopped does, and the error says so."""
        step, command = self.state.step, self.run_dir.resume_command
        if not self.whole:
            error.add_note(f"It came amid the update of step {step + 1}, so no checkpoint was saved of it.")
            error.add_note(f"Go on from the one before with: {command}")
            return
        try:
            self._write_checkpoint()
        except Exception as failure:
            error.add_note(f"No checkpoint could be saved: {failure}")
            return
        error.add_note(f"A checkpoint of step {step} was saved. Go on with: {command}")

    def _stopped_early(self) -> bool:
        patience = self.config.early_stopping_patience
        return patience is not None and self.state.evals_without_gain >= patience

    def _done(self) -> bool:
        return self.state.step >= self.session.total_steps or self._stopped_early()

    def _asked_to_stop(self) -> bool:
        return self.stop.signal is not None

    def _leave(self) -> None:
        self._save()
        step, total, command = self.state.step, self.session.total_steps, self.run_dir.resume_command
        facts = {"signal": self.stop.signal, "resume": command}
        self.log.emit("interrupted", step, **facts)
        reason = f"stopped by {self.stop.signal} after step {step} of {total}, with a checkpoint"
        raise Interrupted(f"{reason}. Go on with: {command}", run=str(self.run_dir.path), step=step, **facts)

    def _announce(self, fusion: FusionReport) -> None:
        session, state = self.session, self.state
        for reason in (*fusion.notes, *kernel_notes(self.model.device, self.config.compile)):
            self.log.emit("note", state.step, message=reason)
        sample = session.epoch_plan(0)[0]
        speed = measured_tokens_per_second(self.model, session.head, self.parameters, sample, self.layout)
        tokens_per_step = session.dataset.report.train.tokens / session.steps_per_epoch
        left = (session.total_steps - state.step) * tokens_per_step
        trainable = count_parameters(self.parameters)
        self.log.emit(
            "start",
            state.step,
            total_steps=session.total_steps,
            steps_per_epoch=session.steps_per_epoch,
            modules=len(session.injection.layers),
            trainable_parameters=trainable,
            total_parameters=total_parameters(self.model),
            dtype=str(session.base.dtype).removeprefix("torch."),
            device=str(self.model.device),
            gradient_checkpointing=fusion.recompute,
            fused_layers=fusion.fused,
            estimated_seconds=left / speed,
            data_report=session.dataset.report.lines(),
        )
        self.log.emit("example", state.step, segments=colored_example(session))

    def _finish(self) -> None:
        session, state = self.session, self.state
        if self.config.load_best_model_at_end and state.best_step not in (-1, state.step):
            session.injection.load_tensors(load_best(self.run_dir.checkpoints, state.best_step))
            said = f"The adapter is that of step {state.best_step}, the best evaluation."
            self.log.emit("note", state.step, message=said)
        check_adapter(session.tensors, state.step)
        self.model.eval()
        probes = record_probes(session.injection, session.template)
        digests, only_text = data_digests(session.dataset), is_only_text(session.dataset)
        lock = build_lock(session.base, session.template, digests, only_text)
        digest = save_adapter(self.run_dir.adapter, session.injection, session.base, lock, probes)
        for note in check_written(self.run_dir.adapter, session.injection, digest):
            self.log.emit("note", state.step, message=note)
        summary = summarise(session, state, digest)
        self.run_dir.record(status="finished", finished=timestamp(), summary=summary)
        self.log.emit("end", state.step, **summary)


def _cuda_devices(session: Session) -> list[torch.device]:
    return [session.base.model.device] if session.base.model.device.type == "cuda" else []
