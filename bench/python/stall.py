"""How long the machine itself did not run: what a virtual machine's host takes from it, no test can ask of a program.

As a program it writes a line for each such time until it is ended: at which second of the clock, which processor, for how many seconds."""

import multiprocessing
import os
import time

INTERVAL_S = 0.01
WORTH_TELLING_S = 0.1
# Of a processor; a test has far fewer.
KEPT_MAX = 10_000


class Stalls:
    """Watches each processor, before all ordinary work there, until `stop`. Times are those of `time.monotonic`."""

    def __init__(self):
        # Of each processor how many there were, and when each began and ended. Only its watcher writes, and nobody waits for a lock: that
        # would look like one.
        self.books = [multiprocessing.RawArray("d", 1 + 2 * KEPT_MAX) for _ in os.sched_getaffinity(0)]
        pairs = zip(sorted(os.sched_getaffinity(0)), self.books)
        self.watchers = [multiprocessing.Process(target=watch, args=pair, daemon=True) for pair in pairs]
        for watcher in self.watchers:
            watcher.start()
        self.begin()

    def begin(self):
        """Forgets what was."""
        self.since = time.monotonic()

    def seconds(self):
        """The longest since `begin` in which a processor did nothing for us."""
        return max((end - begin for begin, end in self.all()), default=0.0)

    def all(self, seconds_min=0.0):
        """Beginning and end of those since `begin` that were at least so long."""
        pairs = [pair for book in self.books for pair in zip(book[1 : 1 + 2 * min(int(book[0]), KEPT_MAX) : 2], book[2::2])]
        return sorted((begin, end) for begin, end in pairs if end > self.since and end - begin >= seconds_min)

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


def watch(cpu, book):
    for pause in pauses(cpu):
        if pause >= INTERVAL_S:
            number, now = int(book[0]), time.monotonic()
            at = 1 + 2 * (number % KEPT_MAX)
            book[at], book[at + 1] = now - pause, now
            book[0] = number + 1


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
