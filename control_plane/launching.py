"""How a process is started: under which command and environment. What the command does is launch.py. Starts nothing."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from control_plane import launch
from control_plane.processes import ProcessSpec
from control_plane.settings import PREFIX
from control_plane.users import code_paths, launch_command


def command(spec: ProcessSpec, *, landlock: bool) -> tuple[str, ...]:
    """Return the command of a process: its own, after what takes rights from it."""
    order = launch.Order(
        uid=spec.uid,
        runs=(*code_paths(), *_preloaded()),
        reads=tuple(map(str, (spec.config_file, *spec.reads, *spec.foreign))),
        owns=tuple(map(str, (*spec.owns, *spec.uses))),
        landlock=landlock,
        may_signal=spec.role == "door",  # it ends its workers, which are Ray's children and not its own
    )
    return (*launch_command(order), *spec.argv)


def environment(spec: ProcessSpec, ours: Mapping[str, str]) -> dict[str, str]:
    """Return a process's environment: ours without the settings, which its configuration has, and with what is its own.

    Ray and others ask for a user's name and home, which one without a line in /etc/passwd has from here only.
    """
    kept = {name: value for name, value in ours.items() if not name.upper().startswith(PREFIX)}
    if not spec.owns:
        return {**kept, **spec.environment}
    name = spec.cell or spec.role
    home = str(spec.owns[0])
    temporary = home if spec.scratch is None else str(spec.scratch)
    own = {"HOME": home, "USER": name, "LOGNAME": name, "TMPDIR": temporary, "PYTHONNOUSERSITE": "1"}
    return {**kept, **own, **spec.environment}


def _preloaded() -> Iterator[str]:
    """Name the folders of libraries that the environment has every program load (ld.so(8))."""
    for path in os.environ.get("LD_PRELOAD", "").replace(":", " ").split():
        if path.startswith("/"):
            yield str(Path(path).parent)
