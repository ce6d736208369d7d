"""How a process is started: under which command and environment. What the command does is launch.py. Starts nothing."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from control_plane import launch
from control_plane.data_folder import DataFolder
from control_plane.processes import ProcessSpec
from control_plane.settings import PREFIX
from control_plane.users import code_paths, launch_command


def command(spec: ProcessSpec, folder: DataFolder) -> tuple[str, ...]:
    """Return the command of a process: its own, after what makes it another user's."""
    if spec.uid is None:
        return spec.argv
    owned = tuple(map(str, spec.owns)) + (() if spec.scratch is None else (str(spec.scratch),))
    visible = (*code_paths(), str(folder.root), *map(str, spec.foreign), *_preloaded())
    return (*launch_command(launch.Order(spec.uid, visible, owned)), *spec.argv)


def environment(spec: ProcessSpec, ours: Mapping[str, str]) -> dict[str, str]:
    """Return a process's environment: ours without the settings, which its configuration has, and with what is its own.

    Ray and others ask for a user's name and home, which one without a line in /etc/passwd has from here only.
    """
    kept = {name: value for name, value in ours.items() if not name.upper().startswith(PREFIX)}
    if spec.uid is None:
        return {**kept, **spec.environment}
    name = spec.cell or spec.role
    own = {"HOME": str(spec.owns[0]), "USER": name, "LOGNAME": name, "PYTHONNOUSERSITE": "1"}
    return {**kept, **own, **spec.environment}


def _preloaded() -> Iterator[str]:
    """Name the folders of libraries that the environment has every program load (ld.so(8))."""
    for path in os.environ.get("LD_PRELOAD", "").replace(":", " ").split():
        if path.startswith("/"):
            yield str(Path(path).parent)
