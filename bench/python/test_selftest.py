"""Two nodes of one PoP. A worker of the one stands still: nothing new is placed on that node within 10 s, the other takes the newcomers,
and it is back when the worker moves again. A node that only has to wait for its turn is not gray. Needs root. POP_HOGS_S: for how long it
waits, 4 s unless told."""

import asyncio
import ctypes
import os
import pathlib
import subprocess
import time
import unittest

import nodes as nodes_of_one_pop
from client import Client, until

OUT_OF_PLACEMENT_S = 10
HOGS, HOGS_S = 16, float(os.environ.get("POP_HOGS_S", "8"))


def setUpModule():
    global nodes
    nodes = nodes_of_one_pop.Nodes("selftest", ("a", "b"), split=False)


def tearDownModule():
    nodes.stop()


class FrozenThread:
    """A thread of another process that does not run until `thaw`, as `pop_uring::FrozenThread` holds one. Only the thread of ours that
    froze it can let it go."""

    SEIZE, INTERRUPT, DETACH, ALL_THREADS = 0x4206, 0x4207, 17, 0x40000000

    def __init__(self, process, name):
        tasks = pathlib.Path(f"/proc/{process}/task").iterdir()
        self.thread = next(int(task.name) for task in tasks if (task / "comm").read_text().strip() == name)
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self.libc.ptrace.restype = ctypes.c_long
        self._trace(self.SEIZE)
        self._trace(self.INTERRUPT)
        os.waitpid(self.thread, self.ALL_THREADS)

    def _trace(self, request):
        if self.libc.ptrace(request, self.thread, None, None) != 0:
            raise OSError(ctypes.get_errno(), "ptrace")

    def thaw(self):
        self._trace(self.DETACH)


def gray(at):
    status = nodes[at].status()
    return status["gray"], [it["worker"] for it in status["workers"] if it["gray"]]


def load_of_a():
    """As b knows it."""
    (other,) = nodes["b"].status()["nodes"]
    return other["state"], other["load"]


def tries(at, result):
    metrics = nodes[at].metrics()
    return [metrics[f'pop_self_test_tries_total{{worker="{worker}",result="{result}"}}'] for worker in (0, 1)]


class SelfTest(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        await until("nodes that know each other", nodes.are_whole, 10)
        self.clients = []

    async def asyncTearDown(self):
        for client in self.clients:
            await client.close()

    async def newcomer(self, room):
        """Posts at a; at which node it is, when its media is there."""
        client = Client()
        self.clients.append(client)
        await (await client.publish(nodes["a"], room)).until_connected()
        at = {it["node"] for session in nodes["b"].sessions()["sessions"] if session["id"] == room for it in session["participants"]}
        return at.pop() if at else None

    async def test_a_node_whose_worker_stands_still_steps_out_of_placement_and_comes_back(self):
        await until("a round trip of each worker", lambda: min(tries("a", "passed")) > 0, 5)
        frozen = FrozenThread(nodes["a"].process.pid, "pop-worker-0")
        begin = time.monotonic()
        try:
            await until("a is full for others", lambda: load_of_a()[1] == 1_000, OUT_OF_PLACEMENT_S)
            print(f"{self._testMethodName}: out of placement {time.monotonic() - begin:.1f} s after the last sign", flush=True)
            self.assertEqual(gray("a"), (True, [0]))
            self.assertEqual(load_of_a()[0], "up", "it is not held for dead")
            self.assertEqual(await self.newcomer("gray"), "b")
            self.assertEqual(gray("b"), (False, []))
        finally:
            frozen.thaw()
        begin = time.monotonic()
        await until("a takes people again", lambda: load_of_a() == ("up", 0), 10)
        print(f"{self._testMethodName}: back {time.monotonic() - begin:.1f} s after the worker moves", flush=True)
        self.assertEqual(gray("a"), (False, []))
        await until("a is not full for itself", lambda: nodes["a"].metrics()['pop_self_test_gray{worker="0"}'] == 0, 5)
        self.assertEqual(await self.newcomer("sound"), "a")
        said = [line for line in nodes["a"].log if "self-test" in line]
        self.assertEqual(["does not come back" in line for line in said], [True, False], said)

    async def test_a_node_that_waits_for_its_turn_is_not_gray(self):
        before = {at: tries(at, "missed") for at in nodes}
        hogs = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(HOGS)]
        try:
            end = time.monotonic() + HOGS_S
            while time.monotonic() < end:
                self.assertEqual([gray("a"), gray("b")], [(False, [])] * 2)
                await asyncio.sleep(1)
        finally:
            for hog in hogs:
                hog.kill()
                hog.wait()
        missed = {at: [now - then for now, then in zip(tries(at, "missed"), before[at])] for at in nodes}
        print(f"{self._testMethodName}: {missed} of {HOGS_S:.0f} tries were missed beside {HOGS} hogs", flush=True)


if __name__ == "__main__":
    unittest.main()
