"""Leaves out of `ray start` what a cell never asks: the dashboard's server and both agents. Runs inside `ray start`.

What is left out took 4 s of CPU at each start of a
cell, 400 MB, and a third of what an idle cell costs: for a dashboard that is off, metrics that are off, and runtime
environments that no worker has. Where Ray is built otherwise than known here, everything is left as it is.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any, Final

# The raylet insists on its agents and ends with them. What stands in for one waits for its end, and costs nothing.
_AGENT: Final = ("/bin/sh", "-c", "exec tail --pid=$PPID --sleep-interval=5 --follow /dev/null")
_AGENTS: Final = ("--dashboard_agent_command", "--runtime_env_agent_command")
# Where the agents would listen. The raylet waits for their word on ports that are 0; at 1 nobody ever answers.
_PORTS: Final = ("--metrics-agent-port", "--metrics_export_port", "--runtime_env_agent_port")
_PORT: Final = "1"
# This port has no argument: agents write it into a file.
_PORT_FILE: Final = "dashboard_agent_listen_port_{}"


def slim() -> None:
    """Change how this process starts Ray's. Imports Ray."""
    from ray._private import ray_constants, services  # noqa: PLC0415 - the environment comes first

    try:
        start, raylet = services.start_ray_process, ray_constants.PROCESS_TYPE_RAYLET
        services.start_api_server  # noqa: B018 - is it there?
    except AttributeError as error:
        sys.stderr.write(f"Ray is left as it is: {error}\n")
        return

    def start_ray_process(command: list[str], process_type: str, *others: Any, **named: Any) -> Any:
        if process_type == raylet:
            command = without_agents(command)
        return start(command, process_type, *others, **named)

    def start_api_server(*_others: Any, **_named: Any) -> tuple[None, None]:
        return None, None  # no URL, no process

    services.start_ray_process = start_ray_process
    services.start_api_server = start_api_server


def without_agents(command: list[str]) -> list[str]:
    """Give the raylet's command with stand-ins for its agents; as it is where it isn't as known here."""
    given = dict(word.partition("=")[::2] for word in command)
    known = (*_AGENTS, *_PORTS, "--session_dir", "--node_id")
    if any(name not in given for name in known):
        sys.stderr.write(f"Ray's agents are left: one of {known} is missing\n")
        return command
    changed = {name: subprocess.list2cmdline([*_AGENT, name.strip("-")]) for name in _AGENTS}
    changed |= dict.fromkeys(_PORTS, _PORT)
    (Path(given["--session_dir"]) / _PORT_FILE.format(given["--node_id"])).write_text(_PORT)
    return [f"{name}={changed[name]}" if (name := word.partition("=")[0]) in changed else word for word in command]
