"""The table of experiments, the files made of it and the page agree; Chaos Toolkit takes the files."""

from pathlib import Path

import orjson
import pytest
from chaoslib.experiment import ensure_experiment_is_valid

from chaos import catalogue
from chaos.catalogue import EXPERIMENTS, CatalogueError, Experiment, Group, Scope, Sign, group_of
from chaos.faults import NO_ERROR

PAGE = Path(__file__).resolve().parents[3] / "docs" / "chaos.md"


def test_the_files_are_what_the_table_says() -> None:
    for file, content in catalogue.files():
        assert file.read_bytes() == content, "write them anew: python -m chaos.catalogue"


def test_the_page_shows_the_table() -> None:
    assert catalogue.table() in PAGE.read_text(), "write chaos.catalogue.table() into docs/chaos.md"


def test_there_is_no_file_without_a_row_and_no_name_twice() -> None:
    names = [experiment.name for experiment in EXPERIMENTS]
    assert catalogue.names() == names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", catalogue.names())
def test_chaos_toolkit_takes_each(name: str) -> None:
    ensure_experiment_is_valid(catalogue.load(name))


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_what_a_row_says_is_read_back_from_its_file(experiment: Experiment) -> None:
    found = catalogue.read(orjson.loads(orjson.dumps(catalogue.document(experiment))))
    assert found.signs == experiment.signs
    for field in (
        "name",
        "title",
        "scope",
        "own",
        "cell",
        "others",
        "goal_ms",
        "goal_from_end",
        "needs",
        "fails_after_ms",
        "partners_in_cell",
    ):
        assert getattr(found, field) == getattr(experiment, field), field


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_nobody_outside_the_target_may_notice_anything(experiment: Experiment) -> None:
    if experiment.scope is not Scope.ALL:
        assert experiment.others == NO_ERROR
    if experiment.scope in {Scope.PARTNER, Scope.POOL}:
        assert experiment.cell == NO_ERROR


def test_what_can_be_taken_away_again_is() -> None:
    for experiment in EXPERIMENTS:
        assert catalogue.document(experiment)["rollbacks"], experiment.name
        if experiment.goal_from_end:
            assert experiment.end is not None, experiment.name


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (Scope.PARTNER, (Group.TARGET, Group.CELL, Group.OTHERS)),
        (Scope.POOL, (Group.TARGET, Group.CELL, Group.OTHERS)),
        (Scope.CELL, (Group.TARGET, Group.TARGET, Group.OTHERS)),
        (Scope.ALL, (Group.TARGET, Group.TARGET, Group.TARGET)),
        (Scope.NOBODY, (Group.OTHERS, Group.OTHERS, Group.OTHERS)),
    ],
)
def test_how_partners_stand_to_the_target(scope: Scope, expected: tuple[Group, ...]) -> None:
    partners = (("ann", "cell-0"), ("bob", "cell-0"), ("eve", "cell-1"))
    assert tuple(group_of(scope, *partner, "ann", "cell-0") for partner in partners) == expected


def test_an_unknown_name_is_told_with_those_that_there_are() -> None:
    with pytest.raises(CatalogueError, match="no experiment 'worker-kiled'; there are no-fault, worker-killed"):
        catalogue.load("worker-kiled")
    with pytest.raises(CatalogueError):
        catalogue.load("../limits")


def test_an_experiment_that_says_nothing_of_its_target_is_refused() -> None:
    with pytest.raises(CatalogueError, match="has no extension"):
        catalogue.read({"title": "of somebody else"})
    found = catalogue.document(EXPERIMENTS[0])
    found["extensions"][0]["scope"] = "planet"
    with pytest.raises(CatalogueError, match="can't be read"):
        catalogue.read(found)


def test_a_sign_is_of_its_target() -> None:
    sign = Sign("log", "worker_dead", "${cell}.door", (("partner", "${partner}"),)).of("cell-1", "eve")
    assert (sign.log, sign.where) == ("cell-1.door", (("partner", "eve"),))


def test_a_breaker_is_judged_where_the_acquirer_fails_whatever_it_is_asked() -> None:
    judged = {experiment.name for experiment in EXPERIMENTS if experiment.fails_after_ms is not None}
    assert judged == {"acquirer-hanging", "acquirer-failing", "acquirer-garbage", "acquirer-silent"}
