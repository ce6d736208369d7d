"""Chaos Toolkit's control of every experiment: the run's begin and its end, whatever happened in between.

https://chaostoolkit.org/reference/api/experiment/#controls
"""

import logging
import signal
from typing import Any, Final

from chaoslib.exceptions import InterruptExecution
from chaoslib.types import Activity, Configuration, Dry, Experiment, Journal, Run

from chaos import catalogue, run_report, session
from chaos.actions import FAILURES
from chaos.catalogue import CatalogueError
from chaos.run_settings import RunSettings, RunSettingsError
from chaos.session import AbortedError, Session

_HALF_DRY: Final = frozenset({Dry.ACTIONS, Dry.PROBES})
# What was done about signals before a run.
_HANDLERS: Final[dict[signal.Signals, Any]] = {}
log: Final = logging.getLogger("chaostoolkit")


def before_experiment_control(
    context: Experiment, configuration: Configuration, experiment: Experiment, **_: Any
) -> None:
    """Begin: the gateway, partners, load, warm up, calm. Fills the target into the configuration."""
    del context
    dry = experiment.get("dry")
    if dry is Dry.ACTIVITIES:
        return  # nothing is to be done
    if dry in _HALF_DRY:
        raise InterruptExecution("half an experiment shows nothing: leave --dry out, or say --dry activities")
    _take_signals()
    try:
        run = Session(catalogue.read(experiment), RunSettings.read(configuration), session.lent())
    except (CatalogueError, RunSettingsError) as error:
        raise InterruptExecution(str(error)) from error
    session.hold(run)
    try:
        run.begin()
    except AbortedError as error:
        raise InterruptExecution(str(error)) from error
    except FAILURES as error:
        run.failure = str(error)
        raise InterruptExecution(str(error)) from error
    configuration["cell"], configuration["partner"] = run.target.cell, run.target.partner


def after_activity_control(context: Activity, state: Run, **_: Any) -> None:
    """End the experiment where an action failed, once: Chaos Toolkit itself would go on with the next one."""
    if context["type"] != "action" or state is None or state.get("status") != "failed":
        return
    run = session.current()
    if not run.ends_early:
        run.ends_early = True
        raise InterruptExecution(run.aborted or run.failure or f"{context['name']} was interrupted")


def after_experiment_control(context: Experiment, state: Journal, **_: Any) -> None:
    """End: rest, checkers, audit, verdict, report. The journal is given the verdict."""
    del context
    run = session.held()
    if run is None:
        return  # it never began
    try:
        if run.calls or run.moments.begin_s:
            run.stop_load()
            run_report.conclude(run, state)
    except InterruptExecution:
        state["status"] = "interrupted"
        raise
    except FAILURES as error:
        log.exception("the experiment could not be judged")
        run.failure = run.failure or f"it could not be judged: {error}"
    finally:
        run.end()
        run_report.write(run, state)
        _tell(state)


def _tell(journal: Journal) -> None:
    """Log what came of it: `chaos run` shows its log, and nothing else."""
    found = journal["bulkhead"]
    if "verdict" not in found:
        return  # why it could not be run was told
    for what in [*found["broken"], *found["not_known"]]:
        log.warning(what)
    level = logging.INFO if found["verdict"] == "contained" else logging.ERROR
    log.log(level, "verdict: %s; report: %s", found["verdict"], found["folder"])


def cleanup_control() -> None:
    """Leave nothing behind, also where the end itself was interrupted."""
    run = session.held()
    try:
        if run is not None:
            run.end()
    except FAILURES as error:
        log.debug("the run could not be ended: %s", error)
    session.hold(None)
    while _HANDLERS:
        signal.signal(*_HANDLERS.popitem())


def _take_signals() -> None:
    """Let SIGHUP end a run as Ctrl-C does; and Ctrl-C also where whoever started us had it ignored (`… &` in a script).

    Chaos Toolkit itself sees to SIGTERM.
    """
    for number, handler in ((signal.SIGHUP, _hang_up), (signal.SIGINT, signal.default_int_handler)):
        _HANDLERS[number] = signal.signal(number, handler)


def _hang_up(*_: object) -> None:
    raise InterruptExecution("SIGHUP")
