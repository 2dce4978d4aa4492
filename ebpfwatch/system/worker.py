"""A thread for what may hang: a disk that died, a file system that is frozen.

The loop that reads the kernel's events must never wait for either; it would be blind, and no
watchdog could kill a task in uninterruptible sleep.
"""

from __future__ import annotations

import collections
import threading
import time
from typing import Callable

from ebpfwatch.system.log import defect, say

__all__ = ["Worker"]


class Worker:
    """Does jobs one after the other, in their order; bounded.

    A job handles its own errors; a defect in it costs that job and a line in the log, not those
    that wait.  The thread starts with the first job, so that it has no more
    privileges than its maker has by then.
    """

    def __init__(self, name: str, capacity: int = 64) -> None:
        self._name = name
        self._capacity = capacity
        self._jobs: collections.deque[Callable[[], None]] = collections.deque()
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._busy = False

    def submit(self, job: Callable[[], None]) -> bool:
        """Whether it will be done; False if too many are waiting already."""
        with self._condition:
            if len(self._jobs) >= self._capacity:
                return False
            self._jobs.append(job)
            self._condition.notify_all()
            self._ensure()
        return True

    def tend(self) -> None:
        """Try again to start the thread, where that failed and something waits."""
        with self._condition:
            if self._jobs:
                self._ensure()

    def _ensure(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the limit of tasks; the job waits for the next try
                return
            self._thread = thread

    def finish(self, seconds: float) -> bool:
        """Wait for what is waiting; False if that takes longer."""
        deadline = time.monotonic() + seconds
        with self._condition:
            while self._jobs or self._busy:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._condition.wait(left)
        return True

    def _work(self) -> None:
        while True:
            with self._condition:
                self._busy = False
                self._condition.notify_all()
                while not self._jobs:
                    self._condition.wait()
                job = self._jobs.popleft()
                self._busy = True
            try:
                job()
            except Exception as error:
                say(f"a job of the thread {self._name} failed: {defect(error)}", "err")
