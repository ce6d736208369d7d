"""`bulkhead chaos`: the experiments as an operator runs them. Reads options and shows what comes of it; judges nothing.

Exit codes: 0 contained, 1 not contained, 2 it could not be run, 3 unknown, 130 interrupted. Of several runs the worst.
"""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from chaoslib.exceptions import ChaosException
from chaoslib.experiment import ensure_experiment_is_valid
from chaoslib.run import Runner
from chaoslib.types import Schedule, Strategy
from rich.console import Console
from rich.table import Table

from chaos import catalogue, limits, needs, session
from chaos.catalogue import CatalogueError, Experiment, Group
from chaos.containment import EXIT_INTERRUPTED, EXIT_NOT_RUN
from chaos.faults import in_words
from chaos.fdb_server import FdbServerError
from chaos.installation import GatewayError
from chaos.needs import Need, Needs
from chaos.own_gateway import ROOT, OwnGateway
from chaos.run_settings import RunSettings, RunSettingsError
from chaos.session import Session
from control_plane.errors import ControlPlaneError

app = typer.Typer(
    name="chaos",
    help="Experiments that show what a fault costs, and whom. See docs/chaos.md.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_STYLES: Final = {"contained": "bold green", "not contained": "bold red", "unknown": "bold yellow"}
# An experiment, and the document that it was read from.
_Found = tuple[Experiment, dict[str, Any]]
# The worst first.
_SEVERITY: Final = (EXIT_INTERRUPTED, 1, EXIT_NOT_RUN, 3, 0)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be run, as a Chaos Toolkit configuration has it."""

    configuration: dict[str, Any]
    own: bool
    as_json: bool


@app.command("list", epilog="Example: bulkhead chaos list --json")
def list_experiments(*, as_json: AsJson = False) -> None:
    """List the experiments: what each does, to whom, and what may be noticed."""
    found = [catalogue.read(catalogue.load(name)) for name in catalogue.names()]
    if as_json:
        rows = [
            {
                "name": one.name,
                "file": str(catalogue.file_of(one.name)),
                "title": one.title,
                "scope": one.scope.value,
                "allows": {group.value: in_words(one.excuses(group)) for group in Group},
                "goal_ms": one.goal_ms,
                "needs": needs.in_words(one.needs),
            }
            for one in found
        ]
        sys.stdout.write(json.dumps({"experiments": rows}, indent=2) + "\n")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("experiment", "target", "does", "needs"):
        table.add_column(name)
    for one in found:
        table.add_row(one.name, one.scope.value, one.title, ", ".join(needs.in_words(one.needs)))
    _console().print(table)


@app.command("run")
def run(  # noqa: PLR0913 - one for each option
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="The experiment, as `list` names it.")] = None,
    *,
    all_: Annotated[bool, typer.Option("--all", help="All of them, one after the other.")] = False,
    cell: Annotated[str, typer.Option(help="The cell to be struck; else the seed chooses.")] = "",
    partner: Annotated[str, typer.Option(help="The experiment's partner to be struck; else the seed chooses.")] = "",
    duration: Annotated[float, typer.Option(help="Seconds that the fault lasts.")] = limits.CHAOS_DURATION_S,
    load: Annotated[float, typer.Option(help="Requests a second, all partners together.")] = (
        limits.CHAOS_LOAD_PER_SECOND
    ),
    seed: Annotated[int, typer.Option(help="Of the load, and of the choice of the target.")] = 1,
    patience: Annotated[float, typer.Option(help="Stretches the promised times, for a busy machine.")] = 1.0,
    own: Annotated[bool, typer.Option("--own", help="Start a gateway for it (in ./.chaos), and stop it then.")] = False,
    bulkheads_off: Annotated[
        str, typer.Option(help="Go without these bulkheads, commas between, to see that it is noticed; with --own.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Also where live partners would be hurt.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; do nothing.")] = False,
    runs_folder: Annotated[Path, typer.Option("--runs", help="Where reports go.")] = Path("chaos-runs"),
    as_json: AsJson = False,
) -> None:
    """Run experiments, against a gateway that is up or one of their own.

    It makes test partners of its own (chaos_…) in every cell, lets them pay, strikes one thing, and judges every call.
    Ctrl-C takes the fault away. A report is left in ./chaos-runs.

    \b
    Exit codes: 0 contained, 1 not contained, 2 could not be run, 3 unknown, 130 interrupted.

    \b
    Examples:
    bulkhead chaos run worker-killed --own
    bulkhead chaos run acquirer-hanging --duration 30 --seed 7
    bulkhead chaos run door-killed --cell cell-1 --dry-run
    bulkhead chaos run --all --own --json
    """  # noqa: D301 - it is to be a backspace: what follows it keeps its lines
    if (name is None) is not all_:
        _fail("name one experiment, or say --all: see `bulkhead chaos list`")
    folder = context.obj.load().data_folder
    configuration = {
        "data_folder": str(folder),
        "cell": cell,
        "partner": partner,
        "duration_s": duration,
        "load_per_second": load,
        "seed": seed,
        "patience": patience,
        "own": own,
        "force": force,
        "runs_folder": str(runs_folder),
        "bulkheads_off": bulkheads_off,
    }
    try:
        settings = RunSettings.read(configuration)
        names = catalogue.names() if all_ else [name or ""]
        experiments = [(catalogue.read(found), found) for found in map(catalogue.load, names)]
        experiments = [(one, found) for one, found in experiments if not all_ or _can_run(one, own=own)]
        if dry_run:
            for _, found in experiments:
                ensure_experiment_is_valid(found)
            plans = [_plan_of(one, settings) for one, _ in experiments]
            if as_json:
                sys.stdout.write(json.dumps({"plans": plans}, indent=2) + "\n")
            else:
                for plan in plans:
                    _show_plan(plan)
            return
        _require_possible(experiments, own=own)
        codes = _run_all(experiments, Wanted(configuration, own, as_json))
    except (CatalogueError, RunSettingsError, GatewayError, FdbServerError, ControlPlaneError) as error:
        _fail(str(error))
    except ChaosException as error:
        _fail(f"the experiment is not valid: {error}")
    raise typer.Exit(min(codes, key=_SEVERITY.index))


def _can_run(experiment: Experiment, *, own: bool) -> bool:
    """Say whether it can be run here; tell why not."""
    why = needs.missing_here(experiment.needs, own=own)
    if why is not None:
        _console(stderr=True).print(f"{experiment.name} is left out: {why}", style="yellow", markup=False)
        return False
    return True


def _require_possible(experiments: list[_Found], *, own: bool) -> None:
    """See that nothing is missing here. Raises GatewayError, before anything is begun."""
    for one, _ in experiments:
        why = needs.missing_here(one.needs, own=own)
        if why is not None:
            raise GatewayError(f"{one.name} can't be run: {why}")


def _run_all(experiments: list[_Found], wanted: Wanted) -> list[int]:
    """Run them. With --own all that can share a gateway do, and the others follow when it has ended."""
    alone = [one for one in experiments if not needs.is_shared(one[0].needs)]
    shared = [one for one in experiments if one not in alone]
    if not wanted.own or len(shared) < 2:
        results = _run_each(experiments, wanted)
    else:
        needed = frozenset[Need]().union(*(one.needs for one, _ in shared))
        with _shared_gateway(needed, wanted.configuration["bulkheads_off"]):
            results = _run_each(shared, wanted)
        if not _was_interrupted(results):
            results += _run_each(alone, wanted)
    if wanted.as_json:
        sys.stdout.write(json.dumps({"runs": results}, indent=2, default=str) + "\n")
    elif len(results) > 1:
        _show_results(results)
    return [int(result["exit_code"]) for result in results]


def _run_each(experiments: list[_Found], wanted: Wanted) -> list[Mapping[str, Any]]:
    results: list[Mapping[str, Any]] = []
    for one, found in experiments:
        results.append(run_one(one, found, wanted))
        if _was_interrupted(results):
            break
    return results


def _was_interrupted(results: list[Mapping[str, Any]]) -> bool:
    return any(result["exit_code"] == EXIT_INTERRUPTED for result in results)


@contextlib.contextmanager
def _shared_gateway(needed: Needs, bulkheads_off: str) -> Iterator[None]:
    """Lend the runs within a gateway that has all that they need."""
    own = OwnGateway(ROOT, needs=needed, bulkheads_off=bulkheads_off)
    try:
        own.start()
        session.lend(own)
        yield
    finally:
        session.lend(None)
        own.stop()


def run_one(experiment: Experiment, document: dict[str, Any], wanted: Wanted) -> Mapping[str, Any]:
    """Run one experiment as Chaos Toolkit does; give what the journal says of it."""
    out = _console(stderr=wanted.as_json)
    out.print(f"{experiment.name}: {experiment.title}", style="bold", markup=False)
    began_s = time.monotonic()
    with _quiet() as log_lines, _progress(out, began_s):
        runner = Runner(Strategy.CONTINUOUS, Schedule(continuous_hypothesis_frequency=limits.CHAOS_WATCH_MS / 1_000))
        settings = {"runtime": {"rollbacks": {"strategy": "always"}}}
        journal = runner.run(document, settings=settings, experiment_vars=(dict(wanted.configuration), {}))
    found: dict[str, Any] = journal.get("bulkhead", {})
    if "exit_code" not in found:
        why = log_lines[-1] if log_lines else "it was interrupted"
        found = {"experiment": experiment.name, "failure": why, "exit_code": EXIT_NOT_RUN}
    if not wanted.as_json:
        _show_verdict(out, {"experiment": experiment.name, **found})
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Keep what Chaos Toolkit logs from the screen; give its complaints."""
    logger = logging.getLogger("chaostoolkit")
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Keep(logging.WARNING)
    logger.addHandler(handler)
    logger.propagate = False

    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


@contextlib.contextmanager
def _progress(out: Console, began_s: float) -> Iterator[None]:
    """Tell each phase that a run comes to: a line that changes on a terminal, lines elsewhere."""
    with out.status("preparing") if out.is_terminal else contextlib.nullcontext() as status:

        def tell(run: Session, phase: str) -> None:
            target = run.target.partner or "-"
            line = f"{time.monotonic() - began_s:6.1f} s  {phase} (target {target} in {run.target.cell or '-'})"
            if status is not None:
                status.update(line)
            else:
                out.print(line, markup=False, soft_wrap=True)

        session.tell_with(tell)
        try:
            yield
        finally:
            session.tell_with(None)


def _plan_of(experiment: Experiment, settings: RunSettings) -> dict[str, Any]:
    """Say what a run would do, as `--json` prints it. `cell`, `partner`: empty where the seed chooses."""
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "own": settings.own,
        "data_folder": None if settings.own else str(settings.data_folder),
        "scope": experiment.scope.value,
        "cell": settings.cell,
        "partner": settings.partner,
        "seed": settings.seed,
        "partners_per_cell": limits.CHAOS_PARTNERS_PER_CELL,
        "pooled_per_cell": limits.CHAOS_POOLED_PER_CELL,
        "load_per_second": settings.load_per_second,
        "calm_s": settings.calm_s,
        "duration_s": settings.duration_s,
        "allows": {group.value: in_words(experiment.excuses(group)) for group in Group},
        "goal_ms": experiment.goal_ms,
        "errors_outside_max": limits.CHAOS_ERRORS_OUTSIDE_MAX,
        "needs": needs.in_words(experiment.needs),
        "bulkheads_off": settings.bulkheads_off,
        "runs_folder": str(settings.runs_folder),
    }


def _show_plan(plan: Mapping[str, Any]) -> None:
    out = _console()
    where = "a gateway of its own in ./.chaos" if plan["own"] else f"the gateway on {plan['data_folder']}"
    target = plan["partner"] or plan["cell"] or f"chosen by seed {plan['seed']}"
    out.print(f"{plan['experiment']}: {plan['title']}", style="bold", markup=False)
    lines = [
        f"on {where}; {plan['scope']} is struck: {target}",
        f"in each cell {plan['partners_per_cell']} test partners, and {plan['pooled_per_cell']} in a pool",
        f"{plan['load_per_second']:g} requests a second, all together",
        f"calm for {plan['calm_s']:g} s, the fault for {plan['duration_s']:g} s, then until all is as ever",
        *(f"allowed for {group}: {words}" for group, words in plan["allows"].items()),
        f"ended at once where others meet more than {plan['errors_outside_max']} errors",
        "then rest, checkers, audit, report. Nothing was done.",
    ]
    for line in lines:
        out.print(f"  {line}", markup=False, soft_wrap=True)


def _show_verdict(out: Console, found: Mapping[str, Any]) -> None:
    verdict = found.get("verdict")
    if verdict is None:
        out.print(
            f"could not be run: {found.get('failure') or 'interrupted'}", style="red", markup=False, soft_wrap=True
        )
    else:
        out.print(f"verdict: {verdict}", style=_STYLES[verdict])
        for what in [*found["broken"], *found["not_known"]]:
            out.print(f"  {what}", markup=False, soft_wrap=True)
        detected = "-" if found["detected_ms"] is None else f"{found['detected_ms']} ms ({found['detected_by']})"
        recovered = "-" if found["recovered_ms"] is None else f"{found['recovered_ms']} ms"
        hit = ", ".join(
            f"{group['group']} {len(group['hit'])} of {len(group['partners'])}" for group in found["groups"]
        )
        out.print(f"  noticed by: {hit}; detected: {detected}; recovered: {recovered}", markup=False, soft_wrap=True)
        out.print(f"  again: {found['command']}", markup=False, soft_wrap=True)
    if verdict is not None:
        out.print(f"  report: {found['folder']}/report.html", markup=False, soft_wrap=True)


def _show_results(results: list[Mapping[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("experiment", "verdict", "noticed", "detected", "recovered", "why"):
        table.add_column(name)
    for found in results:
        verdict = found.get("verdict") or "could not be run"
        why = [*found.get("broken", []), *found.get("not_known", []), found.get("failure") or ""][0]
        hit = sum(len(group["hit"]) for group in found.get("groups", []))
        times = [found.get(name) for name in ("detected_ms", "recovered_ms")]
        style = _STYLES.get(verdict, "red")
        table.add_row(
            str(found.get("experiment")),
            f"[{style}]{verdict}[/]",
            str(hit),
            *("-" if ms is None else f"{ms} ms" for ms in times),
            str(why).replace("[", r"\["),
        )
    _console().print(table)


def _console(*, stderr: bool = False) -> Console:
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if terminal else 200, highlight=False)


def _fail(why: str) -> None:
    _console(stderr=True).print(f"[bold red]error:[/] {why}", soft_wrap=True)
    raise typer.Exit(EXIT_NOT_RUN)
