"""Plans: their properties for any cells and partners, and a few cases by hand."""

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from control_plane import limits
from control_plane.rebalancing import By, Plan, Resident, name_of, plan
from router.directory import Cell, rendezvous


def cell(name: str, weight: float = 1.0) -> Cell:
    return Cell(name=name, weight=weight, host="h", port=1)


def after(done: Plan, residents: list[Resident]) -> list[Resident]:
    goals = {move.partner_id: move.to_cell for move in done.moves}
    return [replace(one, cell=goals.get(one.id, one.cell)) for one in residents]


@st.composite
def installations(draw: st.DrawFn) -> tuple[list[Cell], list[Resident]]:
    count = draw(st.integers(1, 6))
    weights = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.0, 3.0]), min_size=count, max_size=count))
    cells = [cell(f"cell-{number}", weight) for number, weight in enumerate(weights)]
    if not any(weights):
        cells[0] = cell("cell-0")
    places = st.sampled_from([one.name for one in cells])
    loads = st.sampled_from([0.0, 0.1, 1.0, 1.0, 50.0])
    sizes = st.sampled_from([0, 1_000, 1_000, 10**6, 10**9])
    ids = draw(st.sets(st.integers(0, 9_999), max_size=40))
    return cells, [Resident(f"p{number}", draw(places), draw(loads), draw(sizes)) for number in sorted(ids)]


BY: list[By] = ["hash", "load", "drain"]


@pytest.mark.parametrize("by", BY)
@given(installations())
@example(([cell(f"cell-{n}", w) for n, w in enumerate((0.5, 3.0, 0.5, 0.5, 1.0))], [Resident("p0", "cell-0", 0.0, 0)]))
@settings(max_examples=150, deadline=None)
def test_a_plan_is_sound(by: By, installation: tuple[list[Cell], list[Resident]]) -> None:
    cells, residents = installation
    done = plan(by, cells, residents)
    moved = [move.partner_id for move in done.moves]
    assert len(set(moved)) == len(moved), "nobody moves twice"
    places = {one.id: one for one in residents}
    takes = {one.name for one in cells if one.weight > 0}
    for move in done.moves:
        assert move.from_cell == places[move.partner_id].cell != move.to_cell
        assert move.to_cell in takes, "nobody moves to where nobody goes"
    result = after(done, residents)
    assert {one.cell for one in result} <= takes, "a drained cell ends empty"
    assert plan(by, cells, result).moves == (), "the plan of its result is empty"
    assert done.bytes == sum(places[name].bytes for name in moved)
    for index, people in enumerate((residents, result)):
        for load in done.cells:
            there = [one for one in people if one.cell == load.cell]
            assert load.partners[index] == len(there)
            assert load.bytes[index] == sum(one.bytes for one in there)


@given(installations())
def test_by_hash_no_override_is_left(installation: tuple[list[Cell], list[Resident]]) -> None:
    cells, residents = installation
    done = plan("hash", cells, residents)
    assert done.overrides[1] == 0
    assert done.overrides[0] == len(done.moves)
    assert all(one.cell == rendezvous(one.id, cells) for one in after(done, residents))


@given(installations(), st.sampled_from([0.5, 1.0, 2.0]))
def test_a_cell_that_comes_gets_moves_and_nobody_else_does(
    installation: tuple[list[Cell], list[Resident]], weight: float
) -> None:
    cells, residents = installation
    settled = after(plan("hash", cells, residents), residents)
    assert {move.to_cell for move in plan("hash", [*cells, cell("new", weight)], settled).moves} <= {"new"}


@given(installations())
def test_by_load_no_cell_gets_worse_than_the_worst_was(installation: tuple[list[Cell], list[Resident]]) -> None:
    cells, residents = installation
    cells = [one for one in cells if one.weight > 0]
    residents = [one for one in residents if one.cell in {one.name for one in cells}]
    done = plan("load", cells, residents)
    rates, sizes = sum(one.requests_per_second for one in residents), sum(one.bytes for one in residents)

    def distance(index: int) -> float:
        return sum(
            ((load.requests_per_second[index] / rates if rates else 0) - load.share) ** 2 / load.share
            + ((load.bytes[index] / sizes if sizes else 0) - load.share) ** 2 / load.share
            for load in done.cells
        )

    if rates and sizes:
        assert distance(1) <= distance(0) + 1e-9


@pytest.mark.parametrize("count", [3, 8])
def test_adding_the_nth_cell_moves_about_one_nth(count: int) -> None:
    cells = [cell(f"cell-{number}") for number in range(count)]
    residents = [Resident(f"p{number}", rendezvous(f"p{number}", cells) or "") for number in range(5_000)]
    moves = plan("hash", [*cells, cell("new")], residents).moves
    ideal = len(residents) / (count + 1)
    assert 0.9 * ideal < len(moves) < 1.1 * ideal
    assert {move.to_cell for move in moves} == {"new"}


def test_drain_moves_nobody_who_is_elsewhere() -> None:
    cells = [cell("a", 0), cell("b"), cell("c")]
    residents = [Resident(f"p{number}", "abc"[number % 3]) for number in range(30)]
    moves = plan("drain", cells, residents).moves
    assert {move.from_cell for move in moves} == {"a"}
    assert len(moves) == 10


def test_by_load_the_busy_ones_are_spread_with_few_moves() -> None:
    cells = [cell(name) for name in "abcd"]
    busy = [Resident(f"busy{number}", "a", 100.0, 1_000) for number in range(4)]
    quiet = [Resident(f"q{number}", "abcd"[number % 4], 0.1, 1_000) for number in range(40)]
    done = plan("load", cells, busy + quiet)
    rates = {load.cell: load.requests_per_second[1] for load in done.cells}
    assert max(rates.values()) < 1.1 * sum(rates.values()) / 4
    assert sum(move.partner_id.startswith("busy") for move in done.moves) == 3
    assert len(done.moves) <= 6


def test_by_load_weights_are_heeded() -> None:
    cells = [cell("small", 1), cell("large", 3)]
    residents = [Resident(f"p{number}", "small", 1.0, 100) for number in range(100)]
    done = plan("load", cells, residents)
    assert {load.cell: round(load.partners[1], -1) for load in done.cells} in (
        {"small": 20, "large": 80},
        {"small": 30, "large": 70},
    )
    assert done.notes == ()


def test_where_no_load_is_known_it_says_so_and_evens_out_partners() -> None:
    done = plan("load", [cell("a"), cell("b")], [Resident(f"p{number}", "a") for number in range(10)])
    assert [load.partners[1] for load in done.cells] == [5, 5]
    assert "the number of partners" in done.notes[0]
    one_known = plan("load", [cell("a"), cell("b")], [Resident(f"p{number}", "a", 0.0, 5) for number in range(10)])
    assert "requests" in one_known.notes[0]


def test_a_plan_says_what_it_costs() -> None:
    residents = [Resident(f"p{number}", "a", 1.0, 1_000 * number) for number in range(1, 11)]
    done = plan("drain", [cell("a", 0), cell("b")], residents, moves_per_hour=100, pause_ms=80)
    assert (len(done.moves), done.bytes, done.pause_ms, done.duration_s) == (10, 55_000, 80, 10)
    slow = plan("drain", [cell("a", 0), cell("b")], residents, moves_per_hour=4)
    assert slow.duration_s == 2 * 3_600 + 10, "four at once, and after an hour, and after another"
    assert [move.bytes for move in done.moves] == sorted(move.bytes for move in done.moves)


def test_many_partners_are_planned_in_seconds() -> None:
    cells = [cell(f"cell-{number}") for number in range(16)]
    residents = [Resident(f"p{number}", "cell-0", 1 + number % 7, 10 + number % 11) for number in range(1_000)]
    done = plan("load", cells, residents)
    assert (
        max(load.requests_per_second[1] for load in done.cells)
        <= (1 + 2 * limits.REBALANCE_LOAD_TOLERANCE) * 4_000 / 16
    )


def test_a_plan_s_name_is_of_who_goes_where_and_why_alone() -> None:
    cells = [cell("cell-0"), cell("cell-1")]
    residents = [Resident(f"p{number}", "cell-0", 1.0, number) for number in range(40)]
    done = plan("hash", cells, residents)
    assert len(done.id) == limits.REBALANCE_PLAN_ID_CHARACTERS
    assert done.id == name_of("hash", reversed([(one.partner_id, one.from_cell, one.to_cell) for one in done.moves]))
    grown = [replace(one, bytes=1_000 - one.bytes, requests_per_second=9.0) for one in residents]
    assert plan("hash", cells, grown, moves_per_hour=2, pause_ms=9).id == done.id, (
        "sizes, load and bounds are not in it"
    )
    gone = done.moves[0].partner_id
    assert plan("hash", cells, [one for one in residents if one.id != gone]).id != done.id
    assert name_of("drain", [(one.partner_id, one.from_cell, one.to_cell) for one in done.moves]) != done.id
