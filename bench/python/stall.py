"""How long the machine itself did not run: what a virtual machine's host takes from it, no test can ask of a program.

As a program it writes a line for each such time until it is ended: at which second of the clock, which processor, for how many seconds."""

import multiprocessing
import os
import time

INTERVAL_S = 0.01
WORTH_TELLING_S = 0.1


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


def pauses(cpu):
    """How much longer each short sleep took than it should, in seconds."""
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    parent, before = os.getppid(), time.monotonic()
    while os.getppid() == parent:
        time.sleep(INTERVAL_S)
        now = time.monotonic()
        yield now - before - INTERVAL_S
        before = now


def watch(cpu, longest):
    for pause in pauses(cpu):
        longest[cpu] = max(longest[cpu], pause)


def tell(cpu):
    for pause in pauses(cpu):
        if pause >= WORTH_TELLING_S:
            print(f"{time.time():.0f} cpu{cpu} {pause:.3f}", flush=True)


def main():
    watchers = [multiprocessing.Process(target=tell, args=(cpu,), daemon=True) for cpu in os.sched_getaffinity(0)]
    for watcher in watchers:
        watcher.start()
    for watcher in watchers:
        watcher.join()


if __name__ == "__main__":
    main()
