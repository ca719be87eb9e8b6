"""`pop rtp capture` during a call: the file holds what the publisher sent, decrypted, and nothing else."""

import asyncio
import json
import pathlib
import signal
import stat
import struct
import tempfile
import time
import unittest

from aiortc.rtp import RtpPacket

from client import Client, Sample, assert_same_stream, until
from node import PROGRAMS, Node

SECTION_HEADER, INTERFACE_DESCRIPTION, INTERFACE_STATISTICS, ENHANCED_PACKET = 0x0A0D0D0A, 1, 5, 6
LINKTYPE_IPV4 = 228


def setUpModule():
    global node
    node = Node("aiortc-capture")


def tearDownModule():
    node.stop()


def blocks(file):
    """Type and body of each block of a little-endian pcapng file."""
    at = 0
    while at < len(file):
        kind, length = struct.unpack_from("<II", file, at)
        (again,) = struct.unpack_from("<I", file, at + length - 4)
        if again != length or length % 4:
            raise AssertionError(f"block at {at} says {length} and {again} bytes")
        yield kind, file[at + 8 : at + length - 4]
        at += length


def packets(file):
    """Seconds since 1970 and UDP payload of each captured packet, and the counts of received and dropped that end the file."""
    found, counts = [], None
    for i, (kind, body) in enumerate(blocks(file)):
        if i == 0:
            assert kind == SECTION_HEADER and body[:4] == b"\x4d\x3c\x2b\x1a", "a section starts the file"
        elif i == 1:
            assert kind == INTERFACE_DESCRIPTION and body[:2] == struct.pack("<H", LINKTYPE_IPV4), "an interface of IPv4 packets"
        elif kind == ENHANCED_PACKET:
            _, high, low, length, original = struct.unpack_from("<IIIII", body)
            ip = body[20 : 20 + length]
            assert original == length == struct.unpack_from("!H", ip, 2)[0] and ip[9] == 17, "a whole UDP packet"
            found.append(((high << 32 | low) / 1e9, ip[28:]))
        elif kind == INTERFACE_STATISTICS:
            received, dropped = struct.unpack_from("<4xQ4xQ", body, 12)
            counts = (received, dropped)
    return found, counts


class Captures(unittest.IsolatedAsyncioTestCase):
    async def captured(self, room, *options):
        """A capture from before the publisher comes until Ctrl-C; what was sent, what the file has by kind, and the file's parts."""
        folder = tempfile.TemporaryDirectory(prefix="pop-e2e-")
        self.addCleanup(folder.cleanup)
        file = pathlib.Path(folder.name) / "room.pcapng"
        words = ["rtp", "capture", room, file, "--socket", node.socket, "--json", "--duration", "60s", *options]
        pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
        started = time.time()
        capture = await asyncio.create_subprocess_exec(PROGRAMS / "pop", *words, **pipes)
        self.assertIn(b"0 tracks now", await asyncio.wait_for(capture.stderr.readline(), 10))
        publisher, viewer = Client(), Client()
        for client in (publisher, viewer):
            self.addAsyncCleanup(client.close)
        await (await viewer.watch(node, room)).until_connected()
        await (await publisher.publish(node, room)).until_connected()
        await until("100 packets", lambda: min(len(p) for p in viewer.received.values()) >= 100, 30)
        capture.send_signal(signal.SIGINT)
        out, err = await asyncio.wait_for(capture.communicate(), 10)
        self.assertEqual(capture.returncode, 0, err)

        self.assertEqual(stat.S_IMODE(file.stat().st_mode), 0o600, "decrypted media is its owner's alone")
        content = file.read_bytes()
        found, counts = packets(content)
        end = json.loads(out)
        self.assertEqual(counts, (len(found), 0), "the file's own counts")
        self.assertEqual((end["packets"], end["dropped"], end["bytes"]), (len(found), 0, len(content)))
        times = [at for at, _ in found]
        self.assertEqual(times, sorted(times))
        self.assertTrue(started <= times[0] and times[-1] <= time.time(), f"{started} {times[0]} {times[-1]}")
        books = {"audio": [], "video": []}
        for _, datagram in found:
            rtp = RtpPacket.parse(datagram)
            books[publisher._kinds()[rtp.payload_type]].append(Sample(rtp.sequence_number, rtp.timestamp, rtp.marker, rtp.payload))
        return publisher.sent, books

    async def test_a_capture_holds_every_packet_of_the_publisher(self):
        sent, captured = await self.captured("capture")
        for kind in ("audio", "video"):
            assert_same_stream(self, list(sent[kind]), captured[kind], 100)
            self.assertEqual(captured[kind][0].payload, sent[kind][0].payload, "from the first packet on")

    async def test_a_capture_of_one_kind_leaves_the_other_out(self):
        sent, captured = await self.captured("capture-audio", "--kind", "audio")
        assert_same_stream(self, list(sent["audio"]), captured["audio"], 100)
        self.assertEqual(captured["video"], [])


if __name__ == "__main__":
    unittest.main()
