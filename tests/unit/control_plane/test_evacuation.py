"""Who is evacuated, where to, and when by itself: over a real registry, with stand-ins for doors and moves."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from control_plane import registry_moves
from control_plane.burials import Burials
from control_plane.door_moves import DoorMoves
from control_plane.errors import DoorError, RefusedError
from control_plane.evacuation import Evacuation
from control_plane.move_record import Burial, Move
from control_plane.moves import Moves
from control_plane.partners import to_profile
from control_plane.registry import Registry
from control_plane.registry_records import Cell, Partner
from stores.sqlite_shelf import SqliteShelf

CELLS = ("cell-0", "cell-1", "cell-2")


class Doors:
    def __init__(self) -> None:
        self.dead: set[str] = set()

    async def cell_status(self, cell: str) -> None:
        if cell in self.dead:
            raise DoorError(f"{cell} does not answer")


class Fleet:
    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def drain(self, name: str, who: str, *, dry_run: bool) -> None:
        assert not dry_run
        cell = replace(self._registry.cell(name), state="draining", weight=0.0)
        await self._registry.write_cells([cell], who, "cell_draining", cell=name)


class Waiting(Moves):
    """Begins nothing: what was written down is what is looked at."""

    async def resume(self) -> None:
        return None


class Ground:
    def __init__(self, registry: Registry, store: str, after_s: int = 0) -> None:
        self.registry = registry
        self.doors = Doors()
        self.now = 0.0
        self.places: dict[str, dict[str, Any]] = {
            cell: {"store": store, "cluster_file": "one", "folder": cell, "path": [cell]} for cell in CELLS
        }
        moves = Waiting(registry, None, None, None, to_profile, lambda: self.places)  # type: ignore[arg-type]
        self.evacuation = Evacuation(
            registry,
            Fleet(registry),  # type: ignore[arg-type]
            moves,
            self.doors,  # type: ignore[arg-type]
            lambda: self.places,
            after_s=after_s,
            monotonic=lambda: self.now,
        )


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    shelf = SqliteShelf(tmp_path)
    await shelf.create("control")
    made = await Registry.open(await shelf.open("control"), "here", audit_key=b"k" * 32, new=True)
    rows = [Cell(name, slot, "active", 1.0, "h", 1, 1, 1, 1, "", "") for slot, name in enumerate(CELLS)]
    await made.write_cells(rows, "ann", "cells_written")
    for number in range(12):
        partner = Partner(f"p{number}", "p", "onboarding", "test", CELLS[number % 3], 1, 1, 1, "2026-11-22", 1, "")
        await made.begin_onboarding(partner, "ann")
        await made.activate(partner.id, "ann")
    yield made
    await made.close()


async def test_all_of_a_dead_cell_go_to_the_others_in_one_commit(registry: Registry) -> None:
    ground = Ground(registry, "fdb")
    ground.doors.dead.add("cell-1")
    told = await ground.evacuation.evacuate("cell-1", "ann", force=False, dry_run=False)
    assert told["partners"] == 4
    moves = registry.moves()
    assert {move.partner_id: move.target for move in moves} == told["targets"]
    assert {move.way for move in moves} == {"evacuate"}
    assert {move.source for move in moves} == {"cell-1"}
    assert "cell-1" not in {move.target for move in moves}
    assert registry.cell("cell-1").weight == 0


async def test_nobody_goes_to_a_cell_that_routers_do_not_know_yet(registry: Registry) -> None:
    ground = Ground(registry, "fdb")
    ground.doors.dead.add("cell-1")
    await registry.write_cells([replace(registry.cell("cell-2"), state="joining")], "ann", "cell_joining")
    del ground.places["cell-2"]  # as `up` gives them
    told = await ground.evacuation.evacuate("cell-1", "ann", force=False, dry_run=True)
    assert set(told["targets"].values()) == {"cell-0"}


async def test_a_dry_run_writes_nothing(registry: Registry) -> None:
    ground = Ground(registry, "fdb")
    ground.doors.dead.add("cell-1")
    assert (await ground.evacuation.evacuate("cell-1", "ann", force=False, dry_run=True))["partners"] == 4
    assert not registry.moves()
    assert registry.cell("cell-1").weight == 1


async def test_a_cell_that_answers_is_left_alone_unless_it_is_forced(registry: Registry) -> None:
    ground = Ground(registry, "fdb")
    with pytest.raises(RefusedError, match="cell-1 answers"):
        await ground.evacuation.evacuate("cell-1", "ann", force=False, dry_run=False)
    assert (await ground.evacuation.evacuate("cell-1", "ann", force=True, dry_run=False))["partners"] == 4


async def test_books_in_files_can_be_opened_by_nobody_else(registry: Registry) -> None:
    ground = Ground(registry, "sqlite")
    ground.doors.dead.add("cell-1")
    with pytest.raises(RefusedError, match="no other cell can open the book of p1"):
        await ground.evacuation.evacuate("cell-1", "ann", force=False, dry_run=False)
    assert registry.cell("cell-1").weight == 1


async def test_those_that_can_be_are_taken_over_and_the_others_are_named(registry: Registry) -> None:
    ground = Ground(registry, "fdb")
    ground.doors.dead.update({"cell-1", "cell-2"})
    # p1 was taken over from cell-0, which is the only other one that answers and was not told.
    await registry_moves.end_move(registry, await arrive(registry, "p0", "cell-1"), "partner_moved")
    await registry.begin_onboarding(
        Partner("new", "p", "onboarding", "test", "cell-1", 1, 1, 1, "2026-11-22", 1, ""), "ann"
    )
    await registry_moves.begin_move(registry, Move("move_1", "p4", "cell-1", "cell-0", "t", "copying", 1, "ann", ""))
    for dry_run in (True, False):
        told = await ground.evacuation.evacuate("cell-1", "ann", force=False, dry_run=dry_run)
        assert told["targets"] == {"p1": "cell-0", "p7": "cell-0", "p10": "cell-0"}
        assert told["staying"] == {
            "new": "it is still being onboarded",
            "p0": "no other cell can open the book of p0",
            "p4": "its book is being copied, and only cell-1 can go on with that",
        }
    assert {move.partner_id for move in registry.moves() if move.way == "evacuate"} == {"p1", "p7", "p10"}
    assert registry.cell("cell-1").weight == 0


async def test_by_itself_it_takes_those_that_can_be_and_says_once_who_stays(registry: Registry) -> None:
    ground = Ground(registry, "fdb", after_s=5)
    ground.doors.dead.update({"cell-1", "cell-2"})
    await registry_moves.end_move(registry, await arrive(registry, "p0", "cell-1"), "partner_moved")
    with structlog.testing.capture_logs() as logs:
        for now in (0.0, 4.0, 8.0, 12.0, 16.0):
            ground.now = now
            await ground.evacuation.watch()
    said = [(entry["event"], entry["cell"]) for entry in logs if entry["log_level"] in {"warning", "error"}]
    assert said == [
        ("cell_evacuated", "cell-1"),
        ("partners_not_evacuated", "cell-1"),
        ("cell_evacuated", "cell-2"),
    ]
    assert {move.partner_id for move in registry.moves()} == {f"p{number}" for number in (1, 4, 7, 10, 2, 5, 8, 11)}


async def test_a_move_that_only_the_dead_cell_could_go_on_with_becomes_an_evacuation(registry: Registry) -> None:
    ground = Ground(registry, "fdb")
    ground.doors.dead.add("cell-1")
    leaving = Move("move_1", "p1", "cell-1", "cell-2", "t", "sealing", 3, "ann", "", way="hand_over")
    arriving = Move("move_2", "p0", "cell-0", "cell-1", "t", "copying", 1, "ann", "", way="hand_over")
    await registry_moves.begin_move(registry, leaving)
    await registry_moves.begin_move(registry, arriving)
    await ground.evacuation.evacuate("cell-1", "ann", force=False, dry_run=False)
    found = registry.move("p1")
    assert found is not None
    assert (found.id, found.way, found.state, found.attempt) == ("move_1", "evacuate", "copying", 4)
    assert registry.move("p0") == arriving


async def test_who_was_on_the_way_to_a_cell_that_dies_goes_to_another_with_the_word_of_who_died(
    registry: Registry,
) -> None:
    ground = Ground(registry, "fdb")
    ground.doors.dead.add("cell-1")
    await registry_moves.begin_move(
        registry, Move("move_1", "p0", "cell-0", "cell-1", "t", "sealing", 1, "ann", "", way="evacuate")
    )
    await registry_moves.begin_move(
        registry, Move("move_2", "p3", "cell-0", "cell-1", "t", "copying", 1, "ann", "", way="hand_over")
    )
    told = await ground.evacuation.evacuate("cell-1", "ann", force=False, dry_run=False)
    assert told["targets"].keys() == {"p0", "p1", "p4", "p7", "p10"}
    found = registry.move("p0")
    assert found is not None
    assert (found.source, found.target, found.way, found.state) == ("cell-0", "cell-2", "evacuate", "copying")
    assert found.passed_over == (("cell-1", "move_1"),)
    assert found.token != "t"
    assert not registry.burials(), "nobody is told before it took place"
    left = registry.move("p3")
    assert left is not None
    assert left.id == "move_2"
    # Asked again, nothing is begun.
    again = await ground.evacuation.evacuate("cell-1", "ann", force=False, dry_run=False)
    assert (again["partners"], again["begun"]) == (5, 0)
    assert registry.move("p0") == found


async def test_nobody_is_sent_to_a_cell_that_does_not_answer_either(registry: Registry) -> None:
    ground = Ground(registry, "fdb")
    ground.doors.dead.update({"cell-1", "cell-2"})
    told = await ground.evacuation.evacuate("cell-1", "ann", force=False, dry_run=False)
    assert set(told["targets"].values()) == {"cell-0"}


async def test_a_partner_that_is_erased_or_onboarded_begins_no_evacuation_by_itself(registry: Registry) -> None:
    ground = Ground(registry, "fdb", after_s=5)
    ground.doors.dead.add("cell-1")
    for number in range(1, 12, 3):
        await registry_moves.begin_move(
            registry, Move("move_1", f"p{number}", "cell-1", "cell-2", "t", "sealing", 1, "ann", "", way="evacuate")
        )
    await registry.begin_onboarding(
        Partner("new", "p", "onboarding", "test", "cell-1", 1, 1, 1, "2026-11-22", 1, ""), "ann"
    )
    for now in (0.0, 4.0, 8.0, 12.0):
        ground.now = now
        await ground.evacuation.watch()
    assert registry.cell("cell-1").weight == 1


async def test_by_itself_also_who_was_on_the_way_there(registry: Registry) -> None:
    ground = Ground(registry, "fdb", after_s=5)
    for number in range(1, 12, 3):
        await registry_moves.end_move(registry, await arrive(registry, f"p{number}", "cell-2"), "partner_moved")
    await registry_moves.forget_burials(registry, registry.burials())
    await registry_moves.begin_move(
        registry, Move("move_1", "p0", "cell-0", "cell-1", "t", "copying", 1, "ann", "", way="evacuate")
    )
    ground.doors.dead.add("cell-1")
    for now in (0.0, 4.0, 8.0, 12.0):
        ground.now = now
        await ground.evacuation.watch()
    assert [(move.partner_id, move.target) for move in registry.moves()] == [("p0", "cell-2")]


async def test_by_itself_after_it_was_silent_for_so_long(registry: Registry) -> None:
    ground = Ground(registry, "fdb", after_s=30)
    ground.doors.dead.add("cell-1")
    for now in (0.0, 1.0, 9.0, 17.0, 25.0, 29.0):
        ground.now = now
        await ground.evacuation.watch()
    assert not registry.moves()
    ground.now = 31.0
    await ground.evacuation.watch()
    assert len(registry.moves()) == 4


async def test_silence_that_ended_or_that_this_process_slept_through_counts_for_nothing(registry: Registry) -> None:
    ground = Ground(registry, "fdb", after_s=30)
    ground.doors.dead.add("cell-1")
    for now in (0.0, 8.0, 16.0, 24.0):
        ground.now = now
        await ground.evacuation.watch()
    ground.now = 100.0  # it slept
    await ground.evacuation.watch()
    assert not registry.moves()
    ground.doors.dead.clear()
    for now in (108.0, 116.0, 124.0, 132.0):
        ground.now = now
        await ground.evacuation.watch()
    assert not registry.moves()


async def test_where_all_are_silent_it_is_not_the_cells(registry: Registry) -> None:
    ground = Ground(registry, "fdb", after_s=5)
    ground.doors.dead.update(CELLS)
    for now in (0.0, 4.0, 8.0, 12.0):
        ground.now = now
        await ground.evacuation.watch()
    assert not registry.moves()


async def test_never_by_itself_where_the_settings_say_nothing(registry: Registry) -> None:
    ground = Ground(registry, "fdb")
    ground.doors.dead.add("cell-1")
    for now in (0.0, 5.0, 5_000.0):
        ground.now = now
        await ground.evacuation.watch()
    assert not registry.moves()


async def arrive(registry: Registry, partner_id: str, target: str) -> Move:
    """Write down that an evacuation of a partner came to its end, but for its last row."""
    source = registry.partner(partner_id).cell
    move = Move(f"move_{source}", partner_id, source, target, "t", "sealing", 1, "ann", "", way="evacuate")
    await registry_moves.begin_move(registry, move)
    return await registry_moves.partner_moved(registry, replace(move, state="clearing"))


async def test_who_was_taken_over_is_taken_over_again_whether_or_not_its_first_cell_was_told(
    registry: Registry,
) -> None:
    ground = Ground(registry, "fdb")
    await registry_moves.end_move(registry, await arrive(registry, "p1", "cell-2"), "partner_moved")
    await arrive(registry, "p4", "cell-2")
    ground.doors.dead.update({"cell-1", "cell-2"})
    told = await ground.evacuation.evacuate("cell-2", "ann", force=False, dry_run=False)
    # Not to cell-1, which believes that they are its own.
    assert (told["targets"]["p1"], told["targets"]["p4"]) == ("cell-0", "cell-0")
    assert {burial.partner_id: burial.cell for burial in registry.burials()} == {"p1": "cell-1", "p4": "cell-1"}
    again = registry.move("p4")
    assert again is not None
    assert (again.source, again.target, again.state) == ("cell-2", "cell-0", "copying")


async def test_nobody_goes_where_the_last_word_is_not_known(registry: Registry) -> None:
    await registry_moves.end_move(registry, await arrive(registry, "p1", "cell-2"), "partner_moved")
    back = Move("move_9", "p1", "cell-2", "cell-1", "t", "copying", 1, "ann", "", way="hand_over")
    with pytest.raises(RefusedError, match="cell-1 was not told yet"):
        await registry_moves.begin_move(registry, back)
    await registry_moves.forget_burials(registry, registry.burials())
    assert await registry_moves.begin_move(registry, back) == back


class Listening(DoorMoves):
    """Hears what cells are told; who is dead hears nothing, and a deaf one never ends listening."""

    def __init__(self) -> None:
        self.dead: set[str] = set()
        self.deaf: set[str] = set()
        self.heard: list[tuple[str, str]] = []

    async def bury_moved(self, burial: Burial) -> None:
        if burial.cell in self.deaf:
            await asyncio.Event().wait()
        if burial.cell in self.dead:
            raise DoorError(f"{burial.cell} does not answer")
        self.heard.append((burial.cell, burial.partner_id))


async def test_cells_are_told_once_they_answer_and_one_that_hangs_holds_up_no_other(registry: Registry) -> None:
    for partner_id, target in (("p0", "cell-1"), ("p1", "cell-0"), ("p2", "cell-0")):
        await registry_moves.end_move(registry, await arrive(registry, partner_id, target), "partner_moved")
    doors = Listening()
    doors.deaf.add("cell-0")
    doors.dead.add("cell-1")
    burials = Burials(registry, doors)
    await burials.tell()
    await asyncio.sleep(0.05)
    assert doors.heard == [("cell-2", "p2")]
    doors.dead.clear()
    await burials.tell()
    await asyncio.sleep(0.05)
    assert doors.heard == [("cell-2", "p2"), ("cell-1", "p1")]
    assert [burial.cell for burial in registry.burials()] == ["cell-0"]
    await burials.stop()
    again = Burials(registry, Listening())  # a new control plane, and the cell listens
    await again.tell()
    await asyncio.sleep(0.05)
    assert not registry.burials()


async def test_a_removed_cell_is_told_nothing(registry: Registry) -> None:
    await registry_moves.end_move(registry, await arrive(registry, "p1", "cell-0"), "partner_moved")
    await registry.write_cells([replace(registry.cell("cell-1"), state="removed")], "ann", "cell_removed")
    doors = Listening()
    await Burials(registry, doors).tell()
    await asyncio.sleep(0.05)
    assert not doors.heard
    assert not registry.burials()
