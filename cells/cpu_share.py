"""How large a share of the CPU this process's session has beside others: workers and Ray give way to door and router.

Linux shares CPU by session (sched(7), autogroup) where it is not shared by control group; niceness of threads counts
within one only. Where sessions don't count, nothing happens here.
"""

import time
from pathlib import Path
from typing import Final

import structlog

from cells import limits

log = structlog.get_logger()

_SESSION: Final = Path("/proc/self/autogroup")


def give_way() -> None:
    """Give this process's session a third of the weight that others have. It has to be a session of its own."""
    for _ in range(limits.SESSION_NICENESS_ATTEMPTS):
        try:
            _SESSION.write_text(str(limits.WORKER_NICENESS))
        except FileNotFoundError:
            return
        except BlockingIOError:
            time.sleep(limits.SESSION_NICENESS_DELAY_MS / 1_000)  # the kernel takes ten a second, of all processes
        except OSError as error:
            log.warning("cpu_share_not_set", error=str(error))
            return
        else:
            return
    log.warning("cpu_share_not_set", error="the kernel was asked too often")
