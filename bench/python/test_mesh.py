"""What sessions cost between PoPs, and what they add: bytes on the wire beside the least that there could be, one copy to each PoP, the delay of
one link and of two, and fifty sessions that go over a PoP that knows none of them at once. Light people (`people.py`) are all from one
address; `POP_LONG=1`: as many as there are in real sessions."""

import asyncio
import os
import statistics
import time
import unittest

from client import until
from people import People
from pops import Pops
from test_world import POPS, WIRES

IS_LONG = os.environ.get("POP_LONG") == "1"
PACKET_LEN = 1_100


def wires_of(pops, *, lossless=True):
    """Of these alone."""
    wires = [wire for wire in WIRES if set(wire.split()[0].split("-")) <= set(pops)]
    return [wire.split(" loss")[0] for wire in wires] if lossless else wires


class Mesh(unittest.IsolatedAsyncioTestCase):
    async def start(self, names, wires=None, keys=None):
        wires = wires_of(names) if wires is None else wires
        self.names = names
        self.pops = await asyncio.to_thread(Pops, "mesh", names, wires, keys or dict.fromkeys(names, "e2e"), is_crowded=True)
        self.addCleanup(self.pops.stop)
        self.nodes, self.people = self.pops.nodes, []
        count = len(names) * (len(names) - 1)
        await until("each knows of all paths", lambda: all(len(self.overlay(pop)["paths"]) == count for pop in names), 40)

    async def asyncTearDown(self):
        for people in self.people:
            people.stop()

    def overlay(self, pop):
        return self.nodes[pop].status()["overlay"]

    def route(self, start, end):
        return next((route for route in self.overlay(start)["routes"] if route["to"] == end), {"way": "none"})

    async def come(self, pop, **options):
        people = await asyncio.to_thread(People, self.nodes[pop], origin=self.names.index(pop), packet_size=PACKET_LEN, **options)
        self.people.append(people)
        return people

    def wire_bytes(self):
        """Sent so far between PoPs, IP headers and all: by direction."""
        wires = self.pops.network.stats()["wires"]
        return {name: wire["bytes"] for name, wire in wires.items() if "people" not in name}

    async def sent(self, seconds):
        """The same of so long from now on, and how long it was."""
        before, begun = self.wire_bytes(), time.monotonic()
        await asyncio.sleep(seconds)
        after, took = self.wire_bytes(), time.monotonic() - begun
        return {name: after[name] - before[name] for name in after}, took

    async def cost(self, what, names, people, publishers, fps, seconds):
        """A session of so many people in each of these PoPs, of whom some publish: bytes on the wire over the least."""
        await self.start(names)
        await asyncio.sleep(3)
        idle, took = await self.sent(5)
        idle_kbps = statistics.mean(idle.values()) * 8 / took / 1_000
        bitrate = PACKET_LEN * 8 * fps
        for pop in names:
            await self.come(pop, publishers=publishers, fps=fps, bitrate=bitrate)
        # They take what there is when they come.
        await asyncio.sleep(2)
        watching, receives = [], publishers * len(names)
        for pop in names:
            watching.append(await self.come(pop, watchers=people - publishers, receives=receives))
        await asyncio.sleep(3)
        for watchers in watching:
            watchers.reset()
        sent, took = await self.sent(seconds)
        least = publishers * bitrate / 8 * took
        ratios = [bytes / least for bytes in sent.values()]
        worst = max(sent, key=sent.get)
        came = [watchers.stats() for watchers in watching]
        lost, packets = (sum(of[what] for stats in came for of in stats.values()) for what in ("lost", "packets"))
        print(
            f"{what}: {len(names)} PoPs of {people} people, {publishers} of each publish {bitrate / 1_000:.0f} kb/s: on the wire {statistics.mean(ratios):.3f} of the least"
            f" ({worst}: {max(ratios):.3f}), IP, UDP and control included; of it {idle_kbps:.0f} kb/s of {statistics.mean(sent.values()) * 8 / took / 1_000:.0f} are there"
            f" without any session; {packets} packets came, {lost} did not",
            flush=True,
        )
        for stats in came:
            self.assertEqual(sorted(stats), list(range(len(names))))
            self.assertEqual({of["streams"] for of in stats.values()}, {publishers * (people - publishers)})
        self.assertLess(lost, packets / 1_000)
        for pop in names:
            for link in self.nodes[pop].status()["links"]:
                self.assertEqual((link["tracks_out"], link["tracks_in"]), (publishers, publishers), (pop, link["pop"]))
        # With 40 bytes of a hop and 28 of IP and UDP a packet of 1,100 takes 1.06.
        return statistics.mean(ratios), idle_kbps * 1_000 / 8 * took / least

    async def test_a_session_takes_one_copy_of_its_media_to_each_pop_whatever_the_number_of_people(self):
        ratio, idle = await self.cost("3x8", POPS[:3], 8, 2, 60, 5)
        self.assertLess(ratio - idle, 1.15)

    async def test_the_audience_of_five_pops_costs_the_publisher_s_one_copy_for_each_other(self):
        await self.webinar(20, 30, 5)

    def own_bytes(self, pop):
        """What a PoP has sent to each other one, feedback and echoes included, without what it carries for others."""
        return {link["pop"]: link["bytes_out"] - link["transit_bytes_out"] for link in self.nodes[pop].status()["links"]}

    async def webinar(self, watchers, fps, seconds):
        await self.start(POPS)
        await self.come("fra", publishers=1, fps=fps, bitrate=PACKET_LEN * 8 * fps)
        await asyncio.sleep(2)
        audience = {}
        for pop in POPS:
            audience[pop] = await self.come(pop, watchers=watchers, receives=1, hidden=True)
        await asyncio.sleep(3)
        for people in audience.values():
            people.reset()
        before = self.own_bytes("fra")
        sent, took = await self.sent(seconds)
        own = {pop: after - before[pop] for pop, after in self.own_bytes("fra").items()}
        least = PACKET_LEN * fps * took
        print(f"webinar, {5 * watchers} watch {least * 8 / took / 1_000:.0f} kb/s: fra sends {({pop: round(of / least, 3) for pop, of in own.items()})} of that", flush=True)
        print(f"on the wires {({name: round(bytes / least, 3) for name, bytes in sent.items() if bytes > least / 2})}", flush=True)
        for pop, people in audience.items():
            of = people.stats()[0]
            print(f"{pop}: {of}", flush=True)
            self.assertEqual(of["streams"], watchers)
            self.assertLess(of["lost"], of["packets"] / 100)
        for pop, of in own.items():
            # Feedback and echoes are some 50 kb/s of it.
            self.assertTrue(1 <= of / least < 1.9, (pop, of, least))
        links = self.nodes["fra"].status()["links"]
        self.assertEqual([link["tracks_out"] for link in links], [1] * 4)
        for pop in POPS[1:]:
            links = {link["pop"]: link for link in self.nodes[pop].status()["links"]}
            self.assertEqual([link["tracks_out"] for link in links.values()], [0] * 4, "nobody sends on what fra sends all")

    async def test_fifty_sessions_go_over_a_pop_that_has_never_heard_of_them_at_once(self):
        await self.start(["fra", "ams", "sin"], ["fra-ams delay 5ms", "ams-sin delay 50ms", "fra-sin delay 40ms"], {"fra": "e2e", "sin": "e2e"})
        for start, end in (("fra", "sin"), ("sin", "fra")):
            await until("the way is the direct one", lambda: self.route(start, end)["way"] == "direct", 20)
            await until("there is another", lambda: self.route(start, end)["backup"] == "via ams", 20)
        lanes = lambda: [self.pops.link(*of)["lanes"] for of in (("fra", "sin"), ("fra", "ams"), ("ams", "sin"), ("sin", "fra"), ("ams", "fra"), ("sin", "ams"))]
        self.assertEqual(lanes(), [1] * 6, "where nobody has said anything yet only the path is measured")
        fps = 20
        await self.come("fra", rooms=50, publishers=1, fps=fps, bitrate=PACKET_LEN * 8 * fps)
        await asyncio.sleep(2)
        people = await self.come("sin", rooms=50, watchers=1)
        await asyncio.sleep(3)
        self.assertEqual(lanes(), [4] * 6, "two workers of each with two, and with those of who would carry")
        before = self.pops.link("fra", "sin")["age_ms"]
        for words in ("fra-sin loss 100%", "fra-sin loss none"):
            people.reset()
            await asyncio.to_thread(self.pops.network.change, words)
            await asyncio.sleep(6)
            of = people.stats()[0]
            pause = of["longest_pause_ms"]
            print(f"50 sessions, {words}: longest pause p50 {pause['p50']:.0f} ms, p99 {pause['p99']:.0f} ms, max {pause['max']:.0f} ms, 50 are between two packets; {of['lost']} of {of['packets'] + of['lost']} packets lost", flush=True)
            self.assertEqual(of["streams"], 50)
            self.assertLess(pause["max"], 1_000)
            if words.endswith("100%"):
                self.assertEqual(self.pops.link("fra", "sin")["way"], "via ams")
        self.assertGreater(self.pops.link("fra", "sin")["age_ms"], before, "it is the same link")
        self.assertEqual(self.overlay("ams")["sessions"], 0)

    async def test_what_one_link_and_two_add_is_little(self):
        await self.start(["fra", "ams", "sin"], [], {"fra": "e2e", "sin": "e2e"})
        await self.come("fra", publishers=1, fps=100, bitrate=PACKET_LEN * 8 * 100)
        here, there = await self.come("fra", watchers=1), await self.come("sin", watchers=1)
        seconds = 60 if IS_LONG else 5

        async def delays():
            await asyncio.sleep(2)
            here.reset(), there.reset()
            await asyncio.sleep(seconds)
            return here.stats()[0]["delay_ms"], there.stats()[0]["delay_ms"]

        local, one = await delays()
        await asyncio.to_thread(self.pops.network.change, "fra-sin loss 100%")
        await until("it goes over ams", lambda: self.pops.link("fra", "sin")["way"] == "via ams", 5)
        _, two = await delays()
        for what, of in (("one link", one), ("two", two)):
            added = [of[part] - local[part] for part in ("p50", "p99")]
            print(f"{what}: p50 {of['p50']:.2f} ms, p99 {of['p99']:.2f} ms, in the PoP itself {local['p50']:.2f} and {local['p99']:.2f} ms: {added[0]:.2f} and {added[1]:.2f} ms more, the wire of the shaper included", flush=True)
        # Machines of tests are busy.
        self.assertLess(two["p50"] - local["p50"], 20)

    if IS_LONG:

        async def test_fifty_people_in_each_of_two_pops(self):
            await self.cost("2x50", POPS[:2], 50, 5, 15, 20)

        async def test_twenty_five_people_in_each_of_four_pops(self):
            await self.cost("4x25", POPS[:4], 25, 3, 15, 20)

        async def test_five_hundred_people_in_each_of_three_pops(self):
            await self.cost("3x500", ["fra", "nyc", "sin"], 500, 1, 5, 20)

        async def test_an_audience_of_two_thousand(self):
            await self.webinar(400, 10, 20)


if __name__ == "__main__":
    unittest.main()
