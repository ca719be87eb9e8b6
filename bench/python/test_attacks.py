"""reliability.md 1.2, rows 1 to 7, against the live node while a call runs."""

import asyncio
import socket
import unittest

from client import GCM_128, SHA1_80, Client, assert_same_stream, until
from hostile import (
    Forger,
    client_hello,
    lying_rtcp,
    lying_rtp,
    malformed_dtls,
    null_cipher_hello,
    plaintext_attacks,
    rtp,
    unauthenticated_media,
    without_e_bit,
)
from node import Node


def setUpModule():
    global node
    # Only what the node sends: the forgeries towards it are full of indexes used twice.
    node = Node("aiortc-attacks", judged="udp src portrange")


def tearDownModule():
    node.stop()


class Attacks(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.forger = Forger()
        self.clients = []
        self.room = f"room-{self._testMethodName}"[:60]

    async def asyncTearDown(self):
        self.forger.close()
        for client in self.clients:
            await client.close()

    async def call(self, room=None, profiles=None):
        """An honest pair that has media flowing."""
        room = room or self.room
        viewer, publisher = Client(profiles), Client(profiles)
        self.clients += [viewer, publisher]
        await (await viewer.watch(node, room)).until_connected()
        await (await publisher.publish(node, room)).until_connected()
        await until("media before the attack", lambda: min(map(len, viewer.received.values())) >= 50, 30)
        return publisher, viewer

    async def assert_goes_on(self, publisher, viewer, packets=100):
        """Media flows on, and everything since the start of the call came unbroken and unchanged."""
        goal = {kind: len(book) + packets for kind, book in viewer.received.items()}
        await until("media after the attack", lambda: all(len(viewer.received[k]) >= n for k, n in goal.items()), 20)
        for kind in goal:
            assert_same_stream(self, list(publisher.sent[kind]), list(viewer.received[kind]), packets)

    async def drops(self):
        return await asyncio.to_thread(node.drops)

    async def assert_dropped(self, before, reason, at_least):
        async def dropped():
            now = await self.drops()
            return now.get(reason, 0) - before.get(reason, 0)

        for _ in range(30):
            if await dropped() >= at_least:
                return
            await asyncio.sleep(0.1)
        self.fail(f"{await dropped()} of at least {at_least} packets were dropped as {reason}: {before} -> {await self.drops()}")

    async def test_row_1_early_hellos_from_another_port_do_not_hinder_the_join(self):
        before = await self.drops()
        stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        stranger.bind(("127.0.0.1", 0))
        stranger.setblocking(False)
        self.addCleanup(stranger.close)

        async def spray(client):
            _, target = client.path()
            for _ in range(100):
                for hello in (client_hello(), null_cipher_hello()):
                    stranger.sendto(hello, target)
                    self.forger.send(("127.0.0.9", 4_444), target, hello)
            await asyncio.sleep(0.1)

        viewer, publisher = Client(), Client()
        self.clients += [viewer, publisher]
        viewer.before_dtls = publisher.before_dtls = spray
        await (await viewer.watch(node, self.room)).until_connected()
        await (await publisher.publish(node, self.room)).until_connected()
        await self.assert_goes_on(publisher, viewer)
        await self.assert_dropped(before, "unknown_address", 800)
        with self.assertRaises(BlockingIOError, msg="nothing is answered"):
            stranger.recv(2_000)

    async def test_row_2_plaintext_from_the_victims_own_address_is_ignored(self):
        publisher, viewer = await self.call()
        before = await self.drops()
        for victim in (publisher, viewer):
            source, target = victim.path()
            for _ in range(50):
                for datagram in plaintext_attacks() + malformed_dtls():
                    self.forger.send(source, target, datagram)
                await asyncio.sleep(0.01)
        await self.assert_goes_on(publisher, viewer)
        await self.assert_dropped(before, "dtls_plaintext", 2 * 50 * 4)
        await self.assert_dropped(before, "dtls_malformed", 2 * 50 * 8)

    async def test_row_3_media_never_follows_a_second_source(self):
        publisher, viewer = await self.call()
        before = await self.drops()
        stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        stranger.bind(("127.0.0.2", 0))
        stranger.setblocking(False)
        self.addCleanup(stranger.close)
        for victim in (publisher, viewer):
            _, target = victim.path()
            for i in range(500):
                stranger.sendto(rtp(96, i, 3_000 * i, 0x1234, b"\x10" * 200), target)
                for real in victim.last_datagrams.values():
                    stranger.sendto(real, target)
                if i % 50 == 0:
                    await asyncio.sleep(0.01)
        await self.assert_goes_on(publisher, viewer)
        await self.assert_dropped(before, "unknown_address", 1_000)
        with self.assertRaises(BlockingIOError, msg="nothing is ever sent to it"):
            stranger.recv(2_000)

    async def test_row_4_unauthenticated_media_is_counted_and_never_forwarded(self):
        for name, profile, tag_len in (("gcm", GCM_128, 0), ("sha1", SHA1_80, 10)):
            with self.subTest(name):
                publisher, viewer = await self.call(f"{self.room[:50]}-{name}", [profile])
                await until("an RTCP packet", lambda: "rtcp" in publisher.last_datagrams)
                source, target = publisher.path()
                before = await self.drops()
                forged = unauthenticated_media(publisher.last_datagrams["rtp"], publisher.last_datagrams["rtcp"])
                plain = without_e_bit(publisher.last_datagrams["rtcp"], tag_len)
                for _ in range(20):
                    for datagrams in forged.values():
                        for datagram in datagrams:
                            self.forger.send(source, target, datagram)
                    self.forger.send(source, target, plain)
                    await asyncio.sleep(0.01)
                await self.assert_goes_on(publisher, viewer)
                await self.assert_dropped(before, "srtp_auth", 20 * 4)
                await self.assert_dropped(before, "srtp_replay", 20)
                await self.assert_dropped(before, "srtcp_unencrypted", 20)

    async def test_row_5_ten_thousand_bad_packets_do_not_end_the_call(self):
        publisher, viewer = await self.call()
        source, target = publisher.path()
        before = await self.drops()
        bad = unauthenticated_media(publisher.last_datagrams["rtp"], b"\x80\xc8" + bytes(40))["srtp_auth"]
        for i in range(10_000):
            self.forger.send(source, target, bad[i % len(bad)])
            # Bursts that the socket's buffer holds: the test is about counting errors, not about a full buffer.
            if i % 100 == 0:
                await asyncio.sleep(0.005)
        await self.assert_goes_on(publisher, viewer)
        await self.assert_dropped(before, "srtp_auth", 9_900)

    async def hostile_call(self):
        """A publisher with keys that sends only what the test makes, and its own viewer, beside an honest pair."""
        evil, witness = Client(), Client()
        evil.hold = True
        self.clients += [evil, witness]
        await (await evil.publish(node, f"{self.room}-evil", "evil")).until_connected()
        await (await witness.watch(node, f"{self.room}-evil", "witness")).until_connected()
        return evil, witness

    async def send_all(self, client, packets, protect):
        for packet in packets:
            await client.dtls.transport._send(protect(packet))
            await asyncio.sleep(0.002)

    async def test_rows_6_and_7_rtp_that_lies_about_its_lengths_hurts_nobody(self):
        publisher, viewer = await self.call(f"{self.room}-good")
        evil, witness = await self.hostile_call()
        before = await self.drops()
        sender = next(s for s in evil.pc.getSenders() if s.kind == "video")
        payload_type = next(pt for pt, kind in evil._kinds().items() if kind == "video")
        protect = evil.dtls._tx_srtp.protect
        await self.send_all(evil, lying_rtp(payload_type, sender._ssrc), protect)
        await self.assert_dropped(before, "rtp_malformed", 4)
        await self.assert_goes_on(publisher, viewer)
        self.assertEqual(witness.pc.connectionState, "connected")
        # The same node still forwards what the hostile client sends well.
        # VP8 keyframes of one packet, each with a payload of its own.
        payloads = [b"\x10" + bytes([0, i] * 15) for i in range(50)]
        good = [rtp(payload_type, 200 + i, 3_000 * i, sender._ssrc, payload, marker=1) for i, payload in enumerate(payloads)]
        await self.send_all(evil, good, protect)
        arrived = lambda: [s.payload for s in witness.received["video"] if s.payload in payloads]
        await until("all good packets", lambda: len(arrived()) >= len(payloads))
        self.assertEqual(arrived(), payloads, "in order, each once")
        await self.assert_goes_on(publisher, viewer)

    async def test_row_7_rtcp_that_lies_about_its_counts_hurts_nobody(self):
        publisher, viewer = await self.call(f"{self.room}-good")
        evil, witness = await self.hostile_call()
        before = await self.drops()
        sender = next(s for s in evil.pc.getSenders() if s.kind == "video")
        for client, ssrc in ((evil, sender._ssrc), (witness, 1)):
            await self.send_all(client, lying_rtcp(ssrc, publisher.pc.getSenders()[1]._ssrc), client.dtls._tx_srtp.protect_rtcp)
        await self.assert_dropped(before, "rtcp_malformed", 10)
        await self.assert_goes_on(publisher, viewer)

    async def test_row_7_without_keys_short_srtcp_and_srtp_hurt_nobody(self):
        publisher, viewer = await self.call()
        source, target = publisher.path()
        for i in range(60):
            for head in (b"\x80\xc8", b"\x81\xce", b"\x80\x60", b"\xbf\xff", b"\x00\x01", b"\x40\x00", b"\xff\xff"):
                self.forger.send(source, target, (head + bytes([i] * 60))[: i + 1])
            await asyncio.sleep(0.002)
        await self.assert_goes_on(publisher, viewer)


if __name__ == "__main__":
    unittest.main()
