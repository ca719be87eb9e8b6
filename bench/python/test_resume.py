"""A node dies, and a client of LiveKit's SDK goes on at another with the same peer connection: nobody sees it leave."""

import asyncio
import time
import unittest

import nodes as nodes_of_one_pop
from client import until
from guest import Guest, Wire, until_tone, watch
from livekit import rtc

RED, BLUE = (90, 240), (240, 110)


class Pictures:
    """When each picture of a track came."""

    def __init__(self, track):
        self.at = []
        self.stream = rtc.VideoStream(track, format=rtc.VideoBufferType.I420)
        self.task = asyncio.create_task(self._collect())

    async def _collect(self):
        async for _ in self.stream:
            self.at.append(time.monotonic())

    def gap_over(self, moment):
        """Seconds between the last picture before `moment` and the first after; `None`: none has come."""
        before = [at for at in self.at if at <= moment]
        after = [at for at in self.at if at > moment + 0.1]
        return after[0] - before[-1] if before and after else None

    async def close(self):
        self.task.cancel()
        await self.stream.aclose()


class Resume(unittest.IsolatedAsyncioTestCase):
    def setUp(self):
        self.nodes = nodes_of_one_pop.Nodes("resume", ("a", "b", "c"), split=False)

    def tearDown(self):
        self.nodes.stop()

    async def test_who_was_at_a_node_that_died_goes_on_at_another(self):
        nodes, room = self.nodes, "call"
        await until("nodes that know each other", nodes.are_whole, 10)
        wire = Wire(nodes["a"])
        ann, bob = Guest(nodes["a"], room, "ann"), Guest(nodes["b"], room, "bob")
        ann.url = f"ws://127.0.0.1:{await wire.start()}"
        try:
            await ann.join()
            await bob.join()
            await ann.publish_video(RED)
            tone = await ann.publish_tone(440)
            await bob.publish_video(BLUE)
            here = await bob.track("ann", rtc.TrackKind.KIND_VIDEO)
            there = await ann.track("bob", rtc.TrackKind.KIND_VIDEO)
            await until_tone(await bob.track("ann", rtc.TrackKind.KIND_AUDIO), 440)
            await ann.me.publish_data(b"before", topic="before")
            await bob.until_told("data_received")
            tone.track.mute()
            await bob.until_told("track_muted")
            # Nobody of the room is at c, and it knows who is.
            await until("c keeps the room", lambda: self.people("c", room) == {"ann": "a", "bob": "b"}, 5)
            pictures = {"up": Pictures(here), "down": Pictures(there)}
            await asyncio.sleep(1)
            sid = ann.me.sid
            ann.events.clear()
            bob.events.clear()
            wire.node = nodes["c"]
            nodes["a"].kill()
            wire.cut()
            died = time.monotonic()
            await until("pictures again", lambda: all(it.gap_over(died) for it in pictures.values()), 10)
            print({way: round(1_000 * it.gap_over(died)) for way, it in pictures.items()}, "ms without a picture", flush=True)
            self.assertEqual(self.people("b", room), {"ann": "c", "bob": "b"})
            await ann.until_told("reconnected")
            self.assertEqual(ann.me.sid, sid)
            # Data goes both ways again.
            await ann.me.publish_data(b"after", topic="after")
            await bob.until_told("data_received")
            await bob.me.publish_data(b"back", topic="back")
            await ann.until_told("data_received")
            self.assertTrue(tone.muted and bob.room.remote_participants["ann"].track_publications[tone.sid].muted)
            tone.track.unmute()
            await until_tone(await bob.track("ann", rtc.TrackKind.KIND_AUDIO), 440)
            allowed = {"reconnecting", "reconnected", "data_received", "active_speakers_changed", "track_unmuted"}
            self.assertEqual({name for name, _ in ann.events} - allowed, set())
            self.assertEqual({name for name, _ in bob.events} - allowed, set())
            for it in pictures.values():
                await it.close()
        finally:
            print([name for name, _ in ann.events], [name for name, _ in bob.events])
            await bob.leave()
            await ann.leave()
            wire.close()

    def people(self, at, room):
        sessions = [it for it in self.nodes[at].sessions()["sessions"] if it["id"] == room]
        return {it["identity"]: it["node"] for session in sessions for it in session["participants"]}


if __name__ == "__main__":
    unittest.main()
