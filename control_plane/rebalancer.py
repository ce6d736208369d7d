"""Carries a plan of moves out: bounded, step by step, each written down before it is begun, so that it resumes.

    planned    registry: run (planning), its steps, run (running)
    a step     registry: moving -> the mover, which begins the move or goes on with it -> registry: done or failed

A step that a crash left as moving is handed to the mover again, which is idempotent. The run stops by itself where
moves fail in a row or the share of 5xx answers rises; an operator then says `--apply` to go on, or `--abort`.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Protocol

import structlog

from cells.api.ids import new_ulid
from control_plane import dry_run, limits, registry_codec, registry_keys
from control_plane.data_folder import timestamp
from control_plane.dry_run import DryRunDone
from control_plane.errors import ControlPlaneError, PlanChangedError, RefusedError
from control_plane.move_record import is_untold, longest_ms
from control_plane.publishing import cells_of_directory
from control_plane.rebalancing import By, Plan, Resident, name_of, plan
from control_plane.registry import Registry
from control_plane.registry_records import STEP_STATES, Rebalance, RebalanceStep

log = structlog.get_logger()

OPEN: Final = frozenset({"running", "paused", "stopped"})
_HOUR_MS: Final = 3_600_000
_STEPS_SHOWN_MAX: Final = 20
_BOUNDS: Final = ("at_once", "per_hour", "pause_budget_ms")


@dataclass(frozen=True, slots=True)
class MoveResult:
    """What became of a move: how long its partner waited (None: not known), and why it failed, if it did."""

    pause_ms: int | None
    error: str | None = None


class Mover(Protocol):
    """What moves one partner. It begins the move, or goes on with one that was begun, and returns when it ended."""

    async def move(self, partner_id: str, to_cell: str, who: str) -> MoveResult:
        """Move a partner. Raises ControlPlaneError where nothing is known of how it went: it is then asked again."""


@dataclass(frozen=True, slots=True)
class Answers:
    """How many answers all routers gave so far, and how many of these were 5xx."""

    all: int
    server_errors: int


class Observed(Protocol):
    """What is seen of the load."""

    async def answers(self) -> Answers:
        """Count the routers' answers until now. Raises ControlPlaneError."""

    async def residents(self) -> list[Resident]:
        """Give every partner with its cell and load. Raises ControlPlaneError."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How fast a run may go. None: as the run has it that goes on, or as it is by default."""

    at_once: int | None = None
    per_hour: int | None = None
    pause_budget_ms: int | None = None

    def over(self, run: Rebalance) -> Rebalance:
        """Give the run with these of its bounds."""
        return replace(
            run,
            at_once=run.at_once if self.at_once is None else self.at_once,
            per_hour=run.per_hour if self.per_hour is None else self.per_hour,
            pause_budget_ms=run.pause_budget_ms if self.pause_budget_ms is None else self.pause_budget_ms,
        )


class Rebalancer:
    """The one run of moves."""

    def __init__(
        self,
        registry: Registry,
        mover: Mover,
        observed: Observed,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        monotonic_ms: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000,
    ) -> None:
        self._registry = registry
        self._mover = mover
        self._observed = observed
        self._now_ms = now_ms
        self._monotonic_ms = monotonic_ms
        self._lock = asyncio.Lock()
        self._run: Rebalance | None = None
        self._steps: dict[str, RebalanceStep] = {}
        self._plan_id: str | None = None  # of the run's plan, worked out from its steps
        self._rows_there: set[str] = set()  # also those of a plan whose writing down was interrupted
        self._is_read = False
        self._is_closed = False
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._not_before_ms: dict[str, int] = {}
        self._failures_in_row = 0
        self._answers: deque[tuple[int, Answers]] = deque()

    # What operators ask.

    async def plan(self, by: By, bounds: Bounds) -> Plan:
        """Give the plan of now, with its cost. Raises ControlPlaneError."""
        cells = cells_of_directory(self._registry.cells())
        residents = await self._observed.residents()
        pauses = sorted(step.pause_ms for step in self._steps.values() if step.pause_ms is not None)
        expected_ms = pauses[len(pauses) // 2] if pauses else limits.REBALANCE_PAUSE_MS_EXPECTED
        per_hour = limits.REBALANCE_MOVES_PER_HOUR_DEFAULT if bounds.per_hour is None else bounds.per_hour
        return await asyncio.to_thread(plan, by, cells, residents, moves_per_hour=per_hour, pause_ms=expected_ms)

    async def apply(self, by: By, bounds: Bounds, who: str, plan_id: str | None = None) -> dict[str, Any]:
        """Begin to carry the plan of now out, or go on with a run that is paused or stopped, within new bounds if any.

        Gives the status with the `plan` that was begun, None where a run goes on. Raises RefusedError, and
        PlanChangedError where `plan_id` names another plan than the one to be carried out.
        """
        begun: Plan | None = None
        async with self._lock:
            await self._read()
            run = self._run
            if run is not None and run.state == "running":
                raise RefusedError(
                    f"a rebalancing runs already, since {run.created_at}",
                    hint="see it: bulkhead rebalance --status --watch; end it: bulkhead rebalance --abort",
                )
            if run is not None and run.state in OPEN:
                if run.by != by:
                    raise RefusedError(
                        f"a rebalancing by {run.by} is {run.state}",
                        hint=f"go on with it: bulkhead rebalance --apply --by {run.by}; or end it first: --abort",
                    )
                if plan_id not in {None, self._plan_id}:
                    raise PlanChangedError(
                        f"the plan of the rebalancing that is {run.state} is {self._plan_id}, not {plan_id}",
                        hint="go on with it: leave --plan-id out; or end it first: bulkhead rebalance --abort",
                    )
                resumed = bounds.over(replace(run, state="running", why=""))
                detail = self._left() | _changed_bounds(run, resumed)
                await self._write(resumed, who, "rebalance_resumed", **detail)
                self._failures_in_row = 0
                self._answers.clear()
            else:
                begun = await self.plan(by, bounds)
                if plan_id not in {None, begun.id}:
                    raise PlanChangedError(
                        f"the plan of now is {begun.id}, not {plan_id}",
                        hint=f"see what it would do: bulkhead rebalance --plan --by {by}",
                    )
                try:
                    await self._begin(begun, bounds, who)
                except DryRunDone as done:
                    raise DryRunDone(done.changes, {"plan": asdict(begun)}) from None
        return {**await self.status(), "plan": None if begun is None else asdict(begun)}

    async def pause(self, who: str) -> dict[str, Any]:
        """Begin no further moves; those under way end. Raises RefusedError."""
        async with self._lock:
            await self._read()
            paused = replace(self._open(), state="paused", why=f"paused by {who}")
            await self._write(paused, who, "rebalance_paused", **self._left())
        return await self.status()

    async def abort(self, who: str) -> dict[str, Any]:
        """End the run; moves under way end as they must, all others are not begun. Raises RefusedError."""
        async with self._lock:
            await self._read()
            ended = replace(self._open(), state="aborted", why=f"aborted by {who}", ended_at=timestamp())
            await self._write(ended, who, "rebalance_aborted", **self._left())
        return await self.status()

    async def status(self) -> dict[str, Any]:
        """Give how far the newest run is; `run` is None where there never was one. Raises ControlPlaneError."""
        await self._read()
        steps = list(self._steps.values())
        pauses = sorted(step.pause_ms for step in steps if step.pause_ms is not None)
        counts = {state: sum(step.state == state for step in steps) for state in sorted(STEP_STATES)}
        shown = [step for step in steps if step.state in {"moving", "failed"}]
        return {
            "run": None if self._run is None else asdict(self._run),
            "plan_id": self._plan_id,
            "counts": counts,
            "steps": len(steps),
            "pause_ms": {
                "median": pauses[len(pauses) // 2] if pauses else None,
                "p99": pauses[min(len(pauses) - 1, len(pauses) * 99 // 100)] if pauses else None,
                "max": pauses[-1] if pauses else None,
                "unknown": sum(
                    step.pause_ms is None and step.attempts > 0 and step.state != "moving" for step in steps
                ),
            },
            "over_budget": 0 if self._run is None else sum(ms > self._run.pause_budget_ms for ms in pauses),
            "moving": [asdict(step) for step in shown if step.state == "moving"][:_STEPS_SHOWN_MAX],
            "failed": [asdict(step) for step in shown if step.state == "failed"][:_STEPS_SHOWN_MAX],
        }

    # What the control plane does beside.

    async def work(self) -> None:
        """Take what steps may be taken now. Raises nothing that a later round may mend."""
        try:
            async with self._lock:
                if not self._is_closed:
                    await self._read()
                    await self._advance()
        except ControlPlaneError as error:
            self._is_read = False  # what was written of it is read again
            log.warning("rebalance_not_advanced", error=error.what)

    async def aclose(self) -> None:
        """Leave the moves under way as they are; the next control plane goes on with them."""
        self._is_closed = True
        for task in self._tasks.values():
            task.cancel()
        for task in list(self._tasks.values()):
            with contextlib.suppress(asyncio.CancelledError):
                await task

    # Inside.

    async def _advance(self) -> None:
        run = self._run
        if run is None:
            return
        if run.state == "running":
            why = await self._alarm()
            if why:
                log.error("rebalance_stopped", why=why)
                run = replace(run, state="stopped", why=why)
                await self._write(run, "rebalancer", "rebalance_stopped", why=why)
        # What was begun is ended, also of a run that was stopped or aborted: a move goes only forward after its seal.
        for step in list(self._steps.values()):
            is_due = self._not_before_ms.get(step.partner_id, 0) <= self._monotonic_ms()
            if step.state == "moving" and step.partner_id not in self._tasks and is_due:
                self._start(step)
        if run.state != "running":
            return
        for step in self._next_steps(run):
            await self._begin_step(step)
        if not self._tasks and all(step.state not in {"waiting", "moving"} for step in self._steps.values()):
            await self._write(replace(run, state="done", ended_at=timestamp()), "rebalancer", "rebalance_done")

    def _next_steps(self, run: Rebalance) -> Sequence[RebalanceStep]:
        now = self._now_ms()
        begun = sum(
            step.started_at_ms is not None and step.started_at_ms > now - _HOUR_MS for step in self._steps.values()
        )
        free = min(run.at_once - len(self._tasks), run.per_hour - begun)
        waiting = (
            step
            for step in self._steps.values()
            if step.state == "waiting" and self._not_before_ms.get(step.partner_id, 0) <= self._monotonic_ms()
        )
        return sorted(waiting, key=lambda step: (step.attempts, step.bytes, step.partner_id))[: max(free, 0)]

    async def _begin_step(self, step: RebalanceStep) -> None:
        """Write down that a move is begun, then begin it; leave it out where things are otherwise by now."""
        why = self._reason_to_skip(step)
        if why:
            await self._write_step(replace(step, state="skipped", ended_at_ms=self._now_ms(), error=why))
            return
        begun = replace(step, state="moving", attempts=step.attempts + 1, started_at_ms=self._now_ms())
        await self._write_step(begun)
        self._start(begun)

    def _reason_to_skip(self, step: RebalanceStep) -> str:
        partner = next((one for one in self._registry.partners() if one.id == step.partner_id), None)
        target = next((cell for cell in self._registry.cells() if cell.name == step.to_cell), None)
        if partner is None:
            return "there is no such partner any more"
        if partner.cell != step.from_cell:
            return f"it is in {partner.cell} by now"
        if target is None or target.state != "active":
            return f"{step.to_cell} takes no partners any more"
        untold = [one.cell for one in self._registry.burials_of(step.partner_id) if is_untold(one, step.to_cell)]
        if untold:
            return f"{untold[0]} is away and was not told yet that {step.partner_id} is in another cell"
        return ""

    def _start(self, step: RebalanceStep) -> None:
        task = asyncio.create_task(self._carry_out(step), name=f"move {step.partner_id}")
        self._tasks[step.partner_id] = task
        task.add_done_callback(lambda ended: self._forget(step.partner_id, ended))

    def _forget(self, partner_id: str, task: asyncio.Task[None]) -> None:
        """Let go of a move's task. Where it failed, how the move is, is not known: the mover is asked again later."""
        self._tasks.pop(partner_id, None)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            log.error("rebalance_move_unknown", partner=partner_id, error=str(error), kind=type(error).__name__)
            self._failures_in_row += 1
            self._not_before_ms[partner_id] = self._monotonic_ms() + limits.REBALANCE_RETRY_DELAY_MS

    async def _carry_out(self, step: RebalanceStep) -> None:
        assert self._run is not None
        result = await self._mover.move(step.partner_id, step.to_cell, f"rebalance {self._run.id}")
        pause_ms = longest_ms(step.pause_ms if step.attempts > 1 else 0, result.pause_ms)
        ended = replace(step, ended_at_ms=self._now_ms(), pause_ms=pause_ms, error=result.error or "")
        if result.error is None:
            ended = replace(ended, state="done")
            self._failures_in_row = 0
        else:
            self._failures_in_row += 1
            is_too_long = result.pause_ms is None or result.pause_ms > self._run.pause_budget_ms
            is_last = is_too_long or step.attempts >= limits.REBALANCE_ATTEMPTS_MAX
            ended = replace(ended, state="failed" if is_last else "waiting")
            self._not_before_ms[step.partner_id] = self._monotonic_ms() + limits.REBALANCE_RETRY_DELAY_MS
            log.warning("rebalance_move_failed", partner=step.partner_id, error=result.error, again=not is_last)
        await self._write_step(ended)

    async def _alarm(self) -> str:
        """Give why the run must stop, in words; empty where it needn't."""
        if self._failures_in_row >= limits.REBALANCE_FAILURES_IN_ROW_MAX:
            return f"{self._failures_in_row} moves in a row failed"
        now = self._monotonic_ms()
        if self._answers and now - self._answers[-1][0] < limits.REBALANCE_ERRORS_INTERVAL_MS:
            return ""
        try:
            self._answers.append((now, await self._observed.answers()))
        except ControlPlaneError as error:
            log.warning("rebalance_blind", error=error.what)
            return ""
        while now - self._answers[0][0] > limits.REBALANCE_ERRORS_WINDOW_MS:
            self._answers.popleft()
        oldest, newest = self._answers[0][1], self._answers[-1][1]
        errors, answers = newest.server_errors - oldest.server_errors, newest.all - oldest.all
        if errors >= limits.REBALANCE_ERRORS_MIN and errors > limits.REBALANCE_ERROR_RATE_MAX * answers:
            seconds = limits.REBALANCE_ERRORS_WINDOW_MS // 1000
            return f"{errors} of {answers} answers of the last {seconds} s were 5xx"
        return ""

    def _open(self) -> Rebalance:
        if self._run is None or self._run.state not in OPEN:
            raise RefusedError("no rebalancing is under way", hint="begin one: bulkhead rebalance --apply")
        return self._run

    async def _begin(self, found: Plan, bounds: Bounds, who: str) -> None:
        """Write a run down: it counts once its last row is there."""
        if any(step.state == "moving" for step in self._steps.values()):
            raise RefusedError(
                "moves of the run before are still under way", hint="wait for them: bulkhead rebalance --status"
            )
        run = bounds.over(
            Rebalance(
                id=new_ulid(),
                by=found.by,
                state="planning",
                who=who,
                created_at=timestamp(),
                ended_at=None,
                why="",
                at_once=limits.REBALANCE_MOVES_AT_ONCE_DEFAULT,
                per_hour=limits.REBALANCE_MOVES_PER_HOUR_DEFAULT,
                pause_budget_ms=limits.REBALANCE_PAUSE_BUDGET_MS_DEFAULT,
            )
        )
        running = replace(run, state="running")
        if dry_run.ASKED.get():
            await self._write_begun(running, found, who)  # which writes nothing, and says what it would
        self._is_read = False  # until the last row is there, what is written down counts, not what is held
        await self._registry.write_rows({registry_keys.REBALANCE: registry_codec.encode_rebalance(run)})
        rows: dict[str, bytes | None] = dict.fromkeys(self._rows_there)
        for move in found.moves:
            step = RebalanceStep(run.id, move.partner_id, move.from_cell, move.to_cell, move.bytes, "waiting")
            rows[move.partner_id] = registry_codec.encode_rebalance_step(step)
        names = list(rows)
        for first in range(0, len(names), limits.REBALANCE_STEPS_PER_COMMIT_MAX):
            part = names[first : first + limits.REBALANCE_STEPS_PER_COMMIT_MAX]
            await self._registry.write_rows({registry_keys.rebalance_step(name): rows[name] for name in part})
        self._failures_in_row = 0
        self._answers.clear()
        self._not_before_ms.clear()
        await self._write_begun(running, found, who)
        await self._read()

    async def _write_begun(self, run: Rebalance, found: Plan, who: str) -> None:
        await self._registry.write_rows(
            {registry_keys.REBALANCE: registry_codec.encode_rebalance(run)},
            who,
            "rebalance_begun",
            by=run.by,
            plan=found.id,
            moves=len(found.moves),
            **{name: getattr(run, name) for name in _BOUNDS},
        )

    def _left(self) -> dict[str, int]:
        """Count, for the audit log, the moves that were not begun yet and those that are under way."""
        return {state: sum(step.state == state for step in self._steps.values()) for state in ("waiting", "moving")}

    async def _write(self, run: Rebalance, who: str, what: str, **detail: Any) -> None:
        row = {registry_keys.REBALANCE: registry_codec.encode_rebalance(run)}
        await self._registry.write_rows(row, who, what, run=run.id, **detail)
        self._run = run

    async def _write_step(self, step: RebalanceStep) -> None:
        await self._registry.write_rows(
            {registry_keys.rebalance_step(step.partner_id): registry_codec.encode_rebalance_step(step)}
        )
        self._steps[step.partner_id] = step

    async def _read(self) -> None:
        """Read the newest run, once; one whose writing down was interrupted counts for nothing."""
        if self._is_read:
            return
        values, entries = await self._registry.read_rows(
            registry_keys.rebalance_steps, limits.PARTNERS_MAX, registry_keys.REBALANCE
        )
        run = registry_codec.decode_rebalance(values[0])
        steps = [registry_codec.decode_rebalance_step(entry) for entry in entries]
        self._run = None if run is None or run.state == "planning" else run
        self._steps = {step.partner_id: step for step in steps if run is not None and step.run_id == run.id}
        self._plan_id = None
        if self._run is not None:
            moves = ((step.partner_id, step.from_cell, step.to_cell) for step in self._steps.values())
            self._plan_id = name_of(self._run.by, moves)
        self._rows_there = {step.partner_id for step in steps}
        self._is_read = True


def _changed_bounds(before: Rebalance, now: Rebalance) -> dict[str, Any]:
    """Give the bounds that are others now, each with what it was and is."""
    pairs = {name: [getattr(before, name), getattr(now, name)] for name in _BOUNDS}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
