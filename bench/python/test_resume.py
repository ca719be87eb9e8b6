"""A node dies, and a client of LiveKit's SDK goes on at another with the same peer connection: nobody sees it leave."""

import asyncio
import time
import unittest

import nodes as nodes_of_one_pop
from client import Client, sdp_fragment, until
from guest import Guest, Wire, until_tone, watch
from livekit import rtc
from livekit.rtc._ffi_client import FfiClient
from livekit.rtc._proto.ffi_pb2 import FfiRequest

RED, BLUE = (90, 240), (240, 110)


class Pictures:
    """When each picture of a track was decoded, to some 20 ms, by the statistics of the connection: in about one of a hundred calls, also
    where no node dies, no `VideoStream` of a track gets the pictures that are decoded."""

    def __init__(self, track):
        self.at = []
        self.track = track
        self.task = asyncio.create_task(self._collect())

    async def _collect(self):
        decoded = 0
        while True:
            for report in await self.track.get_stats():
                if report.HasField("inbound_rtp") and report.inbound_rtp.inbound.frames_decoded != decoded:
                    decoded = report.inbound_rtp.inbound.frames_decoded
                    self.at.append(time.monotonic())
            await asyncio.sleep(0.02)

    def gap_over(self, moment):
        """Seconds between the last picture before `moment` and the first after; `None`: none has come."""
        before = [at for at in self.at if at <= moment]
        after = [at for at in self.at if at > moment + 0.1]
        return after[0] - before[-1] if before and after else None

    def close(self):
        self.task.cancel()


class Call(unittest.IsolatedAsyncioTestCase):
    """`ALLOWED`: what clients may see of it."""

    ALLOWED = {"reconnecting", "reconnected", "data_received", "active_speakers_changed", "track_unmuted"}

    async def start(self, split):
        self.nodes = nodes_of_one_pop.Nodes("resume", ("a", "b", "c"), split=split)
        self.addCleanup(self.nodes.stop)
        await until("nodes that know each other", self.nodes.are_whole, 10)
        return self.nodes

    async def call(self, ann, bob):
        """Both publish pictures, ann also a tone that she has muted. When each picture came at each, and her tone."""
        await ann.join()
        await bob.join()
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
        return pictures, tone

    async def goes_on(self, ann, bob, pictures, tone, died):
        await until("pictures again", lambda: all(it.gap_over(died) for it in pictures.values()), 10)
        gaps = {who: round(1_000 * it.gap_over(died)) for who, it in pictures.items()}
        print(f"ms without a picture: {gaps}", flush=True)
        self.assertLess(max(gaps.values()), 5_000)
        await ann.until_told("reconnected")
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
            (now,) = set(self.people("a", room).values())
            self.assertNotIn(now, ("a", at))
        finally:
            await bob.leave()
            await ann.leave()

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
