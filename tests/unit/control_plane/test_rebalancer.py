"""A run of moves over a stand-in mover: its bounds, what stops it, and that it resumes after a crash at any step."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from control_plane import limits, registry_keys
from control_plane.cell_rules import first_cells
from control_plane.errors import ControlPlaneError, PlanChangedError, RefusedError
from control_plane.load import Load, LoadError, parse
from control_plane.move_record import Burial
from control_plane.rebalancer import Answers, Bounds, MoveResult, Rebalancer
from control_plane.rebalancing import Resident
from control_plane.registry import Registry
from control_plane.registry_records import Partner
from control_plane.settings import Settings
from router import directory
from stores.memory_store import MemoryBook, MemoryStore

COUNT = 12
FAST = Bounds(per_hour=limits.REBALANCE_MOVES_PER_HOUR_MAX)


class Mover:
    """Moves partners by a word in the registry; a move takes a turn of the loop or two, or until it is let go."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.moves: list[str] = []
        self.at_once = 0
        self.most_at_once = 0
        self.fails: Counter[str] = Counter()
        self.pause_ms: int | None = 80
        self.gate: asyncio.Event | None = None

    async def move(self, partner_id: str, to_cell: str, who: str) -> MoveResult:
        assert who.startswith("rebalance ")
        self.moves.append(partner_id)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0)
            if self.gate is not None:
                await self.gate.wait()
            if self.fails[partner_id]:
                self.fails[partner_id] -= 1
                return MoveResult(self.pause_ms, "the target is full")
            self.world.put(partner_id, to_cell)
            return MoveResult(self.pause_ms)
        finally:
            self.at_once -= 1


class World:
    """A registry that outlives the control planes over it, and what is observed."""

    def __init__(self) -> None:
        self.book = MemoryBook()
        self.registry: Registry
        self.now_ms = 10_000_000
        self.clock_jump_ms = 0
        self.seen = Answers(0, 0)
        self.blind = False
        self.mover = Mover(self)

    async def open(self, *, new: bool = False) -> Rebalancer:
        self.registry = await Registry.open(MemoryStore(self.book), "here", audit_key=b"k" * 32, new=new)
        return Rebalancer(
            self.registry,
            self.mover,
            self,
            now_ms=lambda: self.now_ms + self.clock_jump_ms,
            monotonic_ms=lambda: self.now_ms,
        )

    async def answers(self) -> Answers:
        if self.blind:
            raise LoadError("no router tells")
        return self.seen

    async def residents(self) -> list[Resident]:
        return [Resident(one.id, one.cell, 1.0, 1_000) for one in self.registry.partners()]

    def put(self, partner_id: str, cell: str) -> None:
        self.registry._held.partners[partner_id] = replace(self.registry.partner(partner_id), cell=cell)

    def places(self) -> dict[str, str]:
        return {one.id: one.cell for one in self.registry.partners()}

    def homes(self) -> dict[str, str | None]:
        cells = [directory.Cell(name=f"cell-{number}", host="h", port=1) for number in (0, 1)]
        return {name: directory.rendezvous(name, cells) for name in self.places()}

    async def steps(self, run: Rebalancer, count: int = 40) -> dict[str, Any]:
        for _ in range(count):
            await run.work()
            for _ in range(4):
                await asyncio.sleep(0)
            self.now_ms += limits.REBALANCE_RETRY_DELAY_MS
        return await run.status()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    await made.open(new=True)
    settings = Settings(data_folder=Path("/nowhere"), cells=2)
    await made.registry.write_cells(first_cells(settings, "now"))
    for number in range(COUNT):
        row = Partner(
            f"p{number}", "P", "onboarding", "test", "cell-0", 1, 1, 1, "2026-11-22", 1, "2026-11-22T00:00:00Z"
        )
        await made.registry.begin_onboarding(row, "ann")
        await made.registry.activate(row.id, "ann")
    yield made
    await made.registry.close()


async def test_everybody_is_moved_home_a_few_at_a_time(world: World) -> None:
    run = await world.open()
    planned = await run.plan("hash", FAST)
    assert 0 < len(planned.moves) < COUNT
    await run.apply("hash", FAST, "ann")
    world.mover.gate = asyncio.Event()
    assert (await world.steps(run, 5))["counts"]["moving"] == limits.REBALANCE_MOVES_AT_ONCE_DEFAULT
    world.mover.gate.set()
    done = await world.steps(run)
    assert world.places() == world.homes()
    assert world.mover.most_at_once == limits.REBALANCE_MOVES_AT_ONCE_DEFAULT
    assert done["run"]["state"] == "done"
    assert done["counts"]["done"] == len(planned.moves) == len(world.mover.moves)
    assert done["pause_ms"]["max"] == 80
    assert (await run.plan("hash", FAST)).pause_ms == 80, "what was seen is expected"
    await run.apply("hash", FAST, "ann")
    assert (await world.steps(run, 2))["run"]["state"] == "done", "a run of no moves is done at once"


async def test_what_is_begun_is_shown_and_only_the_plan_that_was_seen_where_one_is_named(world: World) -> None:
    run = await world.open()
    seen = await run.plan("hash", FAST)
    world.put(seen.moves[0].partner_id, seen.moves[0].to_cell)
    with pytest.raises(PlanChangedError, match=f"is {(await run.plan('hash', FAST)).id}, not {seen.id}"):
        await run.apply("hash", FAST, "ann", seen.id)
    assert (await run.status())["run"] is None
    now = await run.plan("hash", Bounds(per_hour=1))
    begun = await run.apply("hash", FAST, "ann", now.id)
    assert (begun["plan"]["id"], begun["plan_id"]) == (now.id, now.id)
    assert len(begun["plan"]["moves"]) == len(seen.moves) - 1
    assert (await run.status())["plan_id"] == now.id


async def test_a_run_is_gone_on_with_only_by_the_name_of_its_own_plan(world: World) -> None:
    run = await world.open()
    begun = await run.apply("hash", FAST, "ann")
    await world.steps(run, 1)
    await run.pause("ann")
    now = await run.plan("hash", FAST)
    assert now.id != begun["plan_id"], "some have moved"
    with pytest.raises(PlanChangedError, match="is paused"):
        await run.apply("hash", FAST, "ann", now.id)
    assert (await run.status())["run"]["state"] == "paused"
    resumed = await (await world.open()).apply("hash", FAST, "ann", begun["plan_id"])
    assert (resumed["plan"], resumed["plan_id"]) == (None, begun["plan_id"])


async def test_a_run_that_goes_on_takes_the_bounds_that_are_named(world: World) -> None:
    run = await world.open()
    await run.apply("hash", Bounds(at_once=1, per_hour=3, pause_budget_ms=400), "ann")
    world.mover.gate = asyncio.Event()
    assert (await world.steps(run, 2))["counts"]["moving"] == 1
    await run.pause("ann")
    resumed = await run.apply("hash", Bounds(per_hour=99, pause_budget_ms=60), "bob")
    taken = {"at_once": 1, "per_hour": 99, "pause_budget_ms": 60}
    assert {name: resumed["run"][name] for name in taken} == taken
    entry = [one async for one in world.registry.audit_log()][-1]
    assert (entry.who, entry.what) == ("bob", "rebalance_resumed")
    assert (entry.detail["run"], "at_once" in entry.detail) == (resumed["run"]["id"], False)
    assert (entry.detail["per_hour"], entry.detail["pause_budget_ms"]) == ([3, 99], [400, 60])
    first = world.mover.moves[0]
    world.mover.fails[first] = 1
    await run.aclose()
    world.mover.gate.set()
    run = await world.open()  # they outlive the control plane
    done = await world.steps(run)
    assert (done["run"]["state"], world.mover.most_at_once) == ("done", 1)
    assert len(world.mover.moves) > 3
    assert world.mover.moves.count(first) == 2, "once, and once by the next control plane: 80 ms are over the budget"
    assert [step["partner_id"] for step in done["failed"]] == [first]


async def test_a_run_that_begins_says_its_bounds(world: World) -> None:
    await (await world.open()).apply("hash", Bounds(per_hour=7), "ann")
    entry = [one async for one in world.registry.audit_log()][-1]
    bounds = {name: entry.detail[name] for name in ("at_once", "per_hour", "pause_budget_ms")}
    defaults = (limits.REBALANCE_MOVES_AT_ONCE_DEFAULT, limits.REBALANCE_PAUSE_BUDGET_MS_DEFAULT)
    assert bounds == {"at_once": defaults[0], "per_hour": 7, "pause_budget_ms": defaults[1]}


async def test_no_more_moves_an_hour_than_allowed(world: World) -> None:
    run = await world.open()
    await run.apply("hash", Bounds(per_hour=2), "ann")
    await world.steps(run, 20)
    assert len(world.mover.moves) == 2
    world.now_ms += 3_600_000
    await world.steps(run, 20)
    assert len(world.mover.moves) == 4


@pytest.mark.parametrize(("jump_ms", "moves"), [(-3_600_000, 2), (3_600_000, 4)])
async def test_a_clock_that_jumps_costs_an_hour_s_moves_at_most(world: World, jump_ms: int, moves: int) -> None:
    run = await world.open()
    await run.apply("hash", Bounds(per_hour=2), "ann")
    await world.steps(run, 20)
    world.clock_jump_ms = jump_ms
    await world.steps(run, 20)
    assert len(world.mover.moves) == moves
    world.now_ms += 2 * 3_600_000
    await world.steps(run, 20)
    assert len(world.mover.moves) == moves + 2


async def test_whom_a_failed_move_paused_too_long_is_left_alone(world: World) -> None:
    run = await world.open()
    first, second = (move.partner_id for move in (await run.plan("hash", FAST)).moves[:2])
    world.mover.fails[first] = 1
    world.mover.pause_ms = limits.REBALANCE_PAUSE_BUDGET_MS_DEFAULT + 1
    await run.apply("hash", FAST, "ann")
    done = await world.steps(run)
    assert world.mover.moves.count(first) == 1
    assert world.mover.moves.count(second) == 1
    assert [step["partner_id"] for step in done["failed"]] == [first]
    assert done["failed"][0]["error"] == "the target is full"
    assert done["over_budget"] == done["steps"]


async def test_a_pause_that_is_not_known_is_counted_as_that_and_never_as_none(world: World) -> None:
    run = await world.open()
    first = (await run.plan("hash", FAST)).moves[0].partner_id
    world.mover.fails[first] = 1
    world.mover.pause_ms = None
    await run.apply("hash", FAST, "ann")
    world.mover.gate = asyncio.Event()
    assert (await world.steps(run, 2))["pause_ms"]["unknown"] == 0, "they are under way"
    world.mover.gate.set()
    done = await world.steps(run)
    assert done["pause_ms"] == {"median": None, "p99": None, "max": None, "unknown": done["steps"]}
    assert done["over_budget"] == 0
    assert world.mover.moves.count(first) == 1, "it may have been over the budget"
    assert (await run.plan("hash", FAST)).pause_ms == limits.REBALANCE_PAUSE_MS_EXPECTED


async def test_of_several_attempts_the_longest_pause_is_told(world: World) -> None:
    run = await world.open()
    await run.apply("hash", Bounds(at_once=1, per_hour=1_000), "ann")
    world.mover.gate = asyncio.Event()
    await world.steps(run, 1)
    (first,) = world.mover.moves
    world.mover.fails[first] = 1
    world.mover.pause_ms = 200
    world.mover.gate.set()
    await world.steps(run, 1)
    world.mover.pause_ms = 10
    done = await world.steps(run)
    assert world.mover.moves.count(first) == 2
    assert (done["pause_ms"]["max"], done["pause_ms"]["median"], done["pause_ms"]["unknown"]) == (200, 10, 0)


async def test_a_failed_move_is_tried_again_but_not_for_ever(world: World) -> None:
    run = await world.open()
    first, second = (move.partner_id for move in (await run.plan("hash", FAST)).moves[:2])
    world.mover.fails[first] = 1
    world.mover.fails[second] = 99
    await run.apply("hash", FAST, "ann")
    done = await world.steps(run)
    if done["run"]["state"] == "stopped":  # the last ones left were those that fail
        await run.apply("hash", FAST, "ann")
        done = await world.steps(run)
    assert world.mover.moves.count(first) == 2
    assert world.mover.moves.count(second) == limits.REBALANCE_ATTEMPTS_MAX
    assert [step["partner_id"] for step in done["failed"]] == [second]
    assert done["run"]["state"] == "done"


async def test_it_stops_by_itself_when_moves_fail_in_a_row(world: World) -> None:
    run = await world.open()
    for name in world.places():
        world.mover.fails[name] = 99
    await run.apply("hash", Bounds(at_once=1, per_hour=1_000), "ann")
    stopped = await world.steps(run)
    assert stopped["run"]["state"] == "stopped"
    assert stopped["run"]["why"] == f"{limits.REBALANCE_FAILURES_IN_ROW_MAX} moves in a row failed"
    assert len(world.mover.moves) == limits.REBALANCE_FAILURES_IN_ROW_MAX
    world.mover.fails.clear()
    await run.apply("hash", FAST, "ann")
    assert (await world.steps(run))["run"]["state"] == "done"
    assert world.places() == world.homes()


async def test_it_stops_by_itself_when_errors_rise(world: World) -> None:
    run = await world.open()
    await run.apply("hash", Bounds(at_once=1, per_hour=1_000), "ann")
    world.seen = Answers(1_000, 3)
    await world.steps(run, 1)
    world.seen = Answers(1_200, 3 + limits.REBALANCE_ERRORS_MIN)
    stopped = await world.steps(run, 3)
    assert stopped["run"]["state"] == "stopped"
    assert stopped["run"]["why"].startswith("5 of 200 answers")
    assert len(world.mover.moves) <= 2


async def test_few_errors_among_many_answers_stop_nothing(world: World) -> None:
    run = await world.open()
    await run.apply("hash", FAST, "ann")
    await world.steps(run, 1)
    world.seen = Answers(100_000, limits.REBALANCE_ERRORS_MIN)
    assert (await world.steps(run))["run"]["state"] == "done"


async def test_without_eyes_it_goes_on_and_failed_moves_still_stop_it(world: World) -> None:
    run = await world.open()
    world.blind = True
    await run.apply("hash", FAST, "ann")
    assert (await world.steps(run))["run"]["state"] == "done"


async def test_paused_it_begins_none_and_goes_on_when_told(world: World) -> None:
    run = await world.open()
    world.mover.gate = asyncio.Event()
    await run.apply("hash", FAST, "ann")
    await world.steps(run, 2)
    await run.pause("ann")
    world.mover.gate.set()
    paused = await world.steps(run, 5)
    assert (paused["counts"]["done"], paused["counts"]["moving"]) == (2, 0), "what was begun is ended"
    assert paused["run"]["state"] == "paused"
    with pytest.raises(RefusedError, match="by hash is paused"):
        await run.apply("load", FAST, "ann")
    await run.apply("hash", FAST, "ann")
    assert (await world.steps(run))["run"]["state"] == "done"


async def test_aborted_it_ends_what_was_begun_and_another_may_follow(world: World) -> None:
    run = await world.open()
    world.mover.gate = asyncio.Event()
    await run.apply("hash", FAST, "ann")
    with pytest.raises(RefusedError, match="runs already"):
        await run.apply("hash", FAST, "ann")
    await world.steps(run, 2)
    await run.abort("ann")
    with pytest.raises(RefusedError, match="still under way"):
        await run.apply("hash", FAST, "ann")
    world.mover.gate.set()
    ended = await world.steps(run, 5)
    assert (ended["run"]["state"], ended["counts"]["done"]) == ("aborted", 2)
    for again in (run.abort, run.pause):
        with pytest.raises(RefusedError, match="no rebalancing is under way"):
            await again("ann")
    await run.apply("hash", FAST, "ann")
    assert (await world.steps(run))["run"]["state"] == "done"
    assert world.places() == world.homes()


async def test_a_step_whose_ground_changed_is_left_out(world: World) -> None:
    run = await world.open()
    first, second = (move.partner_id for move in (await run.plan("hash", FAST)).moves[:2])
    await run.apply("hash", FAST, "ann")
    world.put(first, "cell-1")
    done = await world.steps(run)
    assert done["counts"]["skipped"] == 1
    assert first not in world.mover.moves
    assert second in world.mover.moves
    world.put(second, "cell-0")
    await run.apply("hash", FAST, "ann")
    cell = world.registry.cell("cell-1")
    await world.registry.write_cells([replace(cell, state="draining", weight=0.0)])
    before = len(world.mover.moves)
    assert (await world.steps(run))["counts"]["skipped"] == 1
    assert len(world.mover.moves) == before, "nobody moves to a cell that is being drained"


async def test_who_can_t_go_back_before_a_dead_cell_was_told_is_left_out(world: World) -> None:
    run = await world.open()
    planned = [move.partner_id for move in (await run.plan("hash", FAST)).moves]
    for name in planned:
        burial = Burial(name, "cell-1", "move_1", "cell-0", "t", "", ())
        world.registry._held.burials["cell-1", name] = burial
    await run.apply("hash", FAST, "ann")
    done = await world.steps(run)
    assert (done["run"]["state"], done["counts"]["skipped"]) == ("done", len(planned)), "and nothing stops the run"
    assert not world.mover.moves


async def test_a_mover_that_fails_in_an_unknown_way_is_asked_again(world: World) -> None:
    run = await world.open()
    move, asked = world.mover.move, 0

    async def lost_once(partner_id: str, to_cell: str, who: str) -> MoveResult:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise ControlPlaneError("the door gave no answer")
        return await move(partner_id, to_cell, who)

    world.mover.move = lost_once  # type: ignore[method-assign]
    await run.apply("hash", FAST, "ann")
    assert (await world.steps(run))["run"]["state"] == "done"
    assert world.places() == world.homes()


async def test_closed_it_leaves_moves_to_the_next_one(world: World) -> None:
    run = await world.open()
    world.mover.gate = asyncio.Event()
    await run.apply("hash", FAST, "ann")
    await world.steps(run, 2)
    await run.aclose()
    await world.steps(run, 5)
    assert world.mover.at_once == 0
    assert len(world.mover.moves) == 2, "none is begun any more"
    world.mover.gate.set()
    assert (await world.steps(await world.open()))["run"]["state"] == "done"


class Crash(BaseException):
    """The control plane is killed here."""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("write", range(1, 18))
async def test_it_resumes_after_a_crash_at_any_write(
    world: World, write: int, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REBALANCE_STEPS_PER_COMMIT_MAX", 3)
    run = await world.open()
    write_rows, written = world.registry.write_rows, 0

    async def dying(*arguments: Any, **named: Any) -> None:
        nonlocal written
        written += 1
        if written > write:
            raise Crash  # it is dead: nothing is written any more
        if written == write and when == "before":
            written += 1
            raise Crash
        await write_rows(*arguments, **named)
        if written == write:
            written += 1
            raise Crash

    world.registry.write_rows = dying  # type: ignore[method-assign]
    ideal = {name for name, home in world.homes().items() if home != "cell-0"}
    crashed = False
    try:
        await run.apply("hash", FAST, "ann")
        crashed = (await _until_end(world, run)) is None
    except Crash:
        crashed = True
    assert crashed
    places = world.places()
    run._tasks.clear()
    run = await world.open()
    for name, cell in places.items():
        world.put(name, cell)  # what a mover does outlives the control plane
    status = await run.status()
    if status["run"] is None:
        await run.apply("hash", FAST, "ann")  # its writing down was interrupted: nothing of it counts
    done = await _until_end(world, run)
    assert done is not None
    assert done["run"]["state"] == "done"
    assert done["counts"]["waiting"] == done["counts"]["moving"] == 0
    assert world.places() == world.homes()
    assert set(world.mover.moves) == ideal, "nobody else ever moved"
    assert max(Counter(world.mover.moves).values()) <= 2, "once, and once again where its end was not written down"


async def _until_end(world: World, run: Rebalancer) -> dict[str, Any] | None:
    """Work until the run is done; None where the control plane died on the way."""
    for _ in range(60):
        try:
            await run.work()
            for _ in range(4):
                await asyncio.sleep(0)
        except Crash:
            return None
        if any(step.state == "moving" for step in run._steps.values()) and not run._tasks:
            return None  # a move's own task died
        world.now_ms += limits.REBALANCE_RETRY_DELAY_MS
        if run._run is not None and run._run.state == "done":
            return await run.status()
    return None


# What is seen of the load.

METRICS = """
# TYPE bulkhead_router_requests counter
bulkhead_router_requests_total{{method="POST",route="/v1/payments",status="201"}} {good}
bulkhead_router_requests_total{{method="POST",route="/v1/payments",status="503"}} {bad}
# TYPE bulkhead_router_partner_requests counter
bulkhead_router_partner_requests_total{{partner="p1",outcome="2xx"}} {good}
"""


def test_a_router_s_metrics_are_read() -> None:
    counts = parse(METRICS.format(good=7, bad=2))
    assert (counts.answers, counts.server_errors, dict(counts.of_partners)) == (9, 2, {"p1": 7})
    with pytest.raises(LoadError, match="can't be read"):
        parse("bulkhead_router_requests_total{ 1")


async def test_load_is_seen_over_time_and_over_a_router_s_restart(world: World, tmp_path: Path) -> None:
    from control_plane.data_folder import DataFolder  # noqa: PLC0415

    told = {"a": METRICS.format(good=10, bad=0), "b": METRICS.format(good=100, bad=0)}
    now = 0.0

    async def fetch(router: str) -> str:
        if not told[router]:
            raise OSError("refused")
        return told[router]

    folder = DataFolder(tmp_path)
    book = folder.cell_folder("cell-0") / "partners" / "p1.sqlite"
    book.parent.mkdir(parents=True)
    book.write_bytes(b"x" * 5_000)
    load = Load(world.registry, folder, ["a", "b"], fetch, lambda: now)
    assert await load.answers() == Answers(0, 0)
    await load.remember()
    told["a"] = METRICS.format(good=30, bad=5)
    told["b"] = METRICS.format(good=40, bad=0)  # it was started again
    now = 60.0
    residents = {one.id: one for one in await load.residents()}
    assert residents["p1"] == Resident("p1", "cell-0", 1.0, 5_000)
    assert residents["p2"] == Resident("p2", "cell-0", 0.0, 0)
    assert await load.answers() == Answers(65, 5)
    told["a"] = ""
    assert await load.answers() == Answers(65, 5), "one is enough"
    told["b"] = ""
    with pytest.raises(LoadError, match="no router"):
        await load.answers()
    assert len(await load.residents()) == COUNT, "a plan is made all the same"
    assert registry_keys.REBALANCE == ("rebalance",)
