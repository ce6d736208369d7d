"""Waits, for the command line, until a partner's move has ended. The move goes on whoever waits for it."""

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from control_plane import client, limits
from control_plane.data_folder import DataFolder
from control_plane.errors import ControlPlaneError

_ENDS = frozenset({"partner_moved", "partner_not_moved"})


def follow_move(folder: DataFolder, partner: str, to: str, wait_s: int, told: Callable[[str], None]) -> dict[str, Any]:
    """Begin a move, or join it, and give it as it is after at most `wait_s`; `ended` says whether it is over.

    Raises ControlPlaneError, also where the partner stayed where it was.
    """
    path = f"/partners/{quote(partner, safe='')}"
    until = time.monotonic() + wait_s
    at_once_s = min(wait_s, limits.MOVE_WAIT_S_MAX)
    found = client.ask(folder, "POST", f"{path}/move", {"to": to, "wait_s": at_once_s})
    while not found["ended"] and time.monotonic() < until:
        told(f"{partner}: {found.get('state')}, attempt {found.get('attempt', 1)}. {found.get('why') or ''}")
        time.sleep(limits.MOVE_LOOK_INTERVAL_MS / 1_000)
        running = [move for move in client.ask(folder, "GET", "/moves")["moves"] if move["partner"] == partner]
        found = {**running[0], "ended": False} if running else _ended(client.ask(folder, "GET", path))
    return found


def _ended(shown: dict[str, Any]) -> dict[str, Any]:
    change = next((change for change in shown["changes"] if change["what"] in _ENDS), None)
    if change is None:
        raise ControlPlaneError("the move's end can't be read now", hint="see it with `bulkhead partner show`")
    if change["what"] == "partner_not_moved":
        raise ControlPlaneError(
            f"the partner stays in {change['detail']['source']}: {change['detail']['why']}",
            hint="nothing is lost; ask again once that is mended",
        )
    return {**change["detail"], "ended": True}
