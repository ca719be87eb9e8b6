"""Sessions that span PoPs, with LiveKit's own SDK at each: fra and sin may use the API key of the session, ams may not."""

import asyncio
import unittest

from client import until
from guest import Guest, until_tone, watch
from livekit import rtc
from pops import Pops

ROOM = "span"
WIRES = ["fra-ams delay 5ms", "ams-sin delay 50ms", "fra-sin delay 80ms"]
# Of U and V.
BLUE, GREEN = (200, 100), (60, 80)
VIDEO, AUDIO = rtc.TrackKind.KIND_VIDEO, rtc.TrackKind.KIND_AUDIO


def setUpModule():
    global pops, nodes
    # fra and sin hear of each other from ams.
    pops = Pops("spans", ["fra", "ams", "sin"], WIRES, {"fra": "e2e,other", "sin": "e2e"}, {"fra": ["ams"], "ams": [], "sin": ["ams"]})
    nodes = pops.nodes


def tearDownModule():
    pops.stop()


def others(guest):
    return sorted(guest.room.remote_participants)


async def until_linked():
    links = [(one, other) for one in nodes for other in nodes if one != other]
    await until("all links are up", lambda: all(pops.link(*of) for of in links), 20)


class Spans(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        await until_linked()
        self.guests = []

    async def asyncTearDown(self):
        for guest in self.guests:
            await guest.leave()

    async def join(self, pop, identity, room=ROOM):
        guest = await Guest(nodes[pop], room, identity).join()
        self.guests.append(guest)
        return guest

    async def see(self, guest, identity, chroma):
        """Decoded pictures of somebody, undamaged and in order."""
        pictures = await watch(await guest.track(identity, VIDEO), 30)
        self.assertEqual(len(pictures), 30)
        numbers = [number for number, _ in pictures]
        self.assertNotIn(None, numbers)
        steps = [(after - before) % 256 for before, after in zip(numbers, numbers[1:])]
        self.assertLess(max(steps), 30, numbers)
        for _, seen in pictures:
            self.assertLess(max(abs(a - b) for a, b in zip(seen, chroma)), 25, seen)

    async def test_a_call_is_one_across_pops(self):
        ann = await self.join("fra", "ann")
        ben = await self.join("sin", "ben")
        await until("each is there for the other", lambda: others(ann) == ["ben"] and others(ben) == ["ann"], 10)
        await ann.publish_video(BLUE)
        await ben.publish_tone(440)
        await self.see(ben, "ann", BLUE)
        await until_tone(await ann.track("ben", AUDIO), 440)
        await ann.me.publish_data("across the ocean", reliable=True)
        (said,) = await ben.until_told("data_received")
        self.assertEqual(said.data, b"across the ocean")

    async def test_many_who_watch_cost_one_copy(self):
        ann = await self.join("fra", "ann", "copies")
        viewers = [await self.join("sin", f"viewer-{n}", "copies") for n in range(3)]
        await ann.publish_video(BLUE)
        for viewer in viewers:
            await viewer.track("ann", VIDEO)
        before, began = pops.link("fra", "sin"), asyncio.get_running_loop().time()
        await asyncio.sleep(5)
        sent = pops.link("fra", "sin")["bytes_out"] - before["bytes_out"]
        self.assertEqual(pops.link("fra", "sin")["tracks_out"], 1)
        print(f"{sent * 8 / 1_000 / (asyncio.get_running_loop().time() - began):.0f} kbit/s for three viewers", flush=True)

    async def test_a_pop_without_the_key_hears_of_nobody_and_is_not_heard(self):
        ann = await self.join("fra", "ann", "closed")
        eve = await self.join("ams", "eve", "closed")
        ben = await self.join("sin", "ben", "closed")
        await until("those who may", lambda: others(ann) == ["ben"] and others(ben) == ["ann"], 10)
        await eve.me.publish_data("let me in", reliable=True)
        await asyncio.sleep(3)
        self.assertEqual((others(eve), others(ann), others(ben)), ([], ["ben"], ["ann"]))
        self.assertEqual(ann.told("data_received") + ben.told("data_received"), [])

    async def test_who_leaves_is_gone_and_a_blip_moves_nobody(self):
        ann = await self.join("fra", "ann", "blip")
        ben = await self.join("sin", "ben", "blip")
        await until("each is there for the other", lambda: others(ann) == ["ben"] and others(ben) == ["ann"], 10)
        pops.network.change("fra-sin loss 100%")
        await asyncio.sleep(1.5)
        pops.network.change("fra-sin loss none")
        await asyncio.sleep(4)
        self.assertEqual((ann.told("participant_disconnected"), ben.told("participant_disconnected")), ([], []))
        self.assertEqual((others(ann), others(ben)), (["ben"], ["ann"]))
        await ben.leave()
        await until("ben is gone", lambda: others(ann) == [], 5)

    async def test_what_is_cut_for_long_parts_and_meets_again(self):
        ann = await self.join("fra", "ann", "cut")
        ben = await self.join("sin", "ben", "cut")
        await until("each is there for the other", lambda: others(ann) == ["ben"] and others(ben) == ["ann"], 10)
        # And what goes from one to the other over ams.
        for wire in ("fra-sin", "ams-sin"):
            pops.network.change(f"{wire} loss 100%")
        await until("both halves go on alone", lambda: others(ann) == [] and others(ben) == [], 30)
        cat = await self.join("sin", "cat", "cut")
        for wire in ("fra-sin", "ams-sin"):
            pops.network.change(f"{wire} loss none")
        await until("they are one again", lambda: others(ann) == ["ben", "cat"] and others(ben) == ["ann", "cat"], 30)
        await cat.publish_video(GREEN)
        await self.see(ann, "cat", GREEN)


if __name__ == "__main__":
    unittest.main()
