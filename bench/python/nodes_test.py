"""Two nodes of one PoP: aiortc publishes at the one and watches at the other, and every payload arrives as it was sent."""

import asyncio
import pathlib
import socket
import subprocess
import tempfile
import unittest

from client import Client, assert_same_stream, until
from node import PROGRAMS, Node

NAMES = ("a", "b")


def free_tcp_ports(count):
    """All different, since they are held until all are found."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [it.getsockname()[1] for it in sockets]
    for it in sockets:
        it.close()
    return ports


def setUpModule():
    global nodes, folder
    nodes, folder = {}, tempfile.TemporaryDirectory(prefix="pop-ca-")
    place = pathlib.Path(folder.name)
    ca = ["--dir", place / "ca"]
    subprocess.run([PROGRAMS / "pop", "ca", "init", *ca], check=True, stdout=subprocess.DEVNULL)
    ports = free_tcp_ports(2 * len(NAMES))
    bus = dict(zip(NAMES, ports))
    mesh = dict(zip(NAMES, ports[len(NAMES) :]))
    for name in NAMES:
        out = place / name
        words = ["--node", name, "--pop", "python", "--address", "127.0.0.1", "--out", out]
        subprocess.run([PROGRAMS / "pop", "ca", "issue", *ca, *words], check=True, stdout=subprocess.DEVNULL)
        others = [f"127.0.0.1:{bus[other]}" for other in NAMES if other != name]
        nodes[name] = Node(
            f"nodes-{name}",
            extra=f"""
[node]
name = "{name}"
pop = "python"
state_dir = "{out}/state"
[bus]
listen = ["127.0.0.1:{bus[name]}"]
connect = {others}
[mesh]
listen = "127.0.0.1:{mesh[name]}"
relay_port = 0
ca = "{out}/ca.pem"
cert = "{out}/node.pem"
key = "{out}/node.key"
""",
        )


def tearDownModule():
    for node in nodes.values():
        node.stop()
    folder.cleanup()


class Nodes(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        def is_whole():
            return all(
                [it["state"] for it in status["nodes"]] == ["up"] and [it["state"] for it in status["links"]] == ["up"]
                for status in (node.status() for node in nodes.values())
            )

        await until("nodes that know each other", is_whole, 10)

    async def call(self, room, at, to):
        publisher, viewer = Client(), Client()
        try:
            await (await viewer.watch(nodes[to], room)).until_connected()
            await (await publisher.publish(nodes[at], room)).until_connected()
            await until("200 packets", lambda: min(len(p) for p in viewer.received.values()) >= 200, 30)
            for kind in ("audio", "video"):
                assert_same_stream(self, list(publisher.sent[kind]), list(viewer.received[kind]), 200)
            people = {it["identity"]: it["node"] for session in nodes[to].sessions()["sessions"] for it in session["participants"]}
            self.assertEqual(sorted(people.values()), sorted([at, to]))
        finally:
            await viewer.close()
            await publisher.close()

    async def test_every_payload_crosses_the_link_as_it_was_sent(self):
        await self.call("there", "a", "b")

    async def test_and_back(self):
        await self.call("back", "b", "a")


if __name__ == "__main__":
    unittest.main()
