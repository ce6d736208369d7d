"""What a person sees of the demo: a live table on a terminal, plain lines elsewhere, and the tables at the end."""

import sys
import time
from collections import deque
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from chaos import limits
from chaos.checker import Role
from chaos.drama import Cast, Timeline
from chaos.report import Row, Verdict

_WIDTH_ELSEWHERE: Final = 150
_EVENTS_SHOWN: Final = 8
_ERRORS_SHOWN: Final = 5
_STYLES: Final = {Role.BYSTANDER: "", Role.KILLED: "red", Role.FLOODING: "yellow", Role.HANGING: "magenta"}


def make_console() -> Console:
    """Give a console that doesn't cut tables where there is no terminal."""
    return Console(width=None if sys.stdout.isatty() else _WIDTH_ELSEWHERE, highlight=False)


class Screen:
    """Shows the demo while it runs. `counts` is what the loads told last, by partner."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._events: deque[str] = deque(maxlen=_EVENTS_SHOWN)
        self._live: Live | None = None
        self._began_s = time.monotonic()
        self._cast: Cast | None = None
        self._timeline: Timeline | None = None
        self.counts: dict[str, dict[str, float]] = {}

    def say(self, text: str) -> None:
        """Tell one thing that happened."""
        line = f"{time.monotonic() - self._began_s:6.1f} s  {text}"
        self._events.append(line)
        if self._live is None:
            self._console.print(line, soft_wrap=True, markup=False)

    def open(self, cast: Cast, timeline: Timeline, begin_s: float) -> None:
        """Begin to show partners; from now on times count from the load's begin."""
        self._cast, self._timeline, self._began_s = cast, timeline, begin_s
        self._events.clear()
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop")
            self._live.start()

    def refresh(self) -> None:
        """Draw again, or print a plain line of totals where there is no terminal."""
        assert self._cast is not None
        if self._live is not None:
            self._live.update(self._draw(self._cast), refresh=True)
        else:
            self.say(self._totals())

    def close(self) -> None:
        """End the live view; what happened stays to be read."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            for event in self._events:
                self._console.print(event, soft_wrap=True, markup=False)

    def _totals(self) -> str:
        assert self._timeline is not None
        rows = list(self.counts.values())
        totals = {name: int(sum(row[name] for row in rows)) for name in ("acknowledged", "refused_429", "errors")}
        slowest_ms = max((row["slowest_ms"] for row in rows), default=0)
        phase = self._timeline.phase(time.monotonic() - self._began_s)
        return (
            f"{phase:<10}  {totals['acknowledged']:>6} acknowledged  {totals['refused_429']:>5} x 429  "
            f"{totals['errors']:>4} other  slowest just now {slowest_ms:6.0f} ms"
        )

    def _draw(self, cast: Cast) -> Group:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("partner", "cell", "role"):
            table.add_column(name)
        for name in ("acknowledged", "429", "other", "slowest now"):
            table.add_column(name, justify="right")
        for partner in sorted(cast.cells, key=lambda name: (cast.cells[name], name)):
            row = self.counts.get(partner)
            role = cast.role(partner)
            figures = ["", "", "", ""]
            if row is not None:
                figures = [f"{row[name]:.0f}" for name in ("acknowledged", "refused_429", "errors")]
                figures.append(f"{row['slowest_ms']:.0f} ms")
            shown = "" if role is Role.BYSTANDER else role.value
            table.add_row(partner, cast.cells[partner], shown, *figures, style=_STYLES[role])
        elapsed_s = time.monotonic() - self._began_s
        title = Text(f"{elapsed_s:5.1f} s  {self._totals()}", style="bold")
        return Group(title, table, *(Text(event, style="cyan") for event in self._events))


def show_table(console: Console, rows: list[Row]) -> None:
    """Print the table per partner."""
    table = Table(title="first attempts of a client that repeats nothing; latencies in ms", title_justify="left")
    for name in ("partner", "cell", "role"):
        table.add_column(name)
    for name in ("sent", "acknow-\nledged", "refused\nas due", "429", "own\ntrouble", "errors"):
        table.add_column(name, justify="right")
    for name in ("p50\ncalm", "p99\ncalm", "p50\ntrouble", "p99\ntrouble"):
        table.add_column(name, justify="right")
    table.add_column("within\nrange")
    for row in rows:
        bystander = row.role is Role.BYSTANDER
        within = {True: "yes", False: "NO", None: "?"}[row.undisturbed] if bystander else ""
        counts = (row.sent, row.acknowledged, row.refused_as_due, row.refused_429, row.own_trouble, len(row.errors))
        times = (row.calm.p50_ms, row.calm.p99_ms, row.trouble.p50_ms, row.trouble.p99_ms)
        table.add_row(
            row.partner,
            row.cell,
            "" if bystander else row.role.value,
            *(str(count) for count in counts),
            *(_ms(time_ms) for time_ms in times),
            within,
            style=_STYLES[row.role],
        )
    console.print(table)
    for row in rows:
        for error in row.errors[:_ERRORS_SHOWN]:
            console.print(f"  {row.partner}: {error}", markup=False, soft_wrap=True)


def show_summary(console: Console, report: dict[str, Any], verdict: Verdict) -> None:
    """Print what it cost whom, the audit, and the verdict."""
    say = console.print
    killed, flood, hang = report["killed"], report["flood"], report["hang"]
    say("\nBystanders", style="bold")
    for group in report["bystanders"]:
        calm, trouble = group["calm"], group["trouble"]
        say(
            f"  {group['group']}: {group['partners']} partners, {group['sent']} requests, {group['errors']} errors; "
            f"p50 {_ms(calm['p50_ms'])} -> {_ms(trouble['p50_ms'])} ms, "
            f"p99 {_ms(calm['p99_ms'])} -> {_ms(trouble['p99_ms'])} ms; "
            f"outside their calm range: {', '.join(group['outside_calm_range']) or 'none'}"
        )
    say(
        f"  calm range: the tail in trouble (p99; p95 of fewer than {limits.LATENCIES_FOR_P99_MIN} calls) at most the "
        f"larger of {limits.CALM_RANGE_FACTOR} x calm p99 and calm p99 + "
        f"{limits.CALM_RANGE_SLACK_MS} ms"
    )
    cores = report["others_cores"]
    say(f"  other programs on this machine used {cores['calm']:.1f} cores in calm, {cores['trouble']:.1f} in trouble")
    say("\nIn trouble", style="bold")
    say(
        f"  {killed['partner']}'s worker was killed: {killed['errors']} errors, longest delay "
        f"{_ms(killed['delay_ms_max'])} ms (allowed: {limits.KILLED_DELAY_MS_MAX}); taken over in "
        f"{', '.join(str(taken_ms) for taken_ms in killed['took_ms']) or '?'} ms by a warm spare"
    )
    say(
        f"  {flood['partner']} sent {flood['sent']} payments at {flood['requests_per_second']}/s, allowed "
        f"{flood['allowed_per_second']}/s: {flood['acknowledged']} acknowledged, {flood['refused_429']} x 429"
    )
    say(
        f"  {hang['partner']}'s acquirer hung for {hang['seconds']:.0f} s: {hang['processing_202']} x 202, "
        f"{hang['unavailable_503']} x 503, {hang['errors']} errors; open afterwards: {report['open_at_end']}"
    )
    say("\nBooks", style="bold")
    audit, money = report["audit"], report["money"]
    say(
        f"  audit: {'all books agree' if audit['ok'] else 'BOOKS DISAGREE'}: {audit['payments']} payments, "
        f"{audit['operations']} operations, {audit['in_doubt']} in doubt"
    )
    say(
        f"  clients' history against books and acquirer: {money['verdict']}; {money['calls']} calls, "
        f"{money['acquirer_operations']} operations at the acquirer, {money['repeats']} repeats"
    )
    say(f"\nVerdict: {verdict.word}", style="bold green" if verdict.word == "contained" else "bold red")
    for reason in [*verdict.broken, *verdict.unknown]:
        say(f"  {reason}", markup=False, soft_wrap=True)
    say(f"seed {report['seed']}; {report['durability']}", style="dim", soft_wrap=True)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
