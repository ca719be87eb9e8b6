"""A call over the ways that no other call takes: IPv6, and the back end of kernels that refuse io_uring."""

import asyncio
import unittest

from client import Client, assert_same_stream, until
from node import PROGRAMS, Node


class Ways(unittest.IsolatedAsyncioTestCase):
    async def call(self, name, address, backend, used, under=()):
        way = await asyncio.to_thread(Node, f"aiortc-{name}", address=address, backend=backend, under=under)
        self.addAsyncCleanup(asyncio.to_thread, way.stop)
        viewer, publisher = Client(), Client()
        for client in (publisher, viewer):
            self.addAsyncCleanup(client.close)
        await (await viewer.watch(way, name)).until_connected()
        await (await publisher.publish(way, name)).until_connected()
        await until("100 packets", lambda: min(len(p) for p in viewer.received.values()) >= 100, 30)
        status = await asyncio.to_thread(way.status)
        self.assertEqual({worker["backend"] for worker in status["workers"]}, {used})
        for client in (viewer, publisher):
            self.assertEqual([end[0] for end in client.path()], [address, address])
        for kind in ("audio", "video"):
            assert_same_stream(self, list(publisher.sent[kind]), list(viewer.received[kind]), 100)

    async def test_io_uring_over_ipv6(self):
        await self.call("uring-v6", "::1", "io_uring", "io_uring")

    async def test_mmsg_over_ipv4(self):
        await self.call("mmsg-v4", "127.0.0.1", "mmsg", "mmsg")

    async def test_mmsg_over_ipv6(self):
        await self.call("mmsg-v6", "::1", "mmsg", "mmsg")

    async def test_a_kernel_that_refuses_io_uring(self):
        for error in ("ENOSYS", "EPERM", "ENOMEM"):
            with self.subTest(error):
                under = [PROGRAMS / "pop-bench", "refuse-io-uring", error]
                await self.call(f"refused-{error.lower()}", "127.0.0.1", "auto", "mmsg", under)
                # Who asks for io_uring alone is told what to change, and gets nothing else.
                with self.assertRaisesRegex(AssertionError, r"(?s)pop ended with 1 .*" + ADVICE[error]):
                    await asyncio.to_thread(Node, "refused", backend="io_uring", under=under)


ADVICE = {
    "ENOSYS": "io_uring is missing: use a kernel with CONFIG_IO_URING, or allow",
    "EPERM": "io_uring is forbidden to this process: allow io_uring_setup",
    "ENOMEM": "no memory for the ring: raise the locked-memory limit",
}


if __name__ == "__main__":
    unittest.main()
