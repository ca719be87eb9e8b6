"""A PoP of two nodes far from a publisher: one of them, the gateway of the session, takes the tracks from there and passes them on. LiveKit's
own SDK publishes in fra, and watches at both nodes of sin."""

import asyncio
import unittest

from client import until
from guest import Guest, until_tone, watch
from livekit import rtc
from pops import Pops

WIRES = ["fra-sin delay 40ms", "fra-sinB delay 40ms"]
KEYS = {"fra": "e2e", "sin": "e2e", "sinB": "e2e"}
BOTH = ("sin", "sinB")
BLUE = (200, 100)
VIDEO, AUDIO = rtc.TrackKind.KIND_VIDEO, rtc.TrackKind.KIND_AUDIO
# How long pictures may be away when the node that passes them on dies, or drains.
GAP_S = 3
# After the last subscriber has left nothing crosses the ocean.
END_S = 1


def crossing(pops):
    """How many tracks go to each node of sin."""
    return {name: pops.link("fra", name)["tracks_out"] for name in BOTH}


def other_than(name):
    return next(other for other in BOTH if other != name)


class Abroad(unittest.IsolatedAsyncioTestCase):
    """With people of the test's own, and nodes of its class."""

    schemas, keys = {}, KEYS

    @classmethod
    def setUpClass(cls):
        cls.pops = Pops(f"gateway-{cls.__name__}", ["fra", *BOTH], WIRES, cls.keys, schemas=cls.schemas)

    @classmethod
    def tearDownClass(cls):
        cls.pops.stop()

    async def asyncSetUp(self):
        self.guests, self.notes = [], []
        await self.until_whole()

    async def asyncTearDown(self):
        for note in self.notes:
            note.cancel()
        for guest in self.guests:
            await guest.leave()

    async def until_whole(self):
        ends = [("fra", "sin"), ("fra", "sinB"), ("sin", "fra"), ("sinB", "fra"), BOTH, BOTH[::-1]]
        await until("all links are up", lambda: all(self.pops.link(*of) for of in ends), 30)

    async def join(self, name, room, identity):
        guest = await Guest(self.pops.nodes[name], room, identity).join()
        self.guests.append(guest)
        return guest

    async def publish(self, room):
        ann = await self.join("fra", room, "ann")
        await ann.publish_video(BLUE)
        await ann.publish_tone(440)
        return ann

    async def see_and_hear(self, guest):
        """Decoded pictures and the tone of ann, undamaged and in order."""
        pictures = await watch(await guest.track("ann", VIDEO), 30)
        numbers = [number for number, _ in pictures]
        self.assertEqual(len(numbers), 30)
        self.assertNotIn(None, numbers)
        steps = [(after - before) % 256 for before, after in zip(numbers, numbers[1:])]
        self.assertLess(max(steps), 30, numbers)
        for _, seen in pictures:
            self.assertLess(max(abs(a - b) for a, b in zip(seen, BLUE)), 25, seen)
        await until_tone(await guest.track("ann", AUDIO), 440)

    async def note(self, guest):
        """Notes when each picture of ann's comes."""
        track, came = await guest.track("ann", VIDEO), []

        async def collect():
            async for _ in rtc.VideoStream(track):
                came.append(asyncio.get_running_loop().time())

        self.notes.append(asyncio.create_task(collect()))
        await until("pictures come", lambda: len(came) > 30, 20)
        return came

    async def gap_of(self, what, came, change, seconds):
        """The longest pause between two pictures of now and the next seconds, in which something changes."""
        del came[:-1]
        await asyncio.to_thread(change)
        await asyncio.sleep(seconds)
        times = [*came, asyncio.get_running_loop().time()]
        gap = max(after - before for before, after in zip(times, times[1:]))
        print(f"{what}: {gap * 1_000:.0f} ms without a picture, 67 ms are between two", flush=True)
        return gap

    def sent(self):
        """Bytes so far: of media that fra got of ann, of media that left it for the nodes of sin, and all that went into the wires there."""
        metrics = self.pops.nodes["fra"].metrics().items()
        media = lambda *labels: sum(value for key, value in metrics if key.startswith("pop_rtp_bytes_total{") and all(it in key for it in labels))
        wires = self.pops.network.stats()["wires"]
        came, left = media('direction="in"', 'scope="local"'), media('direction="out"', 'scope="mesh"')
        return came, left, sum(wires[f"fra>{name}"]["bytes"] for name in BOTH)

    async def rates(self, seconds):
        """The same in kbit/s."""
        before, began = self.sent(), asyncio.get_running_loop().time()
        await asyncio.sleep(seconds)
        after, took = self.sent(), asyncio.get_running_loop().time() - began
        return [(now - then) * 8 / took / 1_000 for then, now in zip(before, after)]

    async def begin_anew(self, node):
        node.start()
        await asyncio.to_thread(node.await_ready)
        await self.until_whole()

    async def until_one_copy(self, seconds=10):
        """The node that gets both tracks while the other gets none."""
        await until("one node of two gets both tracks", lambda: sorted(crossing(self.pops).values()) == [0, 2], seconds)
        return max(BOTH, key=lambda name: crossing(self.pops)[name])


class Gateway(Abroad):
    async def test_viewers_at_both_nodes_cost_one_copy_and_it_ends_with_the_last(self):
        *_, idle = await self.rates(5)
        await self.publish("copies")
        viewers = {name: await self.join(name, "copies", f"viewer-{name}") for name in BOTH}
        for viewer in viewers.values():
            await self.see_and_hear(viewer)
        gateway = await self.until_one_copy()
        came, both, wire_both = await self.rates(10)
        self.assertEqual(sorted(crossing(self.pops).values()), [0, 2])
        await viewers[other_than(gateway)].leave()
        await until("nothing is passed on", lambda: self.pops.link(gateway, other_than(gateway))["tracks_out"] == 0, 5)
        await self.see_and_hear(viewers[gateway])
        came_later, one, wire_one = await self.rates(10)
        print(f"over the ocean: {both:.0f} kbit/s for {came:.0f} of payload, a viewer at each node; {one:.0f} for {came_later:.0f}, one viewer", flush=True)
        print(f"all that is sent: {idle:.0f} kbit/s idle, {wire_one:.0f} with one viewer, {wire_both:.0f} with both", flush=True)
        # What the encoder makes changes by itself.
        self.assertLess(both / came, 1.15 * one / came_later)
        self.assertLess(wire_both, 1.3 * wire_one)
        await viewers[gateway].leave()
        await asyncio.sleep(END_S)
        self.assertEqual(crossing(self.pops), {"sin": 0, "sinB": 0})
        # Workers tell what they did each second.
        await asyncio.sleep(1)
        _, left, wire_left = await self.rates(3)
        print(f"after the last has left {left:.0f} kbit/s of media, {wire_left:.0f} in all", flush=True)
        self.assertEqual(left, 0)

    async def test_what_is_lost_inside_the_pop_is_repaired_inside_the_pop(self):
        await self.publish("loss")
        viewers = {name: await self.join(name, "loss", f"viewer-{name}") for name in BOTH}
        for viewer in viewers.values():
            await self.see_and_hear(viewer)
        gateway = await self.until_one_copy()
        edge = other_than(gateway)
        before = {of: self.pops.link(*of) for of in ((edge, gateway), (gateway, "fra"))}
        await asyncio.to_thread(self.pops.network.change, f"{gateway}>{edge} loss 4%")
        try:
            await asyncio.sleep(8)
            await self.see_and_hear(viewers[edge])
        finally:
            await asyncio.to_thread(self.pops.network.change, f"{gateway}>{edge} loss none")
        repaired = {of: self.pops.link(*of)["repaired"] - link["repaired"] for of, link in before.items()}
        print(f"repaired: {repaired}", flush=True)
        self.assertGreater(repaired[edge, gateway], 5)
        self.assertLess(repaired[gateway, "fra"], 5, "and nothing of that is asked for afar")
        self.assertEqual(crossing(self.pops), {gateway: 2, edge: 0})

    async def test_the_gateway_is_the_same_for_a_viewer_at_either_node_and_needs_nobody_of_its_own(self):
        gateways = set()
        for name in BOTH:
            await self.publish("either")
            viewer = await self.join(name, "either", f"viewer-{name}")
            await self.see_and_hear(viewer)
            gateways.add(await self.until_one_copy())
            for guest in self.guests:
                await guest.leave()
            await until("nothing crosses", lambda: set(crossing(self.pops).values()) == {0}, END_S + 1)
        self.assertEqual(len(gateways), 1, gateways)

    async def test_pictures_go_on_when_the_gateway_dies_and_are_one_copy_again_when_it_is_back(self):
        await self.publish("death")
        viewers = {name: await self.join(name, "death", f"viewer-{name}") for name in BOTH}
        came = {name: await self.note(viewer) for name, viewer in viewers.items()}
        gateway = await self.until_one_copy()
        survivor, node = other_than(gateway), self.pops.nodes[gateway]
        gap = await self.gap_of("the gateway is killed", came[survivor], node.kill, 6)
        self.assertLess(gap, GAP_S)
        self.assertEqual(self.pops.link("fra", survivor)["tracks_out"], 2)
        await self.see_and_hear(viewers[survivor])
        await self.begin_anew(node)
        # Somebody is there again, too.
        viewer = await self.join(gateway, "death", "later")
        await self.see_and_hear(viewer)
        gap = await self.gap_of("it takes over again", came[survivor], lambda: None, 45)
        self.assertLess(gap, GAP_S)
        self.assertEqual(await self.until_one_copy(1), gateway)
        await self.see_and_hear(viewers[survivor])

    async def test_pictures_go_on_when_the_gateway_stops(self):
        await self.publish("stop")
        for gateway in BOTH:
            survivor, node = other_than(gateway), self.pops.nodes[gateway]
            viewer = await self.join(survivor, "stop", f"viewer-{survivor}")
            came = await self.note(viewer)
            if await self.until_one_copy() == gateway:
                break
            await viewer.leave()
            await until("nothing crosses", lambda: set(crossing(self.pops).values()) == {0}, END_S + 1)
        node.is_killed = True
        gap = await self.gap_of("the gateway stops", came, node.process.terminate, 6)
        self.assertLess(gap, GAP_S)
        self.assertEqual(node.process.wait(10), 0)
        self.assertEqual(self.pops.link("fra", survivor)["tracks_out"], 2)
        await self.see_and_hear(viewer)
        await self.begin_anew(node)


class OneOfTwo(Abroad):
    """Node b of sin passes nothing on, whatever the room."""

    async def see_what_sin_takes_itself(self, what):
        for room in (f"{what} {n}" for n in range(1, 5)):
            await self.publish(room)
            viewer = await self.join("sin", room, "viewer")
            await self.see_and_hear(viewer)
            self.assertEqual(crossing(self.pops), {"sin": 2, "sinB": 0})
            for guest in self.guests:
                await guest.leave()
            await until("nothing crosses", lambda: set(crossing(self.pops).values()) == {0}, END_S + 1)


class Older(OneOfTwo):
    """A node of sin does not know that tracks can be passed on."""

    schemas = {"sinB": 0}

    async def test_who_cannot_pass_tracks_on_is_not_asked_and_each_takes_its_own(self):
        await self.see_what_sin_takes_itself("older")


class Keyless(OneOfTwo):
    """A node of sin has a certificate without the key of the session."""

    keys = {"fra": "e2e", "sin": "e2e", "sinB": "other"}

    async def test_who_may_not_have_the_session_passes_nothing_of_it_on(self):
        await self.see_what_sin_takes_itself("keyless")


if __name__ == "__main__":
    unittest.main()
