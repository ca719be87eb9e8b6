"""RTP routes with ffmpeg, GStreamer and trafgen as they come: in, out and through, plain and SDES, by decoded frames and equal bytes."""

import asyncio
import base64
import collections
import contextlib
import hashlib
import json
import os
import pathlib
import random
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.request

from client import Client, until
from node import PROGRAMS, Node, free_media_port

HERE = pathlib.Path(__file__).parent

# One second of pictures, and half a second more.
FRAMES = 45

STATIC_PORT = free_media_port("127.0.0.1")

STATIC = f"""
[[rtp.route]]
name = "static"
direction = "in"
room = "static"
codec = "VP8"
port = {STATIC_PORT}
peer_timeout = "1s"
"""

PICTURES = ["-re", "-f", "lavfi", "-i", "testsrc2=size=320x240:rate=30"]
CODERS = {
    "VP8": "-c:v libvpx -deadline realtime -cpu-used 8 -b:v 500k -g 15".split(),
    "H264": "-c:v libx264 -preset ultrafast -tune zerolatency -profile:v baseline -pix_fmt yuv420p -g 15".split(),
}


def setUpModule():
    global node
    node = Node("rtp-routes", extra=STATIC)


def tearDownModule():
    node.stop()


def rtp(*words, fails=None):
    """`pop rtp`; `fails` is the exit code that is expected, and then its sentence is returned."""
    command = [PROGRAMS / "pop", "rtp", *words, "--socket", node.socket, "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if ran.returncode != (fails or 0):
        raise AssertionError(f"{words} ended with {ran.returncode}: {ran.stderr}")
    return ran.stderr if fails else json.loads(ran.stdout)


def route(name):
    return next(r for r in rtp("list")["routes"] if r["name"] == name)


class Sink:
    """A UDP socket that keeps the RTP packets that come."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(0.1)
        self.port = self.socket.getsockname()[1]
        self.peer = f"127.0.0.1:{self.port}"
        self.packets = []
        self.passes_to = None
        self.ends = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while not self.ends:
            with contextlib.suppress(TimeoutError):
                packet = self.socket.recv(65_536)
                self.packets.append(packet)
                if self.passes_to:
                    self.socket.sendto(packet, ("127.0.0.1", self.passes_to))

    def close(self):
        self.ends = True
        self.thread.join()
        self.socket.close()

    def media(self):
        """Timestamp, SSRC, marker and payload of each RTP packet."""
        fields = lambda p: (struct.unpack("!I", p[4:8])[0], struct.unpack("!I", p[8:12])[0], p[1] >> 7, p[12:])
        return [fields(p) for p in list(self.packets) if not 192 <= p[1] < 224]


class Routes(unittest.IsolatedAsyncioTestCase):
    def add(self, **keys):
        """Adds a route until the test's end."""
        keys.setdefault("name", f"{self._testMethodName[5:][:40]}-{random.randrange(10**6)}")
        added = rtp("add", *(f"{key}={value}" for key, value in keys.items()))
        self.addCleanup(rtp, "remove", added["name"])
        return added

    def start(self, *words):
        """A program until the test's end."""
        log = tempfile.TemporaryFile("w+")
        process = subprocess.Popen([str(w) for w in words], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        process.log = log

        def end():
            process.kill()
            process.wait()
            log.close()

        self.addCleanup(end)
        return process

    def ends_well(self, process, seconds=25):
        code = process.wait(seconds)
        process.log.seek(0)
        self.assertEqual(code, 0, process.log.read()[-2_000:])

    def ffmpeg(self, codec, *output):
        return self.start("ffmpeg", "-nostdin", *PICTURES, *CODERS[codec], "-payload_type", 96, "-f", "rtp", *output)

    def gstreamer(self, *words):
        return self.start("gst-launch-1.0", "-q", *" ".join(str(w) for w in words).split())

    def wire(self):
        """A pair of interfaces: what trafgen writes into the one comes out of the other, whose MAC is told. The loopback interface
        takes no raw packets to itself; this one may carry packets to 127.0.0.1. The third is an address to send from."""
        ends = [f"pop{i}{random.randrange(10**6)}" for i in "ab"]
        net = f"10.{random.randrange(64, 255)}.{random.randrange(255)}"
        run = lambda *words: subprocess.run(["ip", *words], check=True)
        run("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        self.addCleanup(run, "link", "del", ends[0])
        run("addr", "add", f"{net}.1/30", "dev", ends[0])
        for end in ends:
            run("link", "set", end, "up")
        pathlib.Path(f"/proc/sys/net/ipv4/conf/{ends[0]}/route_localnet").write_text("1")
        return ends[1], pathlib.Path(f"/sys/class/net/{ends[0]}/address").read_text().strip(), f"{net}.2"

    def sink(self):
        sink = Sink()
        self.addCleanup(sink.close)
        return sink

    def sdp_file(self, added, key="sdp"):
        file = pathlib.Path(tempfile.mkdtemp(prefix="pop-sdp-")) / "route.sdp"
        file.write_text(added[key])
        self.addCleanup(lambda: (file.unlink(), file.parent.rmdir()))
        return file

    async def watched(self, room, frames=FRAMES, kind="video"):
        """A viewer by WHEP who has decoded this many frames."""
        viewer = Client()
        self.addAsyncCleanup(viewer.close)
        await viewer.watch(node, room)
        await until(f"{frames} decoded frames", lambda: viewer.decoded[kind] >= frames, 25)
        return viewer

    async def test_ffmpeg_vp8_and_opus_reach_a_webrtc_viewer(self):
        video = self.add(direction="in", room="av", codec="VP8")
        audio = self.add(direction="in", room="av", codec="opus", payload_type=97)
        self.assertEqual((video["state"], video["peer"]), ("waiting", None))
        self.ffmpeg("VP8", f"rtp://{video['address']}")
        sound = "-re -f lavfi -i sine -c:a libopus -payload_type 97 -f rtp".split()
        self.start("ffmpeg", "-nostdin", *sound, f"rtp://{audio['address']}")
        viewer = await self.watched("av")
        await until("sound", lambda: viewer.decoded["audio"] >= 50)
        status = await asyncio.to_thread(route, video["name"])
        self.assertEqual((status["state"], status["lost"], status["refused"]), ("active", 0, 0))
        # ffmpeg reports before its first packet, and a report makes no peer.
        self.assertLessEqual(status["foreign"], 1)
        self.assertTrue(status["peer"].startswith("127.0.0.1:"))

    async def test_ffmpeg_h264_under_sdes_reaches_a_webrtc_viewer(self):
        added = self.add(direction="in", room="h264", codec="H264", suite="AES_CM_128_HMAC_SHA1_80")
        key = added["sdp"].split("inline:")[1].split()[0]
        self.ffmpeg("H264", "-srtp_out_suite", "AES_CM_128_HMAC_SHA1_80", "-srtp_out_params", key, f"srtp://{added['address']}?pkt_size=1200")
        await self.watched("h264")
        self.assertEqual((await asyncio.to_thread(route, added["name"]))["refused"], 0)

    async def test_a_static_route_survives_the_kill_of_its_sender(self):
        viewer = Client()
        self.addAsyncCleanup(viewer.close)
        await viewer.watch(node, "static")
        for generation in (1, 2):
            sender = self.ffmpeg("VP8", f"rtp://127.0.0.1:{STATIC_PORT}")
            before = viewer.decoded["video"]
            await until(f"frames of sender {generation}", lambda: viewer.decoded["video"] >= before + FRAMES, 25)
            sender.send_signal(signal.SIGKILL)
            sender.wait()
        status = await asyncio.to_thread(route, "static")
        self.assertTrue(status["configured"])
        self.assertEqual((status["refused"]), 0)

    async def test_gstreamer_udpsink_rtpbin_and_srtpenc_reach_a_webrtc_viewer(self):
        pictures = "videotestsrc is-live=true ! video/x-raw,width=320,height=240,framerate=30/1 ! vp8enc deadline=1 keyframe-max-dist=15 ! rtpvp8pay pt=96 mtu=1200"
        plain = self.add(direction="in", room="gst-plain", codec="VP8", rtcp="off")
        bundle = self.add(direction="in", room="gst-bin", codec="VP8")
        gcm = self.add(direction="in", room="gst-srtp", codec="VP8", suite="AEAD_AES_128_GCM", rtcp="mux")
        to = lambda added, more=0: f"udpsink host=127.0.0.1 port={int(added['address'].split(':')[1]) + more}"
        self.gstreamer(pictures, "!", to(plain))
        self.gstreamer(
            "rtpbin name=b", pictures, "! b.send_rtp_sink_0 b.send_rtp_src_0 !", to(bundle), "b.send_rtcp_src_0 !", to(bundle, 1), "sync=false async=false"
        )
        key = base64.b64decode(gcm["sdp"].split("inline:")[1].split()[0]).hex()
        self.gstreamer(pictures, f"! srtpenc key={key} rtp-cipher=aes-128-gcm rtp-auth=null rtcp-cipher=aes-128-gcm rtcp-auth=null !", to(gcm))
        await asyncio.gather(*(self.watched(room) for room in ("gst-plain", "gst-bin", "gst-srtp")))
        for added in (plain, bundle, gcm):
            status = await asyncio.to_thread(route, added["name"])
            self.assertEqual(status["refused"], 0, status)

    async def test_what_goes_out_is_decoded_by_ffmpeg_and_gstreamer_from_the_sdp(self):
        source = self.add(direction="in", room="out", codec="VP8")
        free = lambda: free_media_port("127.0.0.1")
        outs = {
            "ffmpeg": self.add(direction="out", room="out", codec="VP8", peer=f"127.0.0.1:{free()}"),
            "ffmpeg-srtp": self.add(direction="out", room="out", codec="VP8", suite="AES_CM_128_HMAC_SHA1_80", peer=f"127.0.0.1:{free()}"),
            "sdpdemux": self.add(direction="out", room="out", codec="VP8", rtcp="off", peer=f"127.0.0.1:{free()}"),
            "srtpdec": self.add(direction="out", room="out", codec="VP8", suite="AEAD_AES_256_GCM", rtcp="off", peer=f"127.0.0.1:{free()}"),
        }
        readers = []
        for name in ("ffmpeg", "ffmpeg-srtp"):
            allowed = ["-nostdin", "-protocol_whitelist", "file,udp,rtp,srtp,crypto"]
            readers.append(self.start("ffmpeg", *allowed, "-i", self.sdp_file(outs[name]), "-frames:v", FRAMES, "-f", "null", "-"))
        decode = f"rtpvp8depay ! vp8dec ! identity eos-after={FRAMES} ! fakesink"
        readers.append(self.gstreamer(f"filesrc location={self.sdp_file(outs['sdpdemux'])} ! sdpdemux !", decode))
        key = base64.b64decode(outs["srtpdec"]["sdp"].split("inline:")[1].split()[0]).hex()
        port = outs["srtpdec"]["peer"].split(":")[1]
        readers.append(self.start("/usr/bin/python3", HERE / "gstreamer_srtp.py", port, key, "aes-256-gcm", FRAMES))
        self.ffmpeg("VP8", f"rtp://{source['address']}")
        for reader in readers:
            await asyncio.to_thread(self.ends_well, reader)

    async def test_a_silent_tap_gets_a_browsers_track_with_its_own_timestamps(self):
        sink = self.sink()
        publisher = Client()
        self.addAsyncCleanup(publisher.close)
        tap = self.add(direction="out", room="tap", codec="VP8", payload_type=100, peer=sink.peer, rtcp="off", **{"from": "publisher"})
        await publisher.publish(node, "tap")
        await until("150 packets", lambda: len(sink.packets) >= 150)
        came = sink.media()[:150]
        sent = [(s.timestamp, s.marker, s.payload) for s in list(publisher.sent["video"])]
        first = sent.index((came[0][0], came[0][2], came[0][3]))
        self.assertEqual([(t, m, p) for t, _, m, p in came], sent[first : first + 150], "timestamps are the browser's, bytes too")
        self.assertEqual(len({ssrc for _, ssrc, _, _ in came}), 1)
        self.assertEqual({p[1] & 0x7F for p in sink.packets}, {100})
        people = await asyncio.to_thread(node.sessions)
        room = next(s for s in people["sessions"] if s["id"] == "tap")
        self.assertTrue(next(p for p in room["participants"] if p["identity"] == tap["identity"])["hidden"])

    async def test_ffmpegs_timestamps_are_the_same_at_both_ends(self):
        tee, sink = self.sink(), self.sink()
        source = self.add(direction="in", room="equal", codec="VP8", rtcp="off")
        self.add(direction="out", room="equal", codec="VP8", rtcp="off", peer=sink.peer)
        tee.passes_to = int(source["address"].split(":")[1])
        self.ffmpeg("VP8", f"rtp://127.0.0.1:{tee.port}?pkt_size=1200&rtcpport={self.sink().port}")
        await until("100 packets", lambda: len(sink.packets) >= 100)
        came = sink.media()[:100]
        sent = tee.media()
        first = sent.index(came[0])
        self.assertEqual(came, sent[first : first + 100], "timestamp, SSRC, marker and payload")

    async def test_a_thief_cannot_steal_a_learnt_peer(self):
        sink, owner, thief, heir = self.sink(), *(socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3))
        self.addCleanup(lambda: [s.close() for s in (owner, thief, heir)])
        added = self.add(direction="in", codec="any", to=sink.peer, peer_timeout="2s")
        at = ("127.0.0.1", int(added["address"].split(":")[1]))
        packet = lambda who, n: struct.pack("!BBHII", 0x80, 96, n, n, 7) + who
        for n in range(300):
            owner.sendto(packet(b"owner", n), at)
            for _ in range(3):
                thief.sendto(packet(b"thief", n), at)
            await asyncio.sleep(0.001)
        await until("the owner's packets", lambda: len(sink.packets) >= 300)
        self.assertEqual(sink.packets, [packet(b"owner", n) for n in range(300)])
        await until("the count", lambda: route(added["name"])["foreign"] == 900)
        await asyncio.sleep(2.1)
        heir.sendto(packet(b"heir", 1), at)
        await until("the heir", lambda: sink.packets[-1] == packet(b"heir", 1))
        self.assertEqual(len(sink.packets), 301)

    async def trafgen(self, added, payloads, count, rate):
        """Sends these RTP packets in turn to a route: how many seconds it took."""
        device, mac, source = self.wire()
        macs = f"eth(sa=02:00:00:00:00:01, da={mac})"
        ports = f"udp(sp=20000, dp={added['address'].split(':')[1]})"
        packet = lambda p: f"{{ {macs}, ipv4(sa={source}, da=127.0.0.1), {ports}, {', '.join(f'0x{b:02x}' for b in p)} }}"
        with tempfile.NamedTemporaryFile("w", suffix=".cfg") as config:
            config.write("\n".join(map(packet, payloads)))
            config.flush()
            words = ["trafgen", "--in", config.name, "--out", device, "--num", count, "--cpus", 1, "--rate", f"{rate}pps", "--no-sock-mem"]
            generator = self.start("env", f"PATH={os.environ['PATH']}:/usr/sbin", *words)
            started = time.monotonic()
            await asyncio.to_thread(self.ends_well, generator, 30)
            return time.monotonic() - started

    def bench_sink(self, *words):
        """`pop bench sink` and where it listens."""
        process = subprocess.Popen(
            [PROGRAMS / "pop", "bench", "sink", "--listen", "127.0.0.1:0", "--plain", "--idle", "1s", *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(lambda: (process.kill(), process.communicate()))
        return process, process.stderr.readline().split()[-1]

    async def test_the_benchs_sink_counts_what_trafgen_and_gstreamer_send_through_a_route(self):
        kinds, count = 200, 4_000
        sink, address = self.bench_sink("--expect", count)
        added = self.add(direction="in", codec="any", to=address)
        payloads = [struct.pack("!BBHII", 0x80, 96, k, k, 7) + random.randbytes(1_000) for k in range(kinds)]
        await self.trafgen(added, payloads, count, 10_000)
        stdout, stderr = await asyncio.to_thread(sink.communicate, timeout=20)
        self.assertEqual(sink.returncode, 0, stderr)
        report = json.loads(stdout)
        got = report["detail"]["sink"]
        self.assertEqual((report["case"], report["loss"], got["plain"] + got["plain_duplicates"], got["foreign"]), ("sink", 0, count, 0))

        sink, address = self.bench_sink()
        added = self.add(direction="in", codec="any", to=address)
        host, port = added["address"].split(":")
        pictures = "videotestsrc num-buffers=30 ! video/x-raw,width=320,height=240 ! vp8enc deadline=1 ! rtpvp8pay pt=96 mtu=1200"
        await asyncio.to_thread(self.ends_well, self.gstreamer(pictures, f"! udpsink host={host} port={port}"))
        stdout, stderr = await asyncio.to_thread(sink.communicate, timeout=20)
        self.assertEqual(sink.returncode, 0, stderr)
        got = json.loads(stdout)["detail"]["sink"]
        await until("the counters", lambda: route(added["name"])["sent_packets"] == got["plain"])
        self.assertEqual((got["streams"], got["plain_duplicates"], got["foreign"]), (1, 0, 0))
        self.assertGreaterEqual(got["plain"], 30)
        print(f"pop bench sink: {count} packets of trafgen and {got['plain']} of GStreamer, none lost", flush=True)

    async def test_trafgen_passes_without_loss_or_change(self):
        kinds, count, rate = 50, 20_000, 10_000
        sink = self.sink()
        added = self.add(direction="in", codec="any", to=sink.peer)
        payloads = [struct.pack("!BBHII", 0x80, k, k * 997 % 65_536, k, k) + random.randbytes(1_000 + k) for k in range(kinds)]
        took = await self.trafgen(added, payloads, count, rate)
        with contextlib.suppress(AssertionError):
            await until("everything", lambda: len(sink.packets) >= count, 5)
        digest = lambda p: hashlib.sha256(p).digest()
        came = collections.Counter(map(digest, sink.packets))
        self.assertEqual(came, collections.Counter({digest(p): count // kinds for p in payloads}), f"{len(sink.packets)} of {count}")
        await until("the counters", lambda: route(added["name"])["sent_packets"] == count)
        status = route(added["name"])
        self.assertEqual((status["packets"], status["foreign"], status["refused"]), (count, 0, 0))
        print(f"trafgen: {count} packets of {kinds} kinds in {took:.2f} s through a forward route, none lost or changed", flush=True)

    async def test_what_is_wrong_is_refused_by_name_and_changes_nothing(self):
        before = rtp("list")
        http, media = node.http.rsplit(":", 1)[1], node.media_port
        base = {"direction": "out", "room": "r", "codec": "VP8"}
        for keys, said in [
            ({"peer": f"127.0.0.1:{media}"}, "a media port of this node: packets would go in a circle"),
            ({"peer": f"127.0.0.1:{http}"}, "the HTTP listener of this node"),
            ({"peer": f"127.0.0.1:{STATIC_PORT}"}, 'the RTP route "static" of this node'),
            ({"peer": "0.0.0.0:5004"}, "no address to send to"),
            ({"peer": "224.0.0.7:5004"}, "multicast"),
            ({"peer": "127.255.255.255:5004"}, "broadcast"),
            ({"peer": "127.0.0.1:22"}, "privileged port 22"),
            ({"peer": "127.0.0.1:5004", "codec": "MP3"}, "opus, VP8"),
            ({"peer": "127.0.0.1:5004", "suite": "AEAD_AES_128_GCM", "key": "c2hvcnQ="}, "not of 5 bytes"),
            ({"direction": "in", "port": "443"}, "privileged port 443"),
            ({"direction": "in", "address": "192.0.2.1"}, "not one of media.addresses"),
        ]:
            sentence = rtp("add", *(f"{k}={v}" for k, v in (base | keys).items()), fails=2)
            self.assertIn(said, sentence)
        self.assertIn("already", rtp("add", "direction=in", "room=r", "codec=VP8", f"port={STATIC_PORT}", fails=1))
        self.assertIn("already", rtp("add", "direction=in", "room=r", "codec=VP8", "name=static", fails=1))
        self.assertIn("no RTP route", rtp("remove", "nobody", fails=1))
        self.assertEqual([r["name"] for r in rtp("list")["routes"]], [r["name"] for r in before["routes"]])

    async def test_the_admin_listener_shows_no_key_and_changes_nothing(self):
        added = self.add(direction="in", room="secret", codec="VP8", suite="AEAD_AES_128_GCM")
        url = f"{node.admin}/api/v1/rtp/routes"
        shown = urllib.request.urlopen(url, timeout=10).read().decode() + urllib.request.urlopen(f"{url}/{added['name']}").read().decode()
        self.assertIn(added["name"], shown)
        self.assertNotIn("inline", shown)
        for method, path in (("POST", ""), ("DELETE", f"/{added['name']}")):
            with self.assertRaises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(urllib.request.Request(url + path, data=b"{}", method=method), timeout=10)
            self.assertEqual(refused.exception.code, 403)
            refused.exception.close()
        self.assertNotIn("inline", "".join(node.log))


if __name__ == "__main__":
    unittest.main()
