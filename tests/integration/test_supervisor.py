"""The supervisor as a process of its own, killed and started again, over stand-in children (tests/stand_in_up.py)."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from control_plane import client, data_folder, limits, opening
from control_plane.data_folder import DataFolder
from control_plane.errors import NotRunningError, RefusedError
from control_plane.process_table import MARKER, read_marker, read_start_ticks
from control_plane.settings import Settings

WAIT_S = 20.0


class Up:
    """One `up` in a process group of its own, and what it prints."""

    def __init__(self, root: Path, children: tuple[str, ...]) -> None:
        self.root = root
        self._output = root.parent / f"up-{time.monotonic_ns()}.out"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.stand_in_up", str(root), *children],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self) -> str:
        return self._output.read_text()

    def wait_ready(self) -> None:
        eventually(lambda: "ALL READY" in self.output() or self.process.poll() is not None)
        assert "ALL READY" in self.output(), self.output()

    def states(self) -> dict[str, dict[str, Any]]:
        rows = client.ask(DataFolder(self.root), "GET", "/status")["processes"]
        return {row["process"]: row for row in rows}


def eventually(condition: Callable[[], bool], within_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits for its parent to notice does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def started_ticks(pid: int) -> int:
    ticks = read_start_ticks(pid)
    assert ticks is not None
    return ticks


def answering_pid(port: int) -> int | None:
    try:
        return int(httpx.get(f"http://127.0.0.1:{port}/livez", timeout=0.5).text)
    except (httpx.HTTPError, ValueError):
        return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Scene:
    """One data folder, whatever ran on it, and bystanders that nobody may touch."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "data"
        self.folder = DataFolder(self.root)
        self._ups: list[Up] = []
        self._bystanders: list[subprocess.Popen[bytes]] = []

    def up(self, *children: str) -> Up:
        started = Up(self.root, children)
        self._ups.append(started)
        return started

    def bystander(self, marker: str | None) -> int:
        environment = dict(os.environ) | ({MARKER: marker} if marker is not None else {})
        process = subprocess.Popen(["sleep", "600"], env=environment, start_new_session=True)
        self._bystanders.append(process)
        return process.pid

    @property
    def instance_id(self) -> str:
        instance = data_folder.read_instance(self.folder)
        assert instance is not None
        return instance.id

    def marked(self) -> list[int]:
        """Pids of everything that carries this installation's marker."""
        pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        prefix = f"{self.instance_id}/"
        return [pid for pid in pids if is_alive(pid) and (read_marker(pid) or "").startswith(prefix)]

    def starts(self, name: str) -> list[tuple[int, float]]:
        with contextlib.suppress(FileNotFoundError):
            lines = (self.root.parent / f"{name}.starts").read_text().splitlines()
            return [(int(pid), float(at)) for pid, at in map(str.split, lines)]
        return []

    def close(self) -> None:
        for started in self._ups:
            if started.process.poll() is None:
                started.process.kill()
            started.process.wait()
        if self.folder.instance_file.exists():
            for pid in self.marked():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in self._bystanders:
            process.kill()
            process.wait()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.close()


def test_a_crashed_process_is_started_again(scene: Scene) -> None:
    port, other = free_port(), free_port()
    up = scene.up(f"victim:{port}:plain", f"neighbour:{other}:plain")
    up.wait_ready()
    first, neighbour = answering_pid(port), answering_pid(other)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    eventually(lambda: answering_pid(port) not in {None, first})
    eventually(lambda: up.states()["victim"]["health"] == "ready")
    assert up.states()["victim"]["restarts"] == 1
    assert "victim it was ended by SIGKILL; starting it again in 0.2 s" in up.output()
    assert answering_pid(other) == neighbour
    assert up.states()["neighbour"]["restarts"] == 0


def test_one_that_keeps_crashing_is_started_ever_less_often(scene: Scene) -> None:
    port = free_port()
    scene.up(f"hopeless:{port}:crashing")
    eventually(lambda: len(scene.starts("hopeless")) >= 5)
    times = [at for _, at in scene.starts("hopeless")]
    pauses = [after - before for before, after in itertools.pairwise(times)]
    for number, pause in enumerate(pauses[:4]):
        assert pause >= limits.RESTART_DELAY_MS_MIN / 1000 * 2**number


def test_a_stopped_process_is_replaced(scene: Scene) -> None:
    port = free_port()
    up = scene.up(f"victim:{port}:plain")
    up.wait_ready()
    first = answering_pid(port)
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    eventually(lambda: answering_pid(port) not in {None, first})
    assert not is_alive(first)
    assert "it was stopped for 1 s and was killed" in up.output()


def test_a_process_that_is_stopped_for_a_moment_is_left_alone(scene: Scene) -> None:
    port = free_port()
    up = scene.up(f"victim:{port}:plain")
    up.wait_ready()
    first = answering_pid(port)
    assert first is not None
    for _ in range(3):
        os.kill(first, signal.SIGSTOP)
        time.sleep(0.4)
        os.kill(first, signal.SIGCONT)
        time.sleep(0.3)
    assert answering_pid(port) == first
    assert up.states()["victim"]["restarts"] == 0


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (signal.SIGKILL, "a process of its own ended, so it was killed"),
        (signal.SIGSTOP, "it was stopped for 1 s and was killed"),
    ],
)
def test_a_process_is_replaced_when_a_part_of_it_ends_or_is_stopped(
    scene: Scene, number: signal.Signals, why: str
) -> None:
    port = free_port()
    up = scene.up(f"whole:{port}:parted")
    up.wait_ready()
    first = answering_pid(port)
    part = int((scene.root.parent / "whole.starts.grandchild").read_text())
    time.sleep(1.0)  # its parts are looked for now and then
    os.kill(part, number)
    eventually(lambda: answering_pid(port) not in {None, first})
    assert why in up.output()
    assert not is_alive(part)


def test_a_part_that_its_process_starts_again_is_left_to_it(scene: Scene) -> None:
    port = free_port()
    up = scene.up(f"whole:{port}:mending")
    up.wait_ready()
    first = answering_pid(port)

    def part() -> int:
        return int((scene.root.parent / "whole.starts.grandchild").read_text() or 0)

    before = part()
    time.sleep(1.0)  # its parts are looked for now and then
    os.kill(before, signal.SIGKILL)
    eventually(lambda: part() not in {0, before})
    eventually(lambda: "its sleep ended and is started again by it" in up.output())
    before = part()
    time.sleep(1.0)
    os.kill(before, signal.SIGSTOP)  # it would never do anything again
    eventually(lambda: part() not in {0, before})
    assert not is_alive(before)
    assert answering_pid(port) == first
    assert up.states()["whole"]["restarts"] == 0


def test_an_installation_that_listens_beyond_its_settings_is_refused(scene: Scene) -> None:
    port, wide = free_port(), free_port()
    up = scene.up(f"narrow:{port}:plain", f"open:{wide}:wide")
    assert up.process.wait(WAIT_S) == RefusedError.exit_code
    assert "REFUSED open (pid" in up.output()
    assert "listens on 0.0.0.0:" in up.output()
    assert "ALL READY" not in up.output()
    assert scene.marked() == [], "what it started is ended"


def test_a_process_that_answers_nobody_is_replaced(scene: Scene) -> None:
    port = free_port()
    up = scene.up(f"victim:{port}:plain")
    up.wait_ready()
    first = answering_pid(port)
    httpx.post(f"http://127.0.0.1:{port}/hang", timeout=5)
    eventually(lambda: answering_pid(port) not in {None, first})
    assert "did not answer for 1.5 s and was killed" in up.output()


def test_a_process_that_answers_nobody_because_it_works_is_left_alone(scene: Scene) -> None:
    port = free_port()
    up = scene.up(f"busy:{port}:plain")
    up.wait_ready()
    first = answering_pid(port)
    httpx.post(f"http://127.0.0.1:{port}/spin", timeout=5)
    eventually(lambda: up.states()["busy"]["health"] == "silent")
    eventually(lambda: up.states()["busy"]["health"] == "ready")
    assert answering_pid(port) == first
    assert up.states()["busy"]["restarts"] == 0


def test_a_supervisor_that_was_stopped_itself_accuses_nobody(scene: Scene) -> None:
    children = [f"child_{index}:{free_port()}:plain" for index in range(4)]
    up = scene.up(*children)
    up.wait_ready()
    for _ in range(2):
        up.process.send_signal(signal.SIGSTOP)
        time.sleep(2.5)  # longer than a silent process is given
        up.process.send_signal(signal.SIGCONT)
        time.sleep(1.0)
    assert [row["restarts"] for row in up.states().values()] == [0] * 5


def test_what_needs_another_is_started_after_it_and_again_when_it_ends(scene: Scene) -> None:
    port, other, third = free_port(), free_port(), free_port()
    up = scene.up(f"ground:{port}:plain", f"house:{other}:plain:ground", f"tree:{third}:plain")
    up.wait_ready()
    ((ground, _),) = scene.starts("ground")
    ((house, _),) = scene.starts("house")
    assert started_ticks(house) >= started_ticks(ground)
    ((tree, _),) = scene.starts("tree")
    os.kill(ground, signal.SIGKILL)
    eventually(lambda: len(scene.starts("house")) == 2 and up.states()["house"]["health"] == "ready")
    eventually(lambda: len(scene.starts("ground")) == 2)
    assert not is_alive(house)
    assert started_ticks(scene.starts("house")[1][0]) >= started_ticks(scene.starts("ground")[1][0])
    assert "house ended, for ground ended" in up.output()
    assert answering_pid(third) == tree, "what does not need it goes on"


def test_processes_outlive_a_killed_supervisor_and_the_next_one_adopts_them(scene: Scene) -> None:
    port, other = free_port(), free_port()
    children = (f"one:{port}:plain", f"two:{other}:stubborn")
    up = scene.up(*children)
    up.wait_ready()
    before = answering_pid(port), answering_pid(other)
    up.process.kill()
    up.process.wait()
    assert (answering_pid(port), answering_pid(other)) == before
    with pytest.raises(NotRunningError, match="does not listen"):
        up.states()

    again = scene.up(*children)
    again.wait_ready()
    states = again.states()
    assert (states["one"]["pid"], states["two"]["pid"]) == before
    assert states["one"]["adopted"] is True
    assert len(scene.starts("one")) == len(scene.starts("two")) == 1
    # It is no child of the new supervisor, and watched all the same.
    assert before[0] is not None
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: answering_pid(port) not in {None, before[0]})
    assert answering_pid(other) == before[1]


def test_what_needs_another_is_not_adopted_without_it(scene: Scene) -> None:
    port, other = free_port(), free_port()
    children = (f"ground:{port}:plain", f"house:{other}:plain:ground")
    up = scene.up(*children)
    up.wait_ready()
    ground, house = answering_pid(port), answering_pid(other)
    up.process.kill()
    up.process.wait()
    assert ground is not None
    assert house is not None
    os.kill(ground, signal.SIGKILL)
    again = scene.up(*children)
    again.wait_ready()
    assert not is_alive(house)
    assert [row["adopted"] for name, row in again.states().items() if name in {"ground", "house"}] == [False, False]


def test_leftovers_are_swept_by_their_marker_and_nothing_else_is_touched(scene: Scene) -> None:
    port = free_port()
    up = scene.up(f"kept:{port}:plain", f"changed:{free_port()}:stubborn", f"dropped:{free_port()}:plain")
    up.wait_ready()
    kept, changed = (up.states()[name]["pid"] for name in ("kept", "changed"))
    grandchild = int((scene.root.parent / "changed.starts.grandchild").read_text())
    dropped = up.states()["dropped"]["pid"]
    up.process.kill()
    up.process.wait()
    stranger = scene.bystander(marker=None)
    other_installation = scene.bystander(marker="0123456789abcdef/kept")
    leftover = scene.bystander(marker=f"{scene.instance_id}/kept.worker")

    again = scene.up(f"kept:{port}:plain", f"changed:{free_port()}:plain")
    again.wait_ready()
    assert again.states()["kept"]["pid"] == kept
    assert [is_alive(pid) for pid in (changed, grandchild, dropped, leftover)] == [False] * 4
    assert [is_alive(pid) for pid in (stranger, other_installation)] == [True, True]


def test_a_pid_that_was_given_to_another_process_is_neither_adopted_nor_killed(scene: Scene) -> None:
    children = (f"one:{free_port()}:plain", f"two:{free_port()}:plain")
    up = scene.up(*children)
    up.wait_ready()
    for name in ("one", "two"):
        os.kill(up.states()[name]["pid"], signal.SIGSTOP)  # so that none of them is started again meanwhile
    up.process.kill()
    up.process.wait()
    stranger = scene.bystander(marker=None)
    impostor = scene.bystander(marker=f"{scene.instance_id}/two")
    rewrite_record(scene, "one", pid=stranger, start_time=read_start_ticks(stranger))
    rewrite_record(scene, "two", pid=impostor, start_time=1)

    again = scene.up(*children)
    again.wait_ready()
    assert again.states()["one"]["adopted"] is False
    assert again.states()["two"]["adopted"] is False
    assert is_alive(stranger), "it has the pid and the start time, but not our marker"
    assert not is_alive(impostor), "it has our marker, so it is ours to sweep; its start time says that it is another"


def rewrite_record(scene: Scene, name: str, **changed: int | None) -> None:
    file = scene.folder.run / f"{name}.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | changed))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_being_told_to_stop_leaves_none_behind(scene: Scene, number: signal.Signals) -> None:
    up = scene.up(f"one:{free_port()}:stubborn", f"two:{free_port()}:plain")
    up.wait_ready()
    grandchild = int((scene.root.parent / "one.starts.grandchild").read_text())
    assert is_alive(grandchild)
    assert len(scene.marked()) == 3
    up.process.send_signal(number)
    assert up.process.wait(WAIT_S) == 0
    assert scene.marked() == []
    assert not is_alive(grandchild)
    assert not (scene.folder.run / "one.json").exists()
    assert not scene.folder.control_socket.exists()
    assert "nothing is left running" in up.output()


def test_a_second_ctrl_c_waits_for_nobody(scene: Scene) -> None:
    up = scene.up(*(f"slow_{index}:{free_port()}:stubborn" for index in range(4)))
    up.wait_ready()
    began = time.monotonic()
    up.process.send_signal(signal.SIGINT)
    eventually(lambda: "stopping" in up.output())
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(WAIT_S) == 0
    assert time.monotonic() - began < 4.0, "four stages of a second each were not waited for"
    assert scene.marked() == []


def test_stopping_while_it_starts_leaves_none_behind(scene: Scene) -> None:
    up = scene.up(f"never:{free_port()}:crashing", f"waiting:{free_port()}:plain:never")
    eventually(lambda: bool(scene.starts("never")))
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(WAIT_S) == 0
    assert scene.marked() == []


def test_a_second_up_on_the_same_data_is_refused_and_harms_nothing(scene: Scene) -> None:
    port = free_port()
    up = scene.up(f"one:{port}:plain")
    up.wait_ready()
    pid = answering_pid(port)
    second = scene.up(f"one:{port}:plain")
    assert second.process.wait(WAIT_S) == 2
    assert f"REFUSED another `bulkhead up` uses this data folder (pid {up.process.pid}" in second.output()
    assert answering_pid(port) == pid
    assert up.states()["one"]["restarts"] == 0


def open_elsewhere(scene: Scene) -> None:
    """Own the registry as a control plane on a copy of the data would: with its own lock, on the same book."""

    async def own() -> None:
        settings = Settings(data_folder=scene.root, cells=1)
        instance = data_folder.require_instance(scene.folder)
        registry = await opening.open_registry(settings, scene.folder, instance, first_start=False)
        await registry.close()

    asyncio.run(own())


def test_an_up_whose_registry_was_taken_over_ends_and_leaves_the_processes(scene: Scene) -> None:
    port = free_port()
    up = scene.up(f"one:{port}:plain")
    up.wait_ready()
    pid = answering_pid(port)
    open_elsewhere(scene)
    assert up.process.wait(WAIT_S) == 1, "it finds out by itself, without being asked for anything"
    assert "REFUSED another control plane took the registry over (pid " in up.output()
    assert answering_pid(port) == pid
    again = scene.up(f"one:{port}:plain")
    again.wait_ready()
    assert again.states()["one"]["adopted"] is True


def test_a_lost_registry_is_an_error_and_never_an_empty_one(scene: Scene) -> None:
    port = free_port()
    up = scene.up(f"one:{port}:plain")
    up.wait_ready()
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(WAIT_S) == 0
    scene.folder.registry_file.rename(scene.root / "elsewhere")
    second = scene.up(f"one:{port}:plain")
    assert second.process.wait(WAIT_S) == 2
    assert "REFUSED the registry of partners can't be opened" in second.output()
    assert not scene.folder.registry_file.exists()
    assert len(scene.starts("one")) == 1, "nothing was started"


def test_a_port_that_somebody_else_has_is_said_at_once(scene: Scene) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        up = scene.up(f"one:{port}:plain")
        assert up.process.wait(WAIT_S) == 2
        assert f"REFUSED one can't listen on 127.0.0.1:{port}: Address already in use" in up.output()
    assert scene.marked() == []


def test_a_data_folder_may_lie_deeper_than_a_sockets_name_is_long(tmp_path: Path) -> None:
    scene = Scene(tmp_path / ("deep" * 20) / ("deeper" * 20))
    scene.root.parent.mkdir(parents=True)
    try:
        up = scene.up(f"one:{free_port()}:plain")
        up.wait_ready()
        assert up.states()["control_plane"]["pid"] == up.process.pid
        assert scene.folder.control_socket.stat().st_mode & 0o777 == 0o600
    finally:
        scene.close()
