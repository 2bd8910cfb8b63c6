"""`train`: the whole of a run, from configuration to adapter.

Setting up is in `setup.py`, one step in `step.py`, what is saved in `checkpoint.py`. In order: bare base evaluated,
steps with evaluations and checkpoints, the best adapter saved with its lock and probes, and read again. The loop can be
cut anywhere, and goes on from the newest checkpoint to the same adapter, bit for bit (with as many threads).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from lamina.compute.fusion import FusionReport, Recompute, fast_path
from lamina.config import Config, load_config
from lamina.data.batch import PACKED
from lamina.data.example import EncodedExample
from lamina.data.side import Side
from lamina.distributed.failure import LostRankError, PeerError
from lamina.distributed.member import member
from lamina.distributed.reduce import digest_of
from lamina.distributed.world import ALONE, World
from lamina.errors import Interrupted, LaminaError, TrainingError
from lamina.machine.hardware import on_device
from lamina.machine.memory import peak_bytes
from lamina.machine.seeding import kept_generators
from lamina.models.load import Base
from lamina.runs import Run, comparable_settings, events
from lamina.runs.events import Note, OnEvent
from lamina.signals import StopRequest, stop_on_signals
from lamina.training.backward import StepAbandoned
from lamina.training.checkpoint import TrainState
from lamina.training.eval_sets import evaluate_sets
from lamina.training.event_log import EventLog
from lamina.training.finish import final_probes, finish
from lamina.training.finite import check_evaluation, check_gradients
from lamina.training.keep import keep_best, keep_checkpoint
from lamina.training.loss_scale import LossScale
from lamina.training.opening import begin_run, take_up
from lamina.training.preview import announce
from lamina.training.session import KERNELS, Session
from lamina.training.setup import build_session
from lamina.training.share import agreed_checkpointing, check_layout
from lamina.training.step import EvaluationResult, StepResult, evaluate_loss, training_step
from lamina.training.summary import Together
from lamina.training.window import Window

# One bad batch is passed over; so many in a row are a broken run.
MAX_SKIPPED_IN_A_ROW = 5


def train(
    config: Config | Mapping[str, Any] | str | Path,
    on_event: OnEvent | None = None,
    *,
    resume: bool = False,
    world: World | None = None,
    base: Base | None = None,
) -> Run:
    """Trains an adapter.

    Args:
        config: A `Config`, or what `load_config` takes.
        on_event: Called with each event as it happens; `lamina.runs.events` has a class for each kind.
        resume: Go on with the run in `output_dir`, or with the one whose own configuration file is given. Model and
            data may have other places than they had, if they are the same by their digests.
        world: The processes that train together, of which this is one; by default those that a launcher such as
            torchrun has started it with.
        base: The base model, if it is in memory already; by default `config.model` is loaded.

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
    if world is not None:
        return _train(config, on_event, resume, world, base)
    with member() as group:
        return _train(config, on_event, resume, group or ALONE, base)


def _train(config: Config, on_event: OnEvent | None, resume: bool, world: World, base: Base | None) -> Run:
    if world.size > 1:
        world.timeout = config.distributed.timeout
    world.same_everywhere(comparable_settings(config))
    run = Run(Path(config.output_dir))
    with on_device(config.device), ExitStack() as stack:
        begin = world.once(lambda: begin_run(config, run, resume, stack), "opening the run")
        if begin.finished:
            if on_event is not None and run.summary is not None and world.is_first:
                on_event(Note(run.summary.steps, message="The run is already finished."))
            return run
        stop = stack.enter_context(stop_on_signals())
        log = stack.enter_context(EventLog(run, config, on_event, begin.step, stop, world))
        notify = lambda message: log.emit(Note(max(begin.step, 0), message=message))  # noqa: E731
        if begin.was_killed:
            notify("The run was killed before; what is after its checkpoint is lost.")
        session = build_session(config, run, notify, world, base)
        stack.enter_context(kept_generators(session.base.model.device))
        _Loop(session, log, stop, take_up(session, begin.step, log)).run()
    return run


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
        self.parameters = list(session.tensors.values())
        self.first_step = state.step + 1
        self.whole = True  # whether tensors, optimizer and method are those of state.step
        self.window = Window()
        self.remarked = False
        self.busy_seconds: tuple[float, ...] = ()
        self.signaled = ""  # which process a signal came to, if not to all
        self.scale = LossScale.of(session.base.dtype, state.loss_scale, state.loss_scale_good_steps)

    def run(self) -> None:
        self.model.train()
        kernels = KERNELS[self.config.compile]
        longest, fuse = self.session.longest_document, self.session.world.team_size == 1
        with fast_path(self.model, self._choose_checkpointing, kernels, longest, fuse) as fusion:
            self.layout = fusion.layout
            how = {"layout": str(fusion.layout), "fused layers": f"{fusion.fused} of {fusion.layers}"}
            self.session.world.same_everywhere(how)
            check_layout(self.session.world, self.session.strategy, fusion)
            announce(self.session, self.state, fusion, self.log)
            try:
                self._steps()
            except StepAbandoned:
                self._leave()
            except LaminaError as error:
                # That of a diverged run, or of a disk that takes nothing, leaves the last checkpoint as the one.
                if isinstance(error, LostRankError | PeerError):
                    self._save_what_is_there(error)
                raise
            except Exception as error:
                named = self.session.world.explain(error)
                self._save_what_is_there(named)
                raise named from error.__cause__ if named is error else error
        self._finish()

    def _choose_checkpointing(self, fusion: FusionReport) -> Recompute:
        setting, world = self.config.gradient_checkpointing, self.session.world
        return agreed_checkpointing(setting, self.model, self.session.longest, fusion, world)

    def _steps(self) -> None:
        session, state = self.session, self.state
        if state.step == 0 and (note := session.check_reference(self.layout)):
            self._note(note)
        if session.dataset.eval and state.eval_loss_first is None:
            self._evaluate_start()
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
            accumulate = session.per_step
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
            session.loss,
            session.optimizer,
            self.parameters,
            micro_batches,
            session.schedule(state.step),
            self.config.max_grad_norm,
            state.step + 1,
            session.hooks,
            stop=self._asked_amid_work,
            check=partial(check_gradients, session.optimizer, session.tensors) if first else lambda: None,
            layout=self.layout,
            moving=self._moving,
            world=session.world,
            seed=session.config.seed if state.seeded_by_step else None,
            engine=session.engine,
            scale=self.scale,
        )
        if self.scale is not None:
            state.loss_scale, state.loss_scale_good_steps = self.scale.scale, self.scale.good_steps
        seconds = time.perf_counter() - began
        if result.overflowed and self.scale is not None:
            state.skipped_steps += 1
            self.log.emit(Note(state.step + 1, message=f"step {state.step + 1}: {self.scale.overflow()}"))
        elif not result.finite:
            self._skip(result, micro_batches)
        else:
            state.skipped_in_a_row = 0
        state.step += 1
        self.whole = True
        if result.finite:
            state.tokens += result.tokens
            state.supervised_tokens += result.supervised_tokens
            state.train_loss_last = result.loss
            if state.train_loss_first is None:
                state.train_loss_first = result.loss
            self.window.add(result, seconds)
        if not first or self.session.total_steps == 1:
            state.timed_tokens += result.tokens
            state.timed_seconds += seconds
        state.peak_memory_bytes = max(state.peak_memory_bytes, peak_bytes(self.model.device))
        self.busy_seconds = result.seconds_by_rank
        if state.step % self.config.logging_steps == 0 or state.step == session.total_steps:
            self._log_window()
        if self._asked_to_stop():
            raise StepAbandoned

    def _moving(self) -> None:
        self.whole = False

    def _log_window(self) -> None:
        step, session = self.state.step, self.session
        several: dict[str, list[Any]] = {}
        if session.world.size > 1:
            memory = session.world.gather(peak_bytes(self.model.device), "a line of metrics")
            several = {"memory_by_rank": memory, "seconds_by_rank": list(self.busy_seconds)}
        if self.window.results:
            rate, epoch = session.schedule(step - 1), step / session.steps_per_epoch
            self.log.emit(self.window.close(step, rate, epoch, self.state.peak_memory_bytes, **several))

    def _skip(self, result: StepResult, micro_batches: Sequence[list[EncodedExample]]) -> None:
        state = self.state
        state.skipped_steps += 1
        state.skipped_in_a_row += 1
        step = state.step + 1
        rows = [example.row for examples in micro_batches for example in examples][:8]
        where = ", ".join(map(self.session.world.host_of, result.not_finite_in if self.session.world.size > 1 else ()))
        what = f"step {step}: loss {result.loss}, gradient norm {result.grad_norm}{where and f' from {where}'}"
        if state.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW or step == 1 or self.session.engine is not None:
            raise TrainingError(
                f"{what}: not finite{'' if step == 1 else f', {state.skipped_in_a_row} steps in a row'} (learning rate "
                f"{self.session.schedule(state.step):.3g}, rows {', '.join(map(str, rows))}). Fix: lower "
                "train.learning_rate, look at those rows, or check that the base model itself is sound. "
                f"The last checkpoint in {self.run_dir.checkpoints} is untouched."
            )
        self.log.emit(Note(step, message=f"{what}: not finite, so the step was skipped.", rows=rows))

    def _evaluate(self, what: str) -> EvaluationResult:
        dataset, best = self.session.dataset, self.session.best_set
        return evaluate_sets(partial(self._evaluate_set, what), dataset.eval, dataset.eval_sets, best)

    def _evaluate_set(self, what: str, examples: Side, where: str) -> EvaluationResult:
        def progress(done: int) -> None:
            self.log.show(events.Progress(self.state.step, what=what + where, done=done, total=len(examples)))

        world = self.session.world
        size, parts = self.config.per_device_eval_batch_size, (self.session.head, self.session.loss)
        result = evaluate_loss(self.model, *parts, examples, size, self._asked_amid_work, progress, self.layout, world)
        check_evaluation(result.loss, what + where, self.state.step)
        return result

    def _evaluate_start(self) -> None:
        """Evaluates what the adapter is compared with: the adapter that training starts from, or the bare base."""
        session, state = self.session, self.state
        of = "base" if session.start is None else "start"
        with session.injection.disabled() if of == "base" else nullcontext():
            first = self._evaluate("bare base" if of == "base" else of)
        state.eval_loss_first, state.eval_metrics_first = first.loss, first.metrics
        self.log.emit(events.Evaluation(0, eval_loss=first.loss, of=of, metrics=first.metrics))

    def _evaluate_and_keep_best(self) -> None:
        state = self.state
        result = self._evaluate("adapter")
        loss = result.loss
        state.last_eval_step, state.eval_loss_last, state.eval_metrics_last = state.step, loss, result.metrics
        if not self.session.hooks.is_settled():
            pass  # the method changes it yet, so this is no adapter to keep or to compare with
        elif self._is_better(loss, result.metrics):
            state.best_eval_loss, state.best_step, state.evals_without_gain = loss, state.step, 0
            state.best_eval_metrics = result.metrics
            if self.config.load_best_model_at_end:
                keep_best(self.session, state)
        else:
            state.evals_without_gain += 1
        best = state.best_step
        self.log.emit(
            events.Evaluation(state.step, eval_loss=loss, of="adapter", best_step=best, metrics=result.metrics)
        )
        for remark in self.session.loss.remarks(state.eval_metrics_first, result.metrics) if not self.remarked else []:
            self.remarked = True
            self._note(remark)
        if self._stopped_early():
            self._note(
                f"Stopped early: {state.evals_without_gain} evaluations without a better one than that "
                f"of step {best} (loss {state.best_eval_loss:.4f})."
            )

    def _is_better(self, loss: float, metrics: Mapping[str, float]) -> bool:
        """Whether an evaluation is better than the best one so far, by the loss's own measure."""
        if self.state.best_eval_loss is None:
            return True
        standing = self.session.loss.standing
        best = standing(self.state.best_eval_loss, self.state.best_eval_metrics)
        return standing(loss, metrics) < best - self.config.early_stopping_threshold

    def _eval_due(self) -> bool:
        state, session = self.state, self.session
        if not session.dataset.eval or state.step == 0 or state.last_eval_step == state.step:
            return False
        every = self.config.steps_between(self.config.eval_steps or session.steps_per_epoch, session.total_steps)
        return state.step % every == 0 or state.step >= session.total_steps

    def _save_due(self) -> bool:
        every = self.config.steps_between(self.config.save_steps, self.session.total_steps)
        return self.state.step % every == 0 and self.state.step >= self.first_step

    def _save(self) -> None:
        path = self._write_checkpoint()
        self.log.emit(events.CheckpointSaved(self.state.step, path=str(path)))

    def _write_checkpoint(self) -> Path:
        world, what = self.session.world, f"the adapter at step {self.state.step}"
        if world.size > 1:
            world.same_everywhere({what: digest_of(self.session.tensors)})
        moments = self.session.moments()
        return world.once(lambda: keep_checkpoint(self.session, self.state, moments), f"saving {what}")

    def _save_what_is_there(self, error: Exception) -> None:
        """A run that ends by an unforeseen error leaves what one that is stopped does, and the error says so."""
        if not self.session.world.is_first or self.session.engine is not None:
            return
        step, command = self.state.step, self.run_dir.resume_command
        if not self.whole:
            error.add_note(f"It came amid the update of step {step + 1}, so no checkpoint was saved of it.")
            error.add_note(f"Go on from the one before with: {command}")
            return
        try:
            keep_checkpoint(self.session, self.state, self.session.moments())
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
        """Whether a signal has come, in any process."""
        signals = self.session.world.gather(self.stop.signal, f"the start of step {self.state.step + 1}")
        found = [(rank, signal) for rank, signal in enumerate(signals) if signal is not None]
        if found and len(found) < len(signals):  # not the command that started all of them, which passes it on to all
            rank, self.stop.signal = found[0]
            self.signaled = f" to {self.session.world.host_of(rank)}"
        return bool(found)

    def _asked_amid_work(self) -> bool:
        """Between micro-batches, of which processes have different numbers, so that only one alone can stop there."""
        return self.session.world.size == 1 and self._asked_to_stop()

    def _leave(self) -> None:
        self._save()
        step, command, signal = self.state.step, self.run_dir.resume_command, self.stop.signal
        self.log.emit(events.Interrupted(step, signal=signal, resume=command))
        raise Interrupted(
            f"stopped by {signal}{self.signaled} after step {step} of {self.session.total_steps}, with a checkpoint. "
            f"Go on with: {command}",
            run=str(self.run_dir.path),
            step=step,
            signal=signal,
            resume=command,
        )

    def _finish(self) -> None:
        session, device = self.session, self.model.device
        memory = session.world.gather(max(self.state.peak_memory_bytes, peak_bytes(device)), "the end of training")
        self.state.peak_memory_bytes = max(memory)
        seconds = min(session.world.gather(session.world.communication_seconds, "the end of training"))
        together = Together(session.world.size, session.strategy, seconds, memory)
        probes = final_probes(session, self.state, self._note)
        end = lambda: finish(session, self.state, self._note, together, probes)  # noqa: E731
        summary = session.world.once(end, "saving the adapter")
        self.log.emit(events.Finished(self.state.step, summary=summary))

    def _note(self, message: str) -> None:
        self.log.emit(Note(self.state.step, message=message))
