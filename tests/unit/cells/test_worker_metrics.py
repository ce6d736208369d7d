"""The workers' metrics as one: sums, maxima, and counters that never fall, whoever dies or is late."""

import msgpack
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cells.worker_metrics import Dump, Sum, dump


class StandInWorker:
    """A worker's registry with one metric of each kind."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.commands = Counter("bulkhead_actor_commands", "Commands.", ["partner"], registry=self.registry)
        self.depth = Gauge("bulkhead_actor_mailbox_depth", "Waiting.", registry=self.registry)
        self.age = Gauge("bulkhead_actor_unknown_age_seconds_max", "The oldest unknown.", registry=self.registry)
        self.seconds = Histogram("bulkhead_actor_seconds", "Time.", buckets=(0.1, 1), registry=self.registry)
        self.foreign = Counter("python_gc_objects", "Not ours.", registry=self.registry)

    def dump(self) -> Dump:
        travelled = msgpack.unpackb(msgpack.packb(dump(self.registry)))
        assert isinstance(travelled, list)
        return travelled


def served(sums: Sum) -> dict[tuple[str, ...], float]:
    """What a scrape gives, by name and label values."""
    registry = CollectorRegistry()
    registry.register(sums)
    text = generate_latest(registry).decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def two_workers() -> tuple[StandInWorker, StandInWorker, Sum]:
    first, second = StandInWorker(), StandInWorker()
    first.commands.labels("alpha").inc(5)
    first.commands.labels("beta").inc(2)
    first.depth.set(3)
    first.age.set(40)
    first.seconds.observe(0.05)
    second.commands.labels("alpha").inc(1)
    second.depth.set(4)
    second.age.set(9)
    second.seconds.observe(0.5)
    sums = Sum()
    sums.take({"w0": first.dump(), "w1": second.dump()})
    return first, second, sums


def test_only_our_metrics_travel() -> None:
    assert {metric[0] for metric in StandInWorker().dump()} == {
        "bulkhead_actor_commands",
        "bulkhead_actor_mailbox_depth",
        "bulkhead_actor_unknown_age_seconds_max",
        "bulkhead_actor_seconds",
    }


def test_counters_gauges_and_buckets_add_up_and_the_oldest_age_counts() -> None:
    _, _, sums = two_workers()
    assert served(sums) == {
        ("bulkhead_actor_commands_total", "alpha"): 6,
        ("bulkhead_actor_commands_total", "beta"): 2,
        ("bulkhead_actor_mailbox_depth",): 7,
        ("bulkhead_actor_unknown_age_seconds_max",): 40,
        ("bulkhead_actor_seconds_bucket", "0.1"): 1,
        ("bulkhead_actor_seconds_bucket", "1.0"): 2,
        ("bulkhead_actor_seconds_bucket", "+Inf"): 2,
        ("bulkhead_actor_seconds_count",): 2,
        ("bulkhead_actor_seconds_sum",): 0.55,
    }


def test_what_a_dead_worker_counted_stays_and_its_gauges_go() -> None:
    _, second, sums = two_workers()
    sums.take({"w1": second.dump()})
    after = served(sums)
    assert after["bulkhead_actor_commands_total", "alpha"] == 6
    assert after["bulkhead_actor_commands_total", "beta"] == 2
    assert after["bulkhead_actor_seconds_count",] == 2
    assert after["bulkhead_actor_mailbox_depth",] == 4
    assert after["bulkhead_actor_unknown_age_seconds_max",] == 9


def test_of_a_worker_that_is_late_the_last_word_stands() -> None:
    _, second, sums = two_workers()
    before = served(sums)
    sums.take({"w0": None, "w1": second.dump()})
    assert served(sums) == before


def test_a_new_worker_adds_to_what_the_dead_ones_counted() -> None:
    _, second, sums = two_workers()
    for number in range(20):
        fresh = StandInWorker()
        fresh.commands.labels("alpha").inc(10)
        sums.take({f"x{number}": fresh.dump(), "w1": second.dump()})
    assert served(sums)["bulkhead_actor_commands_total", "alpha"] == 6 + 20 * 10
    assert len(sums._ended) == 2  # by metric, not by worker


def test_nothing_told_is_nothing_served() -> None:
    assert served(Sum()) == {}
    sums = Sum()
    sums.take({"w0": None})
    assert served(sums) == {}
