"""How long the machine itself did not run: what a virtual machine's host takes from it, no test can ask of a program."""

import multiprocessing
import os
import time

INTERVAL_S = 0.01


class Stalls:
    """Watches each processor, before all ordinary work there, until `stop`."""

    def __init__(self):
        self.longest = multiprocessing.Array("d", os.cpu_count())
        self.watchers = [multiprocessing.Process(target=watch, args=(cpu, self.longest), daemon=True) for cpu in os.sched_getaffinity(0)]
        for watcher in self.watchers:
            watcher.start()

    def begin(self):
        """Forgets what was."""
        self.longest[:] = [0.0] * len(self.longest)

    def seconds(self):
        """The longest since `begin` in which a processor did nothing for us."""
        return max(self.longest)

    def stop(self):
        for watcher in self.watchers:
            watcher.terminate()
            watcher.join()


def watch(cpu, longest):
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    before = time.monotonic()
    while True:
        time.sleep(INTERVAL_S)
        now = time.monotonic()
        longest[cpu] = max(longest[cpu], now - before - INTERVAL_S)
        before = now
