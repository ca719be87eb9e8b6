"""A node dies, and a client of LiveKit's SDK goes on at another with the same peer connection: nobody sees it leave."""

import asyncio
import signal
import struct
import time
import unittest

import nodes as nodes_of_one_pop
from client import Client, sdp_fragment, until
from guest import Guest, Wire, read, until_tone
from livekit import api, rtc
from livekit.rtc._ffi_client import FfiClient
from livekit.rtc._proto.ffi_pb2 import FfiRequest

from node import SECRET
from owners import SETTLED_S, Owners
from stall import Stalls

RED, BLUE = (90, 240), (240, 110)
VIDEO = rtc.TrackKind.KIND_VIDEO
# Media that nothing happened to comes each 67 ms; where a node dies there is none for 0.3 s and more.
PAUSE_S_MAX = 0.5
PICTURES_MIN = 15
STOP_S = 2


def setUpModule():
    global stalls
    stalls = Stalls()


def tearDownModule():
    stalls.stop()


class Pictures:
    """When each picture of a track was decoded, to some 20 ms, by the statistics of the connection: in about one of a hundred calls, also
    where no node dies, no `VideoStream` of a track gets the pictures that are decoded."""

    def __init__(self, track):
        self.at = []
        self.track = track
        # The node's stream and how many of its packets are missing; each transport has streams of its own.
        self.stream, self.lost = None, 0
        self.task = asyncio.create_task(self._collect())

    async def _collect(self):
        decoded = 0
        while True:
            for report in await self.track.get_stats():
                if report.HasField("inbound_rtp") and report.inbound_rtp.inbound.frames_decoded != decoded:
                    report = report.inbound_rtp
                    decoded, self.stream, self.lost = report.inbound.frames_decoded, report.stream.ssrc, report.received.packets_lost
                    self.at.append(time.monotonic())
            await asyncio.sleep(0.02)

    def gap_over(self, moment):
        """The longest time in seconds without a picture that ended after `moment`; `None`: not enough have come since. What came before is
        decoded a little later."""
        gaps = [end - begin for begin, end in zip(self.at, self.at[1:]) if end > moment]
        return max(gaps) if len(gaps) >= PICTURES_MIN else None

    def close(self):
        self.task.cancel()


class Numbers:
    """The numbers of pictures as they are shown; now and then a stream shows none (`Pictures`)."""

    def __init__(self, track):
        self.all = []
        self.stream = rtc.VideoStream(track, format=rtc.VideoBufferType.I420)
        self.task = asyncio.create_task(self._collect())

    async def _collect(self):
        async for event in self.stream:
            number, _ = read(event.frame)
            if number is not None:
                self.all.append(number)

    def back(self):
        """Each step to one that is older, of 256 numbers half of which are behind."""
        return [(one, next) for one, next in zip(self.all, self.all[1:]) if (next - one) % 256 > 128]

    async def close(self):
        self.task.cancel()
        await self.stream.aclose()


def media_from(capture, ports):
    """When each datagram with RTP or RTCP left one of these ports, and to which, by a capture of loopback that may still be written."""
    data = capture.read_bytes()
    at = 24
    while at + 16 <= len(data):
        seconds, micros, length, _ = struct.unpack_from("<IIII", data, at)
        frame, at = data[at + 16 : at + 16 + length], at + 16 + length
        # Ethernet, IPv4 of 20 bytes, UDP.
        if len(frame) > 42 and frame[12:14] == b"\x08\x00" and frame[23] == 17:
            source, target = struct.unpack_from(">HH", frame, 34)
            if source in ports and 128 <= frame[42] < 192:
                yield seconds + micros / 1e6, target


class Call(unittest.IsolatedAsyncioTestCase):
    """`ALLOWED`: what clients may see of it."""

    ALLOWED = {"reconnecting", "reconnected", "data_received", "active_speakers_changed", "track_unmuted"}

    async def start(self, split):
        self.nodes = nodes_of_one_pop.Nodes("resume", ("a", "b", "c"), split=split)
        self.addCleanup(self.nodes.stop)
        await until("nodes that know each other", self.nodes.are_whole, 10)
        stalls.begin()
        return self.nodes

    async def call(self, ann, bob):
        """Both publish pictures, ann also a tone that she has muted. When each picture came at each, and her tone."""
        for guest in (ann, bob):
            if not guest.room.isconnected():
                await guest.join()
        await ann.publish_video(RED)
        tone = await ann.publish_tone(440)
        await bob.publish_video(BLUE)
        tracks = {"bob": await bob.track("ann", rtc.TrackKind.KIND_VIDEO), "ann": await ann.track("bob", rtc.TrackKind.KIND_VIDEO)}
        await until_tone(await bob.track("ann", rtc.TrackKind.KIND_AUDIO), 440)
        await ann.me.publish_data(b"before", topic="before")
        await bob.until_told("data_received")
        tone.track.mute()
        await bob.until_told("track_muted")
        pictures = {who: Pictures(track) for who, track in tracks.items()}
        await until("pictures", lambda: all(it.at for it in pictures.values()), 10)
        await asyncio.sleep(1)
        for guest in (ann, bob):
            guest.events.clear()
        self.owners = {guest.identity: Owners(self.nodes, ann.room.name, guest.identity) for guest in (ann, bob)}
        for owners in self.owners.values():
            self.addCleanup(owners.close)
        return pictures, tone

    async def goes_on(self, ann, bob, pictures, tone, died):
        await until("pictures again", lambda: all(it.gap_over(died) for it in pictures.values()), 10)
        gaps = {who: round(1_000 * it.gap_over(died)) for who, it in pictures.items()}
        print(f"ms without a picture: {gaps}", flush=True)
        self.assertLess(max(gaps.values()), 5_000)
        await ann.until_told("reconnected")
        for who, other in ((ann, bob), (bob, ann)):
            self.assertIs(who.tracks(other.identity, VIDEO)[0].track, pictures[who.identity].track, "the same track object")
        await ann.me.publish_data(b"after", topic="after")
        await bob.until_told("data_received")
        await bob.me.publish_data(b"back", topic="back")
        await ann.until_told("data_received")
        self.assertTrue(tone.muted and bob.room.remote_participants["ann"].track_publications[tone.sid].muted)
        tone.track.unmute()
        await until_tone(await bob.track("ann", rtc.TrackKind.KIND_AUDIO), 440)
        for guest in (ann, bob):
            self.assertEqual({name for name, _ in guest.events} - self.ALLOWED, set(), guest.identity)
        for it in pictures.values():
            it.close()

    async def each_has_one_owner(self, at, before):
        """Soon after the first of `at` said that another node than `before` has somebody, all of them say so, and nobody says more."""
        for identity, owners in self.owners.items():
            (now,) = owners.now(at[0])
            if now != before[identity]:
                settled = owners.taken_at(now) + SETTLED_S + 2 * stalls.seconds()
                await until("everybody was asked", lambda: all(owners.since(name, settled) for name in at), 10)
                for name in at:
                    self.assertEqual([it for it in owners.since(name, settled) if it != [now]], [], f"{identity} at {now}, as {name} knows it")
                late = [owners.seen[name] for name in at]
                late = max(asked for seen in late for asked, _, it in seen if it != [now]) - owners.taken_at(now)
                print(f"{identity} is at {now}: the last node said otherwise {1_000 * late:.0f} ms after the first said so", flush=True)
            owners.close()

    def starts_of(self, name):
        return [it["incarnation"]["start"] for it in self.nodes["b"].status()["nodes"] if it["node"] == name]

    def people(self, at, room):
        sessions = [it for it in self.nodes[at].sessions()["sessions"] if it["id"] == room]
        return {it["identity"]: it["node"] for session in sessions for it in session["participants"]}


class Resume(Call):
    async def test_two_of_one_node_go_on_with_each_other(self):
        nodes, room = await self.start(split=False), "both"
        wire = Wire(nodes["a"])
        ann, bob = Guest(nodes["a"], room, "ann"), Guest(nodes["a"], room, "bob")
        ann.url = bob.url = f"ws://127.0.0.1:{await wire.start()}"
        try:
            pictures, tone = await self.call(ann, bob)
            await until("b keeps the room", lambda: self.people("b", room) == {"ann": "a", "bob": "a"}, 5)
            wire.node = nodes["b"]
            nodes["a"].kill()
            wire.cut()
            await self.goes_on(ann, bob, pictures, tone, time.monotonic())
            await self.each_has_one_owner("bc", {"ann": "a", "bob": "a"})
            self.assertEqual(set(self.people("b", room)), {"ann", "bob"})
        finally:
            await bob.leave()
            await ann.leave()
            wire.close()

    async def test_who_was_at_a_node_that_died_goes_on_at_another(self):
        nodes, room = await self.start(split=False), "call"
        wire = Wire(nodes["a"])
        ann, bob = Guest(nodes["a"], room, "ann"), Guest(nodes["b"], room, "bob")
        ann.url = f"ws://127.0.0.1:{await wire.start()}"
        try:
            pictures, tone = await self.call(ann, bob)
            sid = ann.me.sid
            # Nobody of the room is at c, and it knows who is.
            await until("c keeps the room", lambda: self.people("c", room) == {"ann": "a", "bob": "b"}, 5)
            wire.node = nodes["c"]
            nodes["a"].kill()
            wire.cut()
            await self.goes_on(ann, bob, pictures, tone, time.monotonic())
            await self.each_has_one_owner("bc", {"ann": "a", "bob": "b"})
            people = self.people("b", room)
            self.assertIn(people.pop("ann"), ("b", "c"))
            self.assertEqual(people, {"bob": "b"})
            self.assertEqual(ann.me.sid, sid)
            self.assertEqual(bob.told("reconnecting"), [])
        finally:
            await bob.leave()
            await ann.leave()
            wire.close()

    async def test_what_a_client_has_paused_stays_so_where_it_goes_on(self):
        """LiveKit's Rust SDK, which this one stands on, does not say it again. Python has no name for the request; its SDK's library has it."""
        nodes, room = await self.start(split=False), "paused"
        wire = Wire(nodes["a"])
        ann, bob = Guest(nodes["a"], room, "ann"), Guest(nodes["b"], room, "bob")
        ann.url = f"ws://127.0.0.1:{await wire.start()}"
        paused = lambda at: self.wish(at, room, "ann").get("paused")
        try:
            await ann.join()
            await bob.join()
            await bob.publish_video(BLUE)
            track = await ann.track("bob", rtc.TrackKind.KIND_VIDEO)
            pictures = Pictures(track)
            await until("pictures", lambda: pictures.at, 10)
            (publication,) = ann.tracks("bob", rtc.TrackKind.KIND_VIDEO)
            self.enable(publication, False)
            await until("a knows", lambda: paused("a"), 5)
            # Others are told of it together, at most 2 s later.
            await asyncio.sleep(2.5)
            await until("c keeps the room", lambda: self.people("c", room) == {"ann": "a", "bob": "b"}, 5)
            wire.node = nodes["c"]
            nodes["a"].kill()
            wire.cut()
            await ann.until_told("reconnected")
            at = self.people("b", room)["ann"]
            self.assertEqual(paused(at), True, f"at {at}")
            seen = len(pictures.at)
            self.enable(publication, True)
            await until("pictures again", lambda: len(pictures.at) > seen + 5, 10)
            self.assertEqual(paused(at), False)
            pictures.close()
        finally:
            await bob.leave()
            await ann.leave()
            wire.close()

    @staticmethod
    def enable(publication, enabled):
        request = FfiRequest()
        request.enable_remote_track_publication.track_publication_handle = publication._ffi_handle.handle
        request.enable_remote_track_publication.enabled = enabled
        FfiClient.instance.request(request)

    def wish(self, at, room, identity):
        """How a member wants the picture that it is fed with, as its node knows it."""
        (session,) = (it for it in self.nodes[at].sessions()["sessions"] if it["id"] == room)
        (person,) = (it for it in session["participants"] if it["identity"] == identity)
        fed = [it for it in person.get("subscriptions", ()) if it["kind"] == "video" and it["source"]]
        return fed[0].get("wish", {}) if fed else {}

    async def test_two_whose_node_died_behind_the_proxy_of_another_go_on(self):
        nodes, room = await self.start(split=True), "both"
        ann, bob = Guest(nodes["a"], room, "ann"), Guest(nodes["a"], room, "bob")
        try:
            pictures, tone = await self.call(ann, bob)
            (at,) = set(self.people("a", room).values())
            self.assertNotEqual(at, "a", "their transports are elsewhere than their sockets")
            nodes[at].kill()
            await self.goes_on(ann, bob, pictures, tone, time.monotonic())
            await self.each_has_one_owner([name for name in nodes if name != at], {"ann": at, "bob": at})
            (now,) = set(self.people("a", room).values())
            self.assertNotIn(now, ("a", at))
        finally:
            await bob.leave()
            await ann.leave()

    async def test_who_loses_the_node_of_its_socket_alone_keeps_the_media_that_it_has(self):
        nodes, room = await self.start(split=True), "socket"
        ann, bob = Guest(nodes["a"], room, "ann"), Guest(nodes["a"], room, "bob")
        wire = None
        try:
            await bob.join()
            # Her socket is where nobody's transport is: no room gets one at the node that was asked, and his is at its second, or first.
            (door,) = set(nodes) - {"a", self.people("a", room)["bob"]}
            wire = Wire(nodes[door])
            ann.url = f"ws://127.0.0.1:{await wire.start()}"
            pictures, tone = await self.call(ann, bob)
            people = self.people("a", room)
            (third,) = set(nodes) - {door, people["ann"]}
            self.assertNotIn(door, people.values())
            streams = {who: (it.stream, it.lost) for who, it in pictures.items()}
            wire.node = nodes[third]
            nodes[door].kill()
            died = time.monotonic()
            wire.cut()
            await self.goes_on(ann, bob, pictures, tone, died)
            for who, it in pictures.items():
                print(f"{who}: without a picture for {1_000 * it.gap_over(died):.0f} ms at most", flush=True)
                self.assertLess(it.gap_over(died), PAUSE_S_MAX + 2 * stalls.seconds())
                self.assertEqual((it.stream, it.lost), streams[who], "the stream that it was, and not a packet is missing")
            self.assertEqual(bob.told("reconnecting"), [])
            for identity, owners in self.owners.items():
                seen = [it for name in nodes if name != door for it in owners.since(name, died)]
                self.assertEqual([it for it in seen if it != [people[identity]]], [], f"{identity} was at {people[identity]} all the time")
        finally:
            await bob.leave()
            await ann.leave()
            if wire:
                wire.close()

    async def test_a_node_that_stood_still_while_its_client_went_on_elsewhere_has_it_no_more_and_sends_it_nothing(self):
        nodes, room = await self.start(split=False), "stopped"
        wire = Wire(nodes["a"])
        ann, bob = Guest(nodes["a"], room, "ann"), Guest(nodes["b"], room, "bob")
        ann.url = f"ws://127.0.0.1:{await wire.start()}"
        try:
            pictures, tone = await self.call(ann, bob)
            numbers = Numbers(await bob.track("ann", VIDEO))
            await until("c keeps the room", lambda: self.people("c", room) == {"ann": "a", "bob": "b"}, 5)
            wire.node = nodes["c"]
            (start,) = self.starts_of("a")
            begin, stopped = time.time(), time.monotonic()
            nodes["a"].process.send_signal(signal.SIGSTOP)
            try:
                wire.cut()
                await self.goes_on(ann, bob, pictures, tone, stopped)
                await asyncio.sleep(max(0, stopped + STOP_S - time.monotonic()))
            finally:
                nodes["a"].process.send_signal(signal.SIGCONT)
            end, seen = time.time(), len(numbers.all)
            await self.each_has_one_owner("bc", {"ann": "a", "bob": "b"})
            # In its process, where it says so once more.
            await until("a begins anew", lambda: self.starts_of("a") not in ([], [start]), 15)
            await asyncio.to_thread(nodes["a"].await_ready)
            await until("nodes that know each other", nodes.are_whole, 10)
            at = self.people("b", room)["ann"]
            self.assertIn(at, ("b", "c"))
            everywhere = lambda: all(self.people(name, room) == {"ann": at, "bob": "b"} for name in nodes)
            await until(f"all know that ann is at {at}", everywhere, 5)
            await asyncio.sleep(1.5)
            self.assertTrue(everywhere(), "and so it stays")
            self.assertEqual({name for guest in (ann, bob) for name, _ in guest.events} - self.ALLOWED, set())
            self.assertGreater(len(numbers.all), seen if numbers.all else -1)
            self.assertEqual(numbers.back(), [], f"the picture goes on, of {len(numbers.all)}")
            # Her port is the one that a sent most to before.
            sent = list(media_from(nodes["a"].capture, range(nodes["a"].media_port, nodes["a"].media_port + 2)))
            before = [port for at, port in sent if at < begin]
            her = max(set(before), key=before.count)
            self.assertGreater(before.count(her), 20)
            late = [round(at - end, 3) for at, port in sent if port == her and at > end]
            self.assertEqual(late, [], "seconds after it went on")
            await numbers.close()
        finally:
            await bob.leave()
            await ann.leave()
            wire.close()

    async def test_who_was_at_a_node_that_begins_anew_within_50_ms_goes_on_there_or_elsewhere(self):
        nodes = await self.start(split=False)
        for door in ("c", "a"):
            room, wire = f"anew-{door}", Wire(nodes["a"])
            ann, bob = Guest(nodes["a"], room, "ann"), Guest(nodes["b"], room, "bob")
            ann.url = f"ws://127.0.0.1:{await wire.start()}"
            try:
                pictures, tone = await self.call(ann, bob)
                await until("c keeps the room", lambda: self.people("c", room) == {"ann": "a", "bob": "b"}, 5)
                sid = ann.me.sid
                wire.node = nodes[door]
                nodes["a"].kill()
                died = time.monotonic()
                nodes["a"].start()
                again = time.monotonic()
                wire.open.clear()
                wire.cut()
                self.assertLess(again - died, 0.05 + 2 * stalls.seconds())
                await asyncio.to_thread(nodes["a"].await_ready)
                wire.open.set()
                await self.goes_on(ann, bob, pictures, tone, died)
                self.assertEqual(ann.me.sid, sid)
                self.assertEqual(bob.told("reconnecting"), [])
                await until("nodes that know each other", nodes.are_whole, 10)
                everywhere = lambda: all(self.people(name, room) == self.people("b", room) for name in nodes)
                await until("all know the same", everywhere, 5)
                print(f"back at {self.people('b', room)['ann']}, by {door}", flush=True)
                self.assertEqual(set(self.people("b", room)), {"ann", "bob"})
            finally:
                await bob.leave()
                await ann.leave()
                wire.close()

    async def test_what_somebody_may_and_who_may_take_its_tracks_holds_where_it_goes_on(self):
        nodes, room = await self.start(split=False), "rights"
        wire = Wire(nodes["a"])
        ann, dan = Guest(nodes["a"], room, "ann"), Guest(nodes["a"], room, "dan")
        bob, eve = Guest(nodes["b"], room, "bob"), Guest(nodes["b"], room, "eve")
        ann.url = dan.url = f"ws://127.0.0.1:{await wire.start()}"
        service = api.LiveKitAPI(nodes["b"].http, "e2e", SECRET)
        everybody = {"ann": "a", "dan": "a", "bob": "b", "eve": "b"}
        try:
            for guest in (ann, bob, dan):
                await guest.join()
            await ann.publish_video(RED)
            await bob.publish_video(BLUE)
            pictures = {"bob": Pictures(await bob.track("ann", VIDEO)), "ann": Pictures(await ann.track("bob", VIDEO))}
            ann.me.set_track_subscription_permissions(
                allow_all_participants=False,
                participant_permissions=[rtc.ParticipantTrackPermission(participant_identity="bob", allow_all=True)],
            )
            await eve.join()
            await eve.track("bob", VIDEO)
            self.assertEqual(eve.tracks("ann"), [])
            may = {"can_subscribe": True, "can_publish": True, "can_publish_data": True}
            for guest, less in ((ann, "can_publish_data"), (dan, "can_publish")):
                permission = api.ParticipantPermission(**may | {less: False})
                await service.room.update_participant(
                    api.UpdateParticipantRequest(room=room, identity=guest.identity, permission=permission)
                )
                await guest.until_told("participant_permissions_changed")
            await until("pictures", lambda: all(it.at for it in pictures.values()), 10)
            await until("c keeps the room", lambda: self.people("c", room) == everybody, 5)
            for guest in (ann, bob, eve, dan):
                guest.events.clear()
            wire.node = nodes["c"]
            nodes["a"].kill()
            died = time.monotonic()
            wire.cut()
            await asyncio.gather(*(guest.until_told("reconnected") for guest in (ann, dan)))
            await until("pictures again", lambda: all(it.gap_over(died) for it in pictures.values()), 10)
            # What he publishes nobody gets, and what she says nobody hears. Others' words come meanwhile.
            with self.assertRaises(Exception):
                await asyncio.wait_for(dan.publish_tone(440), 3)
            await ann.me.publish_data(b"of ann")
            await bob.me.publish_data(b"of bob")
            await eve.until_told("data_received")
            await asyncio.sleep(0.5)
            heard = [packet.data for guest in (bob, eve) for (packet,) in guest.told("data_received")]
            self.assertEqual(heard, [b"of bob"])
            self.assertEqual((eve.told("track_subscribed"), eve.tracks("ann")), ([], []), "not even for a moment")
            self.assertEqual(bob.tracks("ann", VIDEO)[0].track, pictures["bob"].track)
            listed = (await service.room.list_participants(api.ListParticipantsRequest(room=room))).participants
            listed = {it.identity: (it.permission.can_publish, it.permission.can_publish_data) for it in listed}
            self.assertEqual((listed["ann"], listed["dan"], listed["bob"]), ((True, False), (False, True), (True, True)))
            self.assertEqual(set(self.people("b", room)), set(everybody))
            for it in pictures.values():
                it.close()
        finally:
            await service.aclose()
            for guest in (bob, eve, dan, ann):
                await guest.leave()
            wire.close()

    async def test_a_whip_camera_and_a_whep_viewer_whose_node_died_are_told_so_at_once_and_post_anew(self):
        """What a client needs to notice is its own matter: here it asks as soon as its node is dead."""
        nodes = await self.start(split=False)
        camera, far, camera_again = Client(), Client(), Client()
        still, viewer, viewer_again = Client(), Client(), Client()
        try:
            await (await camera.publish(nodes["a"], "up")).until_connected()
            await (await far.watch(nodes["b"], "up")).until_connected()
            await (await still.publish(nodes["b"], "down")).until_connected()
            await (await viewer.watch(nodes["a"], "down")).until_connected()
            for client in (far, viewer):
                await until("some packets", lambda: min(len(it) for it in client.received.values()) >= 50, 20)
            nodes["a"].kill()
            died = time.monotonic()
            before = {kind: len(it) for kind, it in far.received.items()}
            # The service address leads to another node now. A fingerprint may not change (RFC 9725), so there is nothing to restart.
            for client in (camera, viewer):
                fragment = sdp_fragment(client.connections[-1])
                for name in ("b", "c"):
                    client.resource = client.resource.replace(nodes["a"].http, nodes[name].http).replace(nodes["b"].http, nodes[name].http)
                    status, _, answer = await client.patch(fragment, "*")
                    print(f"PATCH at {name} after {time.monotonic() - died:.3f} s: {status} {answer.strip()}", flush=True)
                    self.assertEqual(status, 404)
                client.resource = None
            await asyncio.gather(camera_again.publish(nodes["c"], "up"), viewer_again.watch(nodes["c"], "down"))
            await until("the camera again", lambda: all(len(it) > before[kind] + 20 for kind, it in far.received.items()), 20)
            await until("the picture again", lambda: all(len(it) > 20 for it in viewer_again.received.values()), 20)
            for kind in ("audio", "video"):
                # Who watches on gets what is sent now, but for the numbers of VP8's pictures, which go on: X, I and 15 bits of them.
                head = {"audio": 0, "video": 4}[kind]
                bodies = lambda samples: [it.payload[head:] for it in samples]
                for sent, received in ((camera_again, far.received[kind][-15:]), (still, viewer_again.received[kind][:15])):
                    got, sent = bodies(received), bodies(sent.sent[kind])
                    self.assertTrue(got[0] in sent, f"{kind} that was sent")
                    first = sent.index(got[0])
                    self.assertTrue(got == sent[first : first + len(got)], f"{kind} as it was sent, and in order")
                up = next(at for at in far.arrivals[kind][before[kind] :] if at > died + 0.1) - far.arrivals[kind][before[kind] - 1]
                down = viewer_again.arrivals[kind][0] - viewer.arrivals[kind][-1]
                print(f"ms without {kind}: WHIP {1_000 * up:.0f}, WHEP {1_000 * down:.0f}", flush=True)
        finally:
            for client in (camera, camera_again, far, still, viewer, viewer_again):
                await client.close()


if __name__ == "__main__":
    unittest.main()
