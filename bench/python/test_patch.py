"""PATCH as RFC 9725 has it, by aiortc: candidates trickle in, and ICE restarts from other sockets while every payload arrives."""

import asyncio
import unittest

from client import Client, assert_same_stream, sdp_fragment, until
from node import Node


class Patch(unittest.IsolatedAsyncioTestCase):
    name = "aiortc-patch"
    dataplane = ""

    @classmethod
    def setUpClass(cls):
        cls.node = Node(cls.name, dataplane=cls.dataplane)

    @classmethod
    def tearDownClass(cls):
        cls.node.stop()

    async def call(self, room):
        viewer, publisher = Client(), Client()
        self.addAsyncCleanup(viewer.close)
        self.addAsyncCleanup(publisher.close)
        await (await viewer.watch(self.node, room)).until_connected()
        await (await publisher.publish(self.node, room)).until_connected()
        await self.media_goes_on(viewer, 100)
        return publisher, viewer

    async def media_goes_on(self, viewer, packets=200):
        """That many packets of each kind beyond those that are there."""
        wanted = {kind: len(viewer.received[kind]) + packets for kind in viewer.received}
        await until("more packets", lambda: all(len(viewer.received[kind]) >= wanted[kind] for kind in wanted), 30)

    async def addresses(self, room):
        """Where the node has seen the clients of a room."""
        sessions = await asyncio.to_thread(self.node.sessions)
        return {p.get("address") for session in sessions["sessions"] if session["id"] == room for p in session["participants"]}

    async def test_candidates_trickle_into_a_call(self):
        publisher, viewer = await self.call("trickle")
        for client in (publisher, viewer):
            body = sdp_fragment(client.connections[-1])
            status, headers, answer = await client.patch(body, client.etag)
            self.assertEqual((status, headers["ETag"], answer), (204, None, ""))
            self.assertEqual((await client.patch(body))[0], 428)
            self.assertEqual((await client.patch(body, '"another"'))[0], 412)
            self.assertEqual((await client.patch(body, client.etag, "application/sdp"))[0], 415)
        await self.media_goes_on(viewer)

    async def restart(self, room, who):
        publisher, viewer = await self.call(room)
        client = {"publisher": publisher, "viewer": viewer}[who]
        (before, etag, handshakes) = (client.path(), client.etag, await asyncio.to_thread(self.handshakes))
        await client.restart_ice()
        self.assertNotEqual(client.path()[0], before[0], "another socket")
        self.assertNotEqual(client.etag, etag)
        await self.media_goes_on(viewer)
        # The node says where it found the client, and the old ICE session is over for everybody.
        await until_async("the new address", lambda: self.knows(room, client.path()[0][1]))
        self.assertEqual((await client.patch("a=end-of-candidates\r\n", etag))[0], 412)
        self.assertEqual((await client.patch("a=end-of-candidates\r\n", client.etag))[0], 204)
        # And once more, from where it is now.
        await client.restart_ice()
        await self.media_goes_on(viewer)
        self.assertEqual(await asyncio.to_thread(self.handshakes), handshakes, "DTLS was not done again")
        for kind in ("audio", "video"):
            assert_same_stream(self, list(publisher.sent[kind]), list(viewer.received[kind]), 500)

    async def knows(self, room, port):
        return any(address.endswith(f":{port}") for address in await self.addresses(room) if address)

    def handshakes(self):
        return sum(value for name, value in self.node.metrics().items() if name.startswith("pop_dtls_handshakes_total"))

    async def test_a_publisher_restarts_from_another_socket_and_every_payload_arrives(self):
        await self.restart("publisher-restart", "publisher")

    async def test_a_viewer_restarts_from_another_socket_and_every_payload_arrives(self):
        await self.restart("viewer-restart", "viewer")


class PatchAcrossWorkers(Patch):
    """Publisher and viewer are on different workers: what PATCH changes on one leaves alone what crosses to the other."""

    name = "aiortc-patch-workers"
    # One client is a quarter of a worker's places, so the next one goes to the other worker.
    dataplane = "transports_max = 4"

    async def call(self, room):
        publisher, viewer = await super().call(room)
        sessions = await asyncio.to_thread(self.node.sessions)
        people = next(session["participants"] for session in sessions["sessions"] if session["id"] == room)
        self.assertEqual({person["worker"] for person in people}, {0, 1})
        return publisher, viewer


async def until_async(what, look, seconds=10):
    end = asyncio.get_running_loop().time() + seconds
    while not await look():
        if asyncio.get_running_loop().time() > end:
            raise AssertionError(f"{what}: not within {seconds} s")
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    unittest.main()
