"""The mark outlives its worker by any death, names its process, and only the command in it is suspected."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from cells.api import limits
from cells.poison import Growth, Mark, Marker, Suspects, open_process, read_growth, read_mark, read_ports

ULID = "01JDA8Z3W8QK4ZV0M5T7R2X9YB"
DIES_WHILE_DECIDING = """
import os, signal, sys
from pathlib import Path
from cells.poison import Marker
marker = Marker(Path(sys.argv[1]))
marker.executing("alpha", "01JDAEARLIER0000000000000B")
marker.executing("alpha", "")
marker.executing("alpha", sys.argv[2])
print("deciding", flush=True)
signal.pause()
"""


def test_the_mark_outlives_its_worker_and_names_its_process(tmp_path: Path) -> None:
    path = tmp_path / "mark"
    with subprocess.Popen([sys.executable, "-c", DIES_WHILE_DECIDING, path, ULID], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = open_process(path)
        assert found is not None
        pid, pidfd = found
        assert pid == process.pid
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        assert process.wait() == -signal.SIGKILL
    assert read_mark(path) == Mark(ULID, "alpha")
    assert open_process(path) is None


def test_what_was_decided_is_not_suspected(tmp_path: Path) -> None:
    marker = Marker(tmp_path / "mark")
    assert read_mark(tmp_path / "mark") is None
    marker.executing("alpha", ULID)
    assert read_mark(tmp_path / "mark") == Mark(ULID, "alpha")
    marker.executing("alpha", "short")
    assert read_mark(tmp_path / "mark") == Mark("short", "alpha")
    marker.executing("alpha", "")
    assert read_mark(tmp_path / "mark") is None
    marker.close()


def test_with_whom_the_worker_grew_stands_beside_everything_else(tmp_path: Path) -> None:
    marker, path = Marker(tmp_path / "mark"), tmp_path / "mark"
    marker.listens(65_535, 65_534)
    assert read_growth(path) is None
    marker.executing("alpha", ULID)
    for growth in (Growth("b" * limits.PARTNER_ID_BYTES_MAX, 10**15), Growth("beta", 1)):
        marker.grew(growth)
        assert read_growth(path) == growth
    assert (read_mark(path), read_ports(path)) == (Mark(ULID, "alpha"), (65_535, 65_534))
    assert open_process(path) is not None
    marker.grew(Growth("", 0))
    assert read_growth(path) is None


def test_the_longest_command_id_fits_and_leaves_the_process_alone(tmp_path: Path) -> None:
    marker = Marker(tmp_path / "mark")
    longest = "c" * limits.COMMAND_ID_BYTES_MAX
    marker.executing("alpha", longest)
    assert read_mark(tmp_path / "mark") == Mark(longest, "alpha")
    found = open_process(tmp_path / "mark")
    assert found is not None
    os.close(found[1])
    marker.close()


def test_another_process_with_the_same_number_is_not_taken_for_it(tmp_path: Path) -> None:
    path = tmp_path / "mark"
    Marker(path).close()
    command, process = path.read_bytes()[:128], path.read_bytes()[128:].rstrip(b"\0")
    pid, started, boot = process.split()
    for other in (b"%d %b" % (int(started) + 1, boot), b"%b %b" % (started, boot[::-1])):
        path.write_bytes(command + pid + b" " + other)
        assert open_process(path) is None


def test_a_mark_that_is_missing_or_damaged_accuses_nobody(tmp_path: Path) -> None:
    assert read_mark(tmp_path / "missing") is None
    assert open_process(tmp_path / "missing") is None
    (tmp_path / "damaged").write_bytes(b"\xff" * 192)
    assert read_mark(tmp_path / "damaged") is None
    assert open_process(tmp_path / "damaged") is None
    (tmp_path / "empty").touch()
    assert read_mark(tmp_path / "empty") is None
    assert open_process(tmp_path / "empty") is None


def test_the_second_death_quarantines_that_command_and_no_other() -> None:
    suspects = Suspects()
    assert not suspects.any
    assert suspects.accuse("bad") == 1
    assert suspects.accuse("unlucky") == 1
    assert suspects.any
    assert not suspects.is_quarantined("bad")
    assert suspects.accuse("bad") == limits.POISON_DEATHS_MAX
    assert suspects.is_quarantined("bad")
    assert not suspects.is_quarantined("unlucky")
    assert not suspects.is_quarantined("never seen")


def test_suspects_are_bounded_and_the_oldest_is_forgotten() -> None:
    suspects = Suspects()
    for _ in range(limits.POISON_DEATHS_MAX):
        suspects.accuse("first")
    for number in range(limits.POISON_COMMANDS_REMEMBERED_MAX):
        suspects.accuse(f"other {number}")
    assert not suspects.is_quarantined("first")
    assert len(suspects._deaths) == limits.POISON_COMMANDS_REMEMBERED_MAX


def test_a_command_is_known_again_by_its_idempotency_key() -> None:
    suspects = Suspects()
    suspects.meet("c0", "alpha", "key")
    assert not suspects.any
    suspects.accuse("c1")
    suspects.meet("c1", "alpha", "key")  # as it is sent the second time
    suspects.meet("c2", "alpha", "key")
    suspects.meet("c3", "beta", "key")  # another partner's key of the same name
    suspects.accuse("c2")
    suspects.meet("c4", "alpha", "key")
    assert [suspects.is_quarantined(name) for name in ("c1", "c2", "c3", "c4")] == [False, True, False, True]
    suspects.meet("c1", "alpha", "key")
    assert suspects.is_quarantined("c1")
    for number in range(2 * limits.POISON_COMMANDS_REMEMBERED_MAX):
        suspects.meet(f"again {number}", "alpha", "key")
    assert len(suspects._deaths) == len(suspects._keys) == limits.POISON_COMMANDS_REMEMBERED_MAX
