"""A WHIP and WHEP client on aiortc that writes down every RTP payload it sends and receives."""

import asyncio
import dataclasses
import os
import time
import urllib.error
import urllib.parse
import urllib.request

import aioice
import aioice.ice
import av
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription, VideoStreamTrack, rtcdtlstransport
from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import RtcpPacket, RtcpSrPacket, RtpPacket, is_rtcp

GCM_256 = rtcdtlstransport.SRTP_AEAD_AES_256_GCM
GCM_128 = rtcdtlstransport.SRTP_AEAD_AES_128_GCM
SHA1_80 = rtcdtlstransport.SRTP_AES128_CM_SHA1_80

# Everything stays on loopback, also on a machine that has no other address.
aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1", "::1"]


class NoisePicture(VideoStreamTrack):
    """No two frames are equal."""

    async def recv(self):
        pts, time_base = await self.next_timestamp()
        frame = av.VideoFrame(width=320, height=240, format="yuv420p")
        for plane in frame.planes:
            # A coarse noise: large enough for several packets a frame, cheap enough for a small machine.
            plane.update((os.urandom(plane.line_size // 8) * 8 * plane.height)[: plane.buffer_size])
        frame.pts, frame.time_base = pts, time_base
        return frame


class NoiseSound(MediaStreamTrack):
    """20 ms frames of noise, so that no two Opus payloads are equal."""

    kind = "audio"

    def __init__(self):
        super().__init__()
        self.frames = 0
        self.start = None

    async def recv(self):
        if self.readyState != "live":
            raise MediaStreamError
        now = asyncio.get_running_loop().time()
        self.start = self.start or now
        await asyncio.sleep(max(0, self.start + self.frames * 0.02 - now))
        frame = av.AudioFrame(format="s16", layout="mono", samples=960)
        frame.planes[0].update(os.urandom(1_920))
        frame.sample_rate = 48_000
        frame.pts = self.frames * 960
        self.frames += 1
        return frame


@dataclasses.dataclass(frozen=True)
class Sample:
    """What has to arrive as it was sent."""

    sequence: int
    timestamp: int
    marker: int
    payload: bytes


class Client:
    """One PeerConnection towards a node."""

    def __init__(self, profiles=None, setup=None, wrong_fingerprint=False):
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.profiles = profiles
        self.setup = setup
        self.wrong_fingerprint = wrong_fingerprint
        self.sent = {"audio": [], "video": []}
        self.departures = {"audio": [], "video": []}
        self.received = {"audio": [], "video": []}
        self.arrivals = {"audio": [], "video": []}
        self.ssrcs = {}
        self.reports_sent = {"audio": [], "video": []}
        self.reports_received = {"audio": [], "video": []}
        self.decoded = {"audio": 0, "video": 0}
        self.media_datagrams = 0
        self.last_datagrams = {}
        self.before_dtls = None
        self.hold = False
        self.resource = None
        self.token = None
        self.answer = None
        self.etag = None
        self.sinks = []
        self.connections = []
        self.inbox = None
        self.feeders = []

    async def publish(self, node, room, identity="publisher"):
        self.pc.addTransceiver(NoiseSound(), direction="sendonly")
        self.pc.addTransceiver(NoisePicture(), direction="sendonly")
        await self._exchange(f"{node.http}/whip/{room}", await asyncio.to_thread(node.token, room, identity))
        return self

    async def watch(self, node, room, identity="viewer"):
        for kind in ("audio", "video"):
            self.pc.addTransceiver(kind, direction="recvonly")

        @self.pc.on("track")
        def on_track(track):
            self.sinks.append(asyncio.ensure_future(self._decode(track)))

        token = await asyncio.to_thread(node.token, room, identity, "--no-publish")
        await self._exchange(f"{node.http}/whep/{room}", token)
        return self

    @property
    def dtls(self):
        return self.pc.getTransceivers()[0].sender.transport

    @property
    def profile(self):
        return self.dtls._ssl.get_selected_srtp_profile()

    def path(self):
        """Our address and the node's, as ICE chose them."""
        pair = self.connections[-1]._nominated[1]
        return (pair.local_candidate.host, pair.local_candidate.port), pair.remote_addr

    async def _exchange(self, url, token):
        self.token = token
        await self.pc.setLocalDescription(await self.pc.createOffer())
        self._instrument()
        offer = self.pc.localDescription.sdp
        if self.setup:
            offer = offer.replace("a=setup:actpass", f"a=setup:{self.setup}")
        if self.wrong_fingerprint:
            offer = "\r\n".join(_other_fingerprint(line) for line in offer.split("\r\n"))
        status, headers, self.answer = await asyncio.to_thread(_request, "POST", url, token, offer)
        if status != 201:
            raise AssertionError(f"{url} answered {status}: {self.answer}")
        self.resource = urllib.parse.urljoin(url, headers["Location"])
        self.etag = headers["ETag"]
        await self.pc.setRemoteDescription(RTCSessionDescription(self.answer, "answer"))

    def _instrument(self):
        dtls = self.dtls
        if self.profiles:
            dtls._srtp_profiles = self.profiles
        send_rtp, handle_rtp, handle_rtcp, start = dtls._send_rtp, dtls._handle_rtp_data, dtls._handle_rtcp_data, dtls.start
        self.connections.append(dtls.transport._connection)

        async def recorded_send_rtp(data):
            if self.hold:
                return
            if is_rtcp(data):
                self._note_reports(self.reports_sent, data)
            else:
                self._note(self.sent, data)
                self._note_times(self.sent, self.departures)
            await send_rtp(data)

        async def recorded_handle_rtp(data, arrival_time_ms):
            self._note(self.received, data)
            self._note_times(self.received, self.arrivals)
            await handle_rtp(data, arrival_time_ms=arrival_time_ms)

        async def recorded_handle_rtcp(data):
            self._note_reports(self.reports_received, data)
            await handle_rtcp(data)

        async def recorded_send(data):
            if 128 <= data[0] < 192:
                self.last_datagrams["rtcp" if is_rtcp(data) else "rtp"] = data
            await self.connections[-1].send(data)

        async def recorded_receive():
            if self.inbox is None:
                self.inbox = asyncio.Queue()
                self._feed(self.connections[0])
            data = await self.inbox.get()
            if data is None:
                raise ConnectionError
            self.media_datagrams += 128 <= data[0] < 192
            return data

        async def started(parameters):
            if self.before_dtls:
                await self.before_dtls(self)
            await start(parameters)

        dtls._send_rtp, dtls._handle_rtp_data, dtls.start = recorded_send_rtp, recorded_handle_rtp, started
        dtls._handle_rtcp_data = recorded_handle_rtcp
        dtls.transport._send, dtls.transport._recv = recorded_send, recorded_receive

    def _feed(self, connection):
        """Brings what comes over one ICE connection to DTLS; the end of the last one is the end."""

        async def feed():
            try:
                while True:
                    self.inbox.put_nowait(await connection.recv())
            except ConnectionError:
                if connection is self.connections[-1]:
                    self.inbox.put_nowait(None)

        self.feeders.append(asyncio.ensure_future(feed()))

    async def patch(self, body, if_match=None, kind="application/trickle-ice-sdpfrag"):
        """Status, headers and body of the answer to a PATCH."""
        more = {"If-Match": if_match} if if_match else {}
        return await asyncio.to_thread(_request, "PATCH", self.resource, None, body, {"Content-Type": kind, **more})

    async def restart_ice(self):
        """New sockets and new credentials by PATCH (RFC 9725 section 4.3.3), with DTLS and SRTP as they are. The old sockets are
        closed when the new ones work."""
        old = self.connections[-1]
        fresh = aioice.Connection(ice_controlling=True, stun_server=None)
        await fresh.gather_candidates()
        status, headers, fragment = await self.patch(sdp_fragment(fresh), "*")
        if status != 200:
            raise AssertionError(f"PATCH answered {status}: {fragment}")
        self.etag = headers["ETag"]
        lines = dict(line[2:].split(":", 1) for line in fragment.splitlines() if line.startswith("a=ice-") and ":" in line)
        fresh.remote_is_lite = True
        fresh.remote_username, fresh.remote_password = lines["ice-ufrag"], lines["ice-pwd"]
        for line in fragment.splitlines():
            if line.startswith("a=candidate:") and " udp " in line:
                await fresh.add_remote_candidate(aioice.Candidate.from_sdp(line[len("a=candidate:") :]))
        await fresh.add_remote_candidate(None)
        await fresh.connect()
        self._feed(fresh)
        self.connections.append(fresh)
        # What is on its way over the old path still counts.
        await asyncio.sleep(0.2)
        old._query_consent_task.cancel()
        for protocol in old._protocols:
            protocol.transport.close()

    def _note(self, book, data):
        packet = RtpPacket.parse(data)
        kind = self._kinds().get(packet.payload_type)
        if kind:
            self.ssrcs[packet.ssrc] = kind
            book[kind].append(Sample(packet.sequence_number, packet.timestamp, packet.marker, packet.payload))

    def _note_times(self, book, times):
        """When the last packet of each kind went or came, where there is one more."""
        for kind, packets in book.items():
            if len(packets) > len(times[kind]):
                times[kind].append(time.monotonic())

    def _note_reports(self, book, data):
        """Each sender report ties a time of the publisher's clock to one of its stream's."""
        for packet in RtcpPacket.parse(data):
            if isinstance(packet, RtcpSrPacket) and packet.ssrc in self.ssrcs:
                book[self.ssrcs[packet.ssrc]].append((packet.sender_info.ntp_timestamp, packet.sender_info.rtp_timestamp))

    def _kinds(self):
        """Payload types of media, retransmission formats left out."""
        kinds = {}
        kind = None
        for line in (self.answer or "").splitlines():
            if line.startswith("m="):
                kind = line[2:].split()[0]
            elif line.startswith("a=rtpmap:") and " rtx/" not in line.lower():
                kinds[int(line[9:].split()[0])] = kind
        return kinds

    async def _decode(self, track):
        try:
            while True:
                await track.recv()
                self.decoded[track.kind] += 1
        except MediaStreamError:
            pass

    async def until_connected(self, seconds=15):
        await until("connected", lambda: self.pc.connectionState == "connected", seconds)
        return self

    async def close(self):
        for sink in self.sinks:
            sink.cancel()
        if self.resource:
            await asyncio.to_thread(_request, "DELETE", self.resource, self.token, None)
        await self.pc.close()
        for connection in self.connections[1:]:
            await connection.close()
        for feeder in self.feeders:
            feeder.cancel()


def sdp_fragment(connection):
    """The application/trickle-ice-sdpfrag of an ICE agent."""
    candidates = "".join(f"a=candidate:{candidate.to_sdp()}\r\n" for candidate in connection.local_candidates)
    credentials = f"a=ice-ufrag:{connection.local_username}\r\na=ice-pwd:{connection.local_password}\r\n"
    return f"m=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\n{credentials}{candidates}a=end-of-candidates\r\n"


async def until(what, look, seconds=20):
    """Waits until `look` is true."""
    end = asyncio.get_running_loop().time() + seconds
    while not look():
        if asyncio.get_running_loop().time() > end:
            raise AssertionError(f"{what}: not within {seconds} s")
        await asyncio.sleep(0.05)


def assert_same_stream(test, sent, received, packets_min):
    """`received` is an unbroken piece of `sent`: payloads and markers equal, timestamps as far apart."""
    test.assertGreaterEqual(len(received), packets_min)
    first = received[0].sequence
    # Sequence numbers from the first on, across the wrap, retransmissions once.
    ordered = [s for _, s in sorted({(s.sequence - first + 0x8000) % 0x10000: s for s in received}.items())]
    numbers = [(s.sequence - ordered[0].sequence) % 0x10000 for s in ordered]
    test.assertEqual(numbers, list(range(len(ordered))), "no sequence number is missing")
    # Times are counted from the first packet: a node chooses its own start.
    starts = [i for i, s in enumerate(sent) if s.payload == ordered[0].payload]
    test.assertEqual(len(starts), 1, "the first payload that arrived was sent once")
    piece = sent[starts[0] : starts[0] + len(ordered)]
    shape = lambda samples: [((s.timestamp - samples[0].timestamp) % 2**32, s.marker, s.payload) for s in samples]
    test.assertEqual(len(piece), len(ordered))
    for i, (there, here) in enumerate(zip(shape(piece), shape(ordered))):
        test.assertEqual(there, here, f"packet {i} of {len(ordered)}")


def _other_fingerprint(line):
    if not line.startswith("a=fingerprint:"):
        return line
    head, digest = line.rsplit(" ", 1)
    return f"{head} {'00' if digest[:2] != '00' else '11'}{digest[2:]}"


def _request(method, url, token, body, headers=None):
    headers = headers or {"Content-Type": "application/sdp"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, data=body and body.encode(), method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()
