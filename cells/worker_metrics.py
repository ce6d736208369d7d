"""Metrics of many workers as one: each worker dumps its registry, the door adds the dumps up and serves the sums.

What counts upwards must never fall when a worker dies or is late: Prometheus would take it for a new beginning and
report all of it again as new (https://prometheus.io/docs/concepts/metric_types/#counter).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

# Of gauges so named the highest worker counts, not the sum.
_MAXIMUM = "_max"
_COUNTS_UPWARDS = frozenset({"counter", "histogram"})

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
    """Serves the sum of what the workers told, beside the door's own metrics."""

    def __init__(self) -> None:
        self._last: dict[str, Dump] = {}
        # The sum of what those counted that are no more. Bounded as the metrics are: by partners, not by workers.
        self._ended: Dump = []

    def take(self, told: Mapping[str, Dump | None]) -> None:
        """Take what every living worker told; of one that told nothing (None), its last word stands."""
        for worker in self._last.keys() - told.keys():
            counted = [metric for metric in self._last.pop(worker) if metric[2] in _COUNTS_UPWARDS]
            self._ended = _add([self._ended, counted])
        self._last |= {worker: dump for worker, dump in told.items() if dump is not None}

    def collect(self) -> Iterator[Metric]:
        """Give the sums."""
        for name, documentation, kind, samples in _add([self._ended, *self._last.values()]):
            metric = Metric(name, documentation, kind)
            metric.samples = [Sample(*sample) for sample in samples]
            yield metric


def _add(dumps: Iterable[Dump]) -> Dump:
    sums: dict[str, tuple[list[Any], dict[tuple[str, tuple[tuple[str, str], ...]], float]]] = {}
    for dumped in dumps:
        for name, documentation, kind, samples in dumped:
            _, values = sums.setdefault(name, ([name, documentation, kind], {}))
            for sample_name, labels, value in samples:
                key = (sample_name, tuple(sorted(labels.items())))
                before = values.get(key, 0.0)
                values[key] = max(before, value) if name.endswith(_MAXIMUM) else before + value
    return [
        [*head, [[name, dict(labels), value] for (name, labels), value in values.items()]]
        for head, values in sums.values()
    ]
