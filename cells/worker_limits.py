"""What a worker's process may take, as the kernel holds it to it: memory, files, no core dumps. A hog hits them first.

They are set above what Ray has taken by then, which depends on the machine. Memory has two bounds: the door ends a
worker whose heartbeat tells too much (workforce.py); this one is for what grows faster than hearts beat.
"""

import os
import resource
import signal
import threading
from typing import Final, NoReturn

import structlog

from cells import cpu_share, limits, process_use, worker_cgroup
from cells.process_use import ProcessUse

log = structlog.get_logger()

# Less than any core dump has, which could hold what partners sent. Not 0: a crash handler (core(5), a pipe) would be
# given one all the same, but not where the kernel meets this number.
_CORE_BYTES: Final = 1


def apply(name: str, *, with_memory: bool) -> None:
    """Bound this process from now on, for good. To be called before the worker's own threads are started."""
    _share_cpu_by_worker()
    use = ProcessUse()
    worker_cgroup.join(name, with_memory=with_memory, threads=use.threads())
    use.close()
    # A thread's stack counts as a whole against the bound, and the default of 8 MiB takes a pool's for its threads.
    threading.stack_size(limits.WORKER_STACK_BYTES)
    _bound(resource.RLIMIT_CORE, _CORE_BYTES)
    files = _bound(resource.RLIMIT_NOFILE, process_use.open_files() + limits.WORKER_FILES_MAX)
    data_bytes = None
    if with_memory:
        data_bytes = _bound(resource.RLIMIT_DATA, process_use.data_bytes() + limits.WORKER_DATA_BYTES_MAX)
    log.info("worker_bounded", data_bytes_max=data_bytes, files_max=files)


def end_out_of_memory() -> NoReturn:
    """End the process as a death does: at once, and its mark names the command that was being decided.

    What is out of memory can't be trusted with the next payment. It takes no memory to speak of, and no cleaning up.
    """
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a process outlived its SIGKILL")


def _share_cpu_by_worker() -> None:
    """Have the kernel share CPU among workers and not among their threads, and let door and router go first.

    Linux gives each session a share (sched(7), autogroup): in Ray's a loop takes its neighbours', in its own its own.
    The session's niceness says how large that is beside others'. Where sessions don't count, the thread's own niceness
    does: it holds for this thread and those that it starts.
    """
    if os.getpgrp() == os.getpid():
        os.setpgid(0, os.getpgid(os.getppid()))  # who leads a process group can't begin a session
    os.setsid()
    os.nice(limits.WORKER_NICENESS)
    cpu_share.give_way()


def _bound(what: int, most: int) -> int:
    """Set a bound that nobody can raise again, where there is none below it; give what holds."""
    _, hard = resource.getrlimit(what)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(what, (most, most))
    return most
