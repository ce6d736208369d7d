"""Every journey goes its whole way when each answer is the expected one, and ends where one isn't."""

import random
from typing import Any

import pytest

from chaos.checker import is_documented
from chaos.scenarios import FLOOD, MIXED, Content, Maker, Step, calls_per_journey

ALL = {**MIXED, **FLOOD}


def travel(name: str, answer: Content | None, seed: int = 1) -> list[Step]:
    journey = ALL[name].make(Maker("j-1", 5_000, random.Random(seed)))
    steps = [next(journey)]
    try:
        while True:
            steps.append(journey.send(answer))
    except StopIteration:
        return steps


@pytest.mark.parametrize("name", ALL)
def test_a_journey_makes_as_many_calls_as_it_says(name: str) -> None:
    assert len(travel(name, {"id": "pay_1"})) == ALL[name].calls


@pytest.mark.parametrize("name", ALL)
def test_what_a_journey_expects_is_documented(name: str) -> None:
    for step in travel(name, {"id": "pay_1"}):
        assert step.expected
        for outcome in step.expected:
            assert is_documented(step.method, step.path, outcome), (step.name, outcome)


@pytest.mark.parametrize("name", ALL)
def test_a_journey_makes_nothing_of_a_payment_that_it_does_not_have(name: str) -> None:
    paths = [step.path for step in travel(name, None)]
    assert not any("/v1/payments/" in path for path in paths)


@pytest.mark.parametrize("name", ALL)
def test_writes_have_a_key_and_reads_have_none(name: str) -> None:
    for step in travel(name, {"id": "pay_1"}):
        assert (step.key is not None) == (step.method == "POST")


@pytest.mark.parametrize("name", ALL)
def test_the_same_dice_give_the_same_journey(name: str) -> None:
    answer: dict[str, Any] = {"id": "pay_1"}
    assert travel(name, answer, seed=3) == travel(name, answer, seed=3)


def test_parts_are_less_than_the_whole() -> None:
    make = Maker("j-1", 1_000, random.Random(1))
    assert all(0 < make.part() < 1_000 for _ in range(1_000))


def test_the_mix_makes_about_two_calls_a_journey() -> None:
    assert 2 < calls_per_journey(MIXED) < 2.5
