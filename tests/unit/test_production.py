"""What a production installation starts holds neither chaos tools nor fault injection."""

import subprocess
import sys

PROGRAM = """
import sys
import cells.door, cells.remote, cells.worker, control_plane.cli, control_plane.up, router.app
print([name for name in sys.modules if name.split(".")[0] in {"chaos", "chaoslib"} or name == "cells.fault_injection"])
"""


def test_no_process_loads_chaos_tools_or_fault_injection() -> None:
    loaded = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
