"""A network of the test's own, played by `pop-bench shaper`: a namespace per end, wires with delay, loss and the rest between them.
It goes away with `stop`, and also when this process dies."""

import contextlib
import ctypes
import json
import os
import subprocess

from node import PROGRAMS

CLONE_NEWNET = 0x4000_0000


class Network:
    """`ends`: from name to address, such as {"a": "10.77.0.1/24", "host": "@.10.77.0.2/24"}; "@." before the address means this
    namespace instead of one of its own. `wires`: as in `pop-bench shaper --wire`."""

    def __init__(self, ends, wires=(), seed=1):
        words = ["shaper", "--seed", str(seed)]
        for name, address in ends.items():
            words += ["--end", f"{name}@.={address[2:]}" if address.startswith("@.") else f"{name}={address}"]
        for wire in wires:
            words += ["--wire", wire]
        self.process = subprocess.Popen([PROGRAMS / "pop-bench", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready = self._read()["ready"]
        self.netns = {name: end["netns"] for name, end in ready.items()}
        self.address = {name: end["addresses"][0].split("/")[0] for name, end in ready.items()}

    @classmethod
    def star(cls, rtts_ms, second=79, **options):
        """A client and nodes that are so far away from it: ends client, node0, node1, .. in 10.`second`.0.0/24."""
        ends = {"client": f"10.{second}.0.1/24"}
        ends |= {f"node{i}": f"10.{second}.0.{i + 2}/24" for i in range(len(rtts_ms))}
        return cls(ends, [f"client-node{i} delay {rtt / 2}ms" for i, rtt in enumerate(rtts_ms)], **options)

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"pop-bench shaper ended with {self.process.wait()}")
        return json.loads(line)

    def _say(self, words):
        self.process.stdin.write(f"{words}\n")
        self.process.stdin.flush()
        return self._read()

    def inside(self, end):
        """Words before a command that is to run at `end`."""
        netns = self.netns[end]
        return ["ip", "netns", "exec", netns] if netns else []

    def entered(self, end):
        """Sockets that this thread makes meanwhile are at `end`, and stay there."""
        return entered(self.netns[end])

    def change(self, words):
        """Changes wires, such as "a-b loss 5%"; the change holds when this returns."""
        answer = self._say(words)
        if "error" in answer:
            raise AssertionError(f"{words}: {answer['error']}")

    def stats(self):
        """The counters so far: ["wires"]["a>b"]["lost"], ["late_us"]["p99"], .."""
        return self._say("stats")["stats"]

    def stop(self):
        """Removes everything; the final counters."""
        self.process.stdin.close()
        stats = self._read()["stats"]
        self.process.stdout.close()
        code = self.process.wait(10)
        if code != 0:
            raise AssertionError(f"pop-bench shaper ended with {code}")
        return stats


@contextlib.contextmanager
def entered(netns):
    """Sockets that this thread makes meanwhile are in the namespace, and stay there."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as here, open(f"/run/netns/{netns}") as there:
        enter(libc, there)
        try:
            yield
        finally:
            enter(libc, here)


def enter(libc, namespace):
    if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
