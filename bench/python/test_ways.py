"""A call over the ways that no other call takes: IPv6, and the back end of kernels that refuse io_uring."""

import asyncio
import unittest

from client import Client, assert_same_stream, until
from node import Node


class Ways(unittest.IsolatedAsyncioTestCase):
    async def call(self, name, address, backend, used):
        way = await asyncio.to_thread(Node, f"aiortc-{name}", address=address, backend=backend)
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


if __name__ == "__main__":
    unittest.main()
