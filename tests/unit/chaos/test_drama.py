"""The demo's victims: three different partners, each in its own cell where there are enough, the same for a seed."""

import pytest

from chaos.checker import Role
from chaos.drama import Timeline, choose, partner_names


def spread(partners: int, cells: int) -> dict[str, str]:
    return {name: f"cell-{number % cells}" for number, name in enumerate(partner_names(partners))}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("partners", "cells"), [(24, 4), (6, 1), (6, 2), (9, 3), (64, 8)])
def test_three_victims_and_at_least_one_cell_in_peace(partners: int, cells: int, seed: int) -> None:
    cast = choose(spread(partners, cells), seed)
    assert len({cast.killed, cast.flooding, cast.hanging}) == 3
    assert len(cast.bystanders) == partners - 3
    assert len(cast.troubled_cells) == max(1, min(3, cells - 1))
    assert cast == choose(spread(partners, cells), seed)
    assert [cast.role(name) for name in (cast.killed, cast.flooding, cast.hanging)] == [
        Role.KILLED,
        Role.FLOODING,
        Role.HANGING,
    ]


def test_a_victim_gets_a_cell_with_neighbours_where_there_is_one() -> None:
    cells = {"a": "cell-0", "b": "cell-1", "c": "cell-2", **dict.fromkeys("defghi", "cell-3")}
    assert all(choose(cells, seed).cells[choose(cells, seed).killed] == "cell-3" for seed in range(20))


def test_names_are_different_however_many() -> None:
    assert len(set(partner_names(64))) == 64


def test_a_timeline_is_staggered_and_ends_in_calm() -> None:
    timeline = Timeline.of(60)
    moments = (timeline.warm_s, timeline.kill_s, timeline.flood_s, timeline.hang_s, timeline.flood_end_s)
    assert moments == tuple(sorted(moments))
    assert [timeline.phase(at_s) for at_s in (1, 10, 25, 43, 50)] == [
        "warm-up",
        "calm",
        "trouble",
        "trouble",
        "calm again",
    ]
    assert timeline.end_s - timeline.hang_end_s > 10
