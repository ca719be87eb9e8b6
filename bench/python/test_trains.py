"""aiortc far away: trains are cut on their way as a network card cuts them, and every packet is opened. Then the path loses, reorders and
doubles packets, both ways. (aiortc does no transport-wide feedback: `bench/browser/trains.test.js` has that.)"""

import asyncio
import socket
import unittest

import aioice.ice

from client import Client, assert_same_stream, until
from network import Network
from node import Node


def setUpModule():
    global network, node
    network = Network({"pynear": "@.10.78.9.1/24", "pyfar": "10.78.9.2/24"}, ["pynear-pyfar delay 10ms"])
    node = Node("aiortc-trains", address=network.address["pynear"], device="pynear")


def tearDownModule():
    node.stop()
    network.stop()


class Trains(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        """The clients' media sockets are at the far end; their HTTP requests are not."""
        loop, hosts = asyncio.get_running_loop(), aioice.ice.get_host_addresses
        create = loop.create_datagram_endpoint

        async def create_far(protocol, local_addr=None, **options):
            with network.entered("pyfar"):
                far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            far.setblocking(False)
            far.bind(local_addr)
            return await create(protocol, sock=far, **options)

        loop.create_datagram_endpoint = create_far
        aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: [network.address["pyfar"]]
        self.addCleanup(setattr, aioice.ice, "get_host_addresses", hosts)

    async def call(self, room):
        viewer, publisher = Client(), Client()
        self.addAsyncCleanup(viewer.close)
        self.addAsyncCleanup(publisher.close)
        await (await viewer.watch(node, room)).until_connected()
        await (await publisher.publish(node, room)).until_connected()
        await until("pictures", lambda: viewer.decoded["video"] > 5)
        return publisher, viewer

    async def more_packets(self, viewer, count):
        wanted = len(viewer.received["video"]) + count
        await until("more packets", lambda: len(viewer.received["video"]) >= wanted, 40)

    async def sums(self, *names):
        """The sum of each counter over the workers; a name may have the beginning of its labels."""
        metrics = await asyncio.to_thread(node.metrics)
        return [sum(value for name, value in metrics.items() if name.startswith(wanted)) for wanted in names]

    async def test_every_packet_of_a_train_that_is_cut_on_the_wire_is_opened(self):
        names = ('pop_datagrams_total{direction="out"', 'pop_trains_total{direction="out"')
        publisher, viewer = await self.call("cut")
        before = await self.sums(*names)
        await self.more_packets(viewer, 1_000)
        datagrams, trains = [now - then for now, then in zip(await self.sums(*names), before)]
        print(f"{datagrams:.0f} datagrams in {trains:.0f} sends", flush=True)
        # How many of a frame's packets come in one turn is the machine's affair; that none ever does is not.
        self.assertGreater(datagrams, trains, "media left in trains")
        for kind in ("audio", "video"):
            assert_same_stream(self, list(publisher.sent[kind]), list(viewer.received[kind]), 100)

    async def test_a_path_that_loses_reorders_and_doubles_packets_is_played_over(self):
        _, viewer = await self.call("lossy")
        names = ("pop_retransmitted_packets_total", *(f'pop_rtp_dropped_packets_total{{reason="{r}"' for r in ("srtp_replay", "srtp_auth")))
        before = await self.sums(*names)
        network.change("pynear-pyfar loss 2% reorder 2% 15ms duplicate 2%")
        await asyncio.sleep(10)
        network.change("pynear-pyfar clear")
        again, replays, forgeries = [now - then for now, then in zip(await self.sums(*names), before)]
        print(f"{again:.0f} sent again, {replays:.0f} replays refused; {network.stats()['wires']}", flush=True)
        self.assertGreater(again, 0, "the node sent packets again")
        self.assertGreater(replays, 0, "what came twice was refused once")
        self.assertEqual(forgeries, 0, "nothing that came late or twice was taken for a forgery")
        # Healed, the picture comes again.
        wanted = viewer.decoded["video"] + 30
        await until("pictures after it", lambda: viewer.decoded["video"] >= wanted)


if __name__ == "__main__":
    unittest.main()
