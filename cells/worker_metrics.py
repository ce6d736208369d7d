"""Metrics of many workers as one: each worker dumps its registry, the door adds the dumps up and serves the sums."""

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

# Of these the highest worker counts, not the sum.
_MAXIMUM = frozenset({"bulkhead_actor_unknown_age_seconds_max"})

Dump = list[list[Any]]


def dump(registry: CollectorRegistry = REGISTRY) -> Dump:
    """Give this process's metrics of ours as plain lists."""
    return [
        [
            metric.name,
            metric.documentation,
            metric.type,
            [[s.name, s.labels, s.value] for s in metric.samples if not s.name.endswith("_created")],
        ]
        for metric in registry.collect()
        if metric.name.startswith("bulkhead_")
    ]


class Sum(Collector):
    """Serves the sum of the dumps that it was given last, beside the door's own metrics."""

    def __init__(self) -> None:
        self._dumps: list[Dump] = []

    def take(self, dumps: Iterable[Dump]) -> None:
        """Replace what is served."""
        self._dumps = list(dumps)

    def collect(self) -> Iterator[Metric]:
        """Give the sums."""
        sums: dict[str, tuple[Metric, dict[tuple[str, tuple[tuple[str, str], ...]], float]]] = {}
        for one in self._dumps:
            for name, documentation, kind, samples in one:
                metric, values = sums.setdefault(name, (Metric(name, documentation, kind), {}))
                for sample_name, labels, value in samples:
                    key = (sample_name, tuple(sorted(labels.items())))
                    before = values.get(key, 0.0)
                    values[key] = max(before, value) if metric.name in _MAXIMUM else before + value
        for metric, values in sums.values():
            metric.samples = [Sample(name, dict(labels), value) for (name, labels), value in values.items()]
            yield metric
