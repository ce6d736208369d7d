"""`bulkhead doctor`: whether an installation is as it should be."""

import asyncio
from dataclasses import asdict

import typer

from control_plane import doctor, screen
from control_plane.command_line import AsJson, explained, where
from control_plane.errors import EXIT_FAILED, EXIT_OK


@explained
def examine(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Check that nothing listens beyond what the settings say, and that nobody else gets into the data folder.

    Looks at the settings of the last `up` on this data folder, and at what runs of it. Run it as the same user.

    Exit codes: 0 all is as it should be, 1 something is not.
    """
    findings = asyncio.run(doctor.examine(*where(context).of_last_up()))
    ok = all(finding.ok for finding in findings)
    if as_json:
        screen.show_json({"ok": ok, "findings": [asdict(finding) for finding in findings]})
    else:
        screen.show_findings(findings)
    raise typer.Exit(EXIT_OK if ok else EXIT_FAILED)
