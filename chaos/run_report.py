"""What is left of a run in its folder: Chaos Toolkit's journal with the verdict, the history, the page."""

import json
import sys
from typing import Any, Final

from chaoslib.types import Journal

from chaos import history, limits, machine
from chaos.checker import finding_json
from chaos.containment import (
    EXIT_CODES,
    EXIT_INTERRUPTED,
    EXIT_NOT_RUN,
    Series,
    group_json,
    impact_of,
    recovery_ms,
    series_of,
    verdict_of,
)
from chaos.offenders import offender_json
from chaos.session import Session

JOURNAL: Final = "journal.json"
PAGE: Final = "report.html"


def conclude(run: Session, journal: Journal) -> None:
    """Judge a run whose load has ended, and put what was found into the journal. Stops a gateway of its own first."""
    money, audit, repeats = run.judge()
    run.end()  # what can't be ended belongs to the verdict
    around = run.circumstances(interrupted=journal["status"] == "interrupted")
    patience = run.settings.patience
    impact = impact_of(run.experiment, run.target, run.moments, [*run.calls, *run.flood_calls], patience)
    verdict = verdict_of(run.experiment, impact, run.moments, money, bool(audit["ok"]), around)
    begin_s, struck_s = run.moments.begin_s, run.moments.struck_s
    sign = around.first_sign
    recovered = recovery_ms(run.experiment, impact, run.moments)
    found = {
        "verdict": verdict.word,
        "broken": verdict.broken,
        "not_known": verdict.unknown,
        "experiment": run.experiment.name,
        "title": run.experiment.title,
        "scope": run.experiment.scope.value,
        "target": {"partner": run.target.partner, "cell": run.target.cell},
        "seed": run.settings.seed,
        "command": command(run),
        "happened": {
            name: None if at_s is None else round(at_s - begin_s, 2)
            for name, at_s in (
                ("warm_s", run.moments.warm_s),
                ("struck_s", struck_s),
                ("ended_s", run.moments.ended_s),
                ("calm_s", run.moments.calm_s),
                ("end_s", run.moments.end_s),
            )
        },
        "detected_ms": None if sign is None or struck_s is None else round((sign.at_s - struck_s) * 1_000),
        "detected_by": None if sign is None else sign.what,
        "recovered_ms": None if recovered is None else round(recovered),
        "recovered_since": "the fault's end" if run.experiment.goal_from_end else "the fault's begin",
        "goal_ms": run.experiment.goal_ms,
        "groups": [group_json(group, begin_s) for group in impact.figures.values() if group.partners],
        "in_calm": [offender_json(one, begin_s) for one in impact.in_calm[: limits.CHAOS_FINDINGS_SHOWN_MAX]],
        "aborted": around.aborted,
        "not_undone": list(around.not_undone),
        "leftovers": list(around.leftovers),
        "others_cores": dict(around.others_cores),
        "machine": machine.describe(),
        "audit": {name: audit[name] for name in ("ok", "payments", "operations", "in_doubt")},
        "checkers": {
            "verdict": money.verdict,
            "findings": [finding_json(one, begin_s) for one in money.findings[: limits.CHAOS_FINDINGS_SHOWN_MAX]],
            "unknowns": money.unknowns[: limits.CHAOS_FINDINGS_SHOWN_MAX],
            "calls": len(run.calls),
            "flood_calls": len(run.flood_calls),
            "repeats": len(repeats),
        },
    }
    journal["bulkhead"] = found
    journal["deviated"] = bool(journal.get("deviated")) or verdict.word == "not contained"
    calls = sorted([*run.calls, *run.flood_calls, *repeats], key=lambda call: call.due_s)
    history.save(calls, run.folder / "history.jsonl")
    for file in run.folder.glob("*.history.jsonl"):
        file.unlink()  # they are in the one above
    series = series_of(run.experiment, run.target, run.moments, run.calls, limits.CHAOS_CHART_STEP_S)
    _write_page(run, found, series)


def write(run: Session, journal: Journal) -> None:
    """Write the journal, also of a run that failed; `exit_code` in it is what `bulkhead chaos run` ends with."""
    found = journal.setdefault("bulkhead", {})
    found["failure"] = run.failure
    found["folder"] = str(run.folder)
    found["exit_code"] = exit_code(journal, aborted=run.aborted is not None)
    if found["exit_code"] and journal["status"] == "completed" and not journal.get("deviated"):
        journal["status"] = "failed"  # Chaos Toolkit's own program would end with 0, as if it were contained
    if run.folder.is_dir():
        (run.folder / JOURNAL).write_text(json.dumps(journal, indent=2, default=str))


def exit_code(journal: Journal, *, aborted: bool = False) -> int:
    """Give what a command ends with: 0 contained, 1 not, 2 it could not be run, 3 unknown, 130 interrupted."""
    found: dict[str, Any] = journal.get("bulkhead", {})
    if found.get("failure") is not None:
        return EXIT_NOT_RUN
    if journal["status"] == "interrupted" and not aborted:
        return EXIT_INTERRUPTED
    return EXIT_CODES.get(str(found.get("verdict")), EXIT_NOT_RUN)


def command(run: Session) -> str:
    """Give the command that repeats a run."""
    settings = run.settings
    words = [f"bulkhead chaos run {run.experiment.name}", f"--cell {run.target.cell}"]
    words += [f"--partner {run.target.partner}", f"--duration {settings.duration_s:g}"]
    words += [f"--load {settings.load_per_second:g}", f"--seed {settings.seed}"]
    words += [f"--patience {settings.patience:g}"] if settings.patience != 1 else []
    if run.own is not None:
        off = ["--bulkheads-off", settings.bulkheads_off] if settings.bulkheads_off else []
        return " ".join([*words, "--own", *off])
    words += ["--force"] if settings.force else []
    return " ".join(words).replace("bulkhead", f"bulkhead --data-folder {settings.data_folder}", 1)


def _write_page(run: Session, found: dict[str, Any], series: list[Series]) -> None:
    try:
        from chaos import page  # noqa: PLC0415 - what draws it is an extra, and slow to import
    except ImportError as error:
        sys.stderr.write(f"no page is written: {error.name} is missing (pip install 'bulkhead-gateway[chaos]')\n")
        return
    (run.folder / PAGE).write_text(page.render(found, series))
