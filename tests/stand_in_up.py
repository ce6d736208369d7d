"""A whole `bulkhead up` over small stand-ins: `python -m tests.stand_in_up DATA_FOLDER NAME:PORT:BEHAVIOUR[:NEEDS]...`.

Everything is the real one (lock, secrets, registry, supervisor, admin socket) but the children: loops that answer
/livez with their pid, and nobody any more after a POST (to /spin: for 2.5 s of CPU time). Behaviours: plain, stubborn
(ignores SIGTERM, has a grandchild in a session of its own), parted (is of no use without its child), mending (starts
its child again), wide (listens on all interfaces, too), crashing (ends at once with exit code 3). Some bounds are
shorter here, so that the tests needn't wait for them.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from control_plane import limits, up
from control_plane.data_folder import DataFolder, Instance
from control_plane.errors import ControlPlaneError
from control_plane.process_table import MARKER
from control_plane.processes import ProcessSpec, SecretsDigest
from control_plane.registry_records import Cell
from control_plane.settings import Settings

CHILD = """
import http.server, json, os, signal, socket, subprocess, sys, threading, time
config = json.load(open(sys.argv[1]))
with open(config["starts_file"], "a") as starts:
    starts.write(f"{os.getpid()} {time.monotonic()}\\n")
if config["behaviour"] == "crashing":
    sys.exit(3)
if config["behaviour"] in {"stubborn", "parted"}:
    if config["behaviour"] == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleeper = subprocess.Popen(["sleep", "600"], start_new_session=True)
    with open(config["starts_file"] + ".grandchild", "w") as file:
        file.write(str(sleeper.pid))
def mend():
    while True:
        sleeper = subprocess.Popen(["sleep", "600"])
        with open(config["starts_file"] + ".grandchild", "w") as file:
            file.write(str(sleeper.pid))
        sleeper.wait()
if config["behaviour"] == "mending":
    threading.Thread(target=mend, daemon=True).start()
if config["behaviour"] == "wide":
    wide = socket.create_server(("0.0.0.0", 0))
hanging, spinning = threading.Event(), threading.Event()
class Livez(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.command == "GET" and hanging.is_set():
            time.sleep(600)
        body = str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        (spinning if self.path == "/spin" else hanging).set()
        self.do_GET()
    def log_message(self, *arguments):
        return None
class Server(http.server.ThreadingHTTPServer):
    def service_actions(self):
        began = time.thread_time()
        while spinning.is_set() and time.thread_time() - began < 2.5:
            pass
        spinning.clear()
Server(("127.0.0.1", config["port"]), Livez).serve_forever()
"""


def stand_in_plan(
    _settings: Settings,
    folder: DataFolder,
    instance: Instance,
    _cells: Sequence[Cell],
    version: str,
    secrets_digest: SecretsDigest,
) -> tuple[ProcessSpec, ...]:
    """Give the children that were asked for, in place of an installation's."""
    specs = []
    for stage, wanted in enumerate(sys.argv[2:]):
        name, port, behaviour, *needs = wanted.split(":")
        config: dict[str, Any] = {
            "port": int(port),
            "behaviour": behaviour,
            "starts_file": str(folder.root.parent / f"{name}.starts"),
        }
        config_file = folder.run / f"{name}.config.json"
        identity = json.dumps([config, version, secrets_digest(None)])
        specs.append(
            ProcessSpec(
                name=name,
                role="router",
                cell=None,
                stage=stage,
                argv=(sys.executable, "-c", CHILD, str(config_file)),
                config=config,
                config_file=config_file,
                environment={MARKER: f"{instance.id}/{name}"},
                host="127.0.0.1",
                port=int(port),
                needs=tuple(needs),
                parts=("sleep",) if behaviour == "parted" else (),
                parts_started_again=("sleep",) if behaviour == "mending" else (),
                fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
                owns=(folder.root.parent,),
            )
        )
    return tuple(specs)


def main() -> int:
    """Run until told to stop."""
    for name, value in {
        "PROBE_INTERVAL_MS": 100,
        "PROBE_TIMEOUT_MS": 500,
        "UNRESPONSIVE_MS_MAX": 1_500,
        "BUSY_SILENT_MS_MAX": 15_000,
        "NEEDS_TIMEOUT_MS": 3_000,
        "STOP_TIMEOUT_MS": 1_000,
        "STATE_LOOK_INTERVAL_MS": 100,
    }.items():
        assert hasattr(limits, name)
        setattr(limits, name, value)

    def tell(*words: object) -> None:
        sys.stdout.write(" ".join(map(str, words)) + "\n")
        sys.stdout.flush()

    console = up.Console(tell, lambda spec, what: tell(spec.name, what), lambda *_: tell("ALL READY"))
    try:
        return up.run(Settings(data_folder=Path(sys.argv[1]), cells=1, first_uid=0), console, stand_in_plan)
    except ControlPlaneError as error:
        tell("REFUSED", error.what)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
