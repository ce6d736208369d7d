"""What a partner's actor counts and times, for Prometheus. Partner labels on counters only, so that series stay few."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

COMMANDS: Final = Counter(
    "bulkhead_actor_commands", "Commands decided by partners' actors.", ["partner", "method", "outcome"]
)
COMMAND_SECONDS: Final = Histogram(
    "bulkhead_actor_command_seconds",
    "From a command's arrival at the actor to its answer.",
    ["method"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
COMMIT_SECONDS: Final = Histogram(
    "bulkhead_actor_commit_seconds",
    "One commit, from its begin to its fsync.",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5),
)
BATCH_COMMANDS: Final = Histogram(
    "bulkhead_actor_batch_commands", "What one commit carried.", buckets=(1, 2, 4, 8, 16, 32, 64)
)
COMMIT_FAILURES: Final = Counter("bulkhead_actor_commit_failures", "Commits that failed.", ["partner", "error"])
EPOCH_CONFLICTS: Final = Counter(
    "bulkhead_actor_epoch_conflicts", "Commits refused because another worker owns the partner.", ["partner"]
)
MAILBOX_DEPTH: Final = Gauge("bulkhead_actor_mailbox_depth", "Commands waiting in the mailboxes of this process.")
OPEN_OPERATIONS: Final = Gauge("bulkhead_actor_open_operations", "Operations whose outcome is to come.")
UNKNOWN_OPERATIONS: Final = Gauge("bulkhead_actor_unknown_operations", "Operations asked without a final answer.")
UNKNOWN_AGE_SECONDS: Final = Gauge("bulkhead_actor_unknown_age_seconds_max", "Age of the oldest unknown operation.")
ACQUIRER_CALLS: Final = Counter(
    "bulkhead_actor_acquirer_calls", "Calls to acquirers.", ["partner", "acquirer", "kind", "outcome"]
)
ACQUIRER_SECONDS: Final = Histogram(
    "bulkhead_actor_acquirer_seconds",
    "One call to an acquirer.",
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
BREAKERS_OPEN: Final = Gauge(
    "bulkhead_actor_breakers_open", "Partners of this process whose breaker is not closed, by acquirer.", ["acquirer"]
)


class Meters:
    """One actor's counters and timers at hand: looking a series up by its labels costs more than counting."""

    def __init__(self, partner_id: str) -> None:
        self._partner_id = partner_id
        self._seconds: dict[str, Histogram] = {}
        self._commands: dict[tuple[str, object], Counter] = {}
        self._calls: dict[tuple[str, str, str], Counter] = {}

    def answered(self, method: str, outcome: object, seconds: float) -> None:
        """Count a command's answer; `outcome` is an HTTP status or a refusal's code."""
        series = (method, outcome)
        counter = self._commands.get(series)
        if counter is None:
            counter = self._commands[series] = COMMANDS.labels(self._partner_id, method, str(outcome))
            self._seconds[method] = COMMAND_SECONDS.labels(method)
        counter.inc()
        self._seconds[method].observe(seconds)

    def asked_acquirer(self, acquirer: str, kind: str, outcome: str, seconds: float) -> None:
        """Count a call to an acquirer."""
        series = (acquirer, kind, outcome)
        counter = self._calls.get(series)
        if counter is None:
            counter = self._calls[series] = ACQUIRER_CALLS.labels(self._partner_id, *series)
        counter.inc()
        ACQUIRER_SECONDS.observe(seconds)
