"""What takes a fault away again: a stack of steps, each done once, whoever asks first and however often."""

import threading
from collections.abc import Callable


class Undo:
    """The steps that are still to be done. The newest is done first; one that fails does not keep the others."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], None]]] = []
        self._one_at_a_time = threading.RLock()
        self.failed: list[str] = []

    def add(self, name: str, step: Callable[[], None]) -> None:
        """Take note of a step, before the fault that it takes away is made."""
        with self._one_at_a_time:
            self._steps.append((name, step))

    def all(self) -> list[str]:
        """Do what is left to be done; give the names. What failed stands in `failed`."""
        done = []
        with self._one_at_a_time:
            while self._steps:
                name, step = self._steps.pop()
                try:
                    step()
                except Exception as error:  # noqa: BLE001 - told in the report; the other steps are done all the same
                    self.failed.append(f"{name}: {type(error).__name__}: {error}")
                else:
                    done.append(name)
        return done
