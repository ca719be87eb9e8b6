"""Two nodes of one PoP: aiortc publishes at the one and watches at the other, and every payload arrives as it was sent. A client whose
transport the one has may speak with the other."""

import asyncio
import statistics
import time
import unittest

import nodes as nodes_of_one_pop
from client import Client, assert_same_stream, until
from guest import Guest, Wire, until_tone
from livekit import rtc


def made_at(report, sample, clock):
    """When a packet was made, in seconds of the clock that the report tells."""
    ntp, rtp = report
    return ntp / 2**32 + ((sample.timestamp - rtp + 2**31) % 2**32 - 2**31) / clock


def setUpModule():
    global nodes
    nodes = nodes_of_one_pop.Nodes("nodes", ("a", "b"), split=False, dataplane="transports_max = 20")


def tearDownModule():
    nodes.stop()


def shows_another(name, before):
    try:
        return nodes.certificate_of_bus(name) != before
    except OSError:
        # It enters the bus anew just now.
        return False


def people(nodes, at, room):
    """At which node everybody is, as one node knows it."""
    sessions = [it for it in nodes[at].sessions()["sessions"] if it["id"] == room]
    return {it["identity"]: it["node"] for session in sessions for it in session["participants"]}


async def call(test, nodes, room, at, to):
    """One publishes at `at` and one watches at `to`: every payload arrives, as it was sent."""
    publisher, viewer = Client(), Client()
    try:
        await (await viewer.watch(nodes[to], room)).until_connected()
        await (await publisher.publish(nodes[at], room)).until_connected()
        await until("200 packets", lambda: min(len(p) for p in viewer.received.values()) >= 200, 30)
        for kind in ("audio", "video"):
            assert_same_stream(test, list(publisher.sent[kind]), list(viewer.received[kind]), 200)
        test.assertEqual(sorted(people(nodes, to, room).values()), sorted([at, to]))
    finally:
        await viewer.close()
        await publisher.close()


class Nodes(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        await until("nodes that know each other", nodes.are_whole, 10)

    def people(self, at, room):
        return people(nodes, at, room)

    async def test_every_payload_crosses_the_link_as_it_was_sent(self):
        await call(self, nodes, "there", "a", "b")

    async def test_and_back(self):
        await call(self, nodes, "back", "b", "a")

    async def test_what_crosses_the_link_is_counted_apart(self):
        def crossed(name, direction, scope):
            prefix = f'pop_rtp_bytes_total{{direction="{direction}",scope="{scope}"'
            return sum(value for key, value in nodes[name].metrics().items() if key.startswith(prefix))

        before = {name: crossed(name, direction, "pop") for name, direction in (("a", "out"), ("b", "in"))}
        await call(self, nodes, "counted", "a", "b")
        # 200 packets of sound and 200 of pictures; workers tell what they did each second.
        await until("both count them", lambda: all(crossed(*at, "pop") - before[at[0]] > 50_000 for at in (("a", "out"), ("b", "in"))), 5)
        for name in nodes:
            self.assertEqual(crossed(name, "in", "mesh") + crossed(name, "out", "mesh"), 0, "nobody is of another PoP")

    async def test_a_node_gets_another_certificate_under_a_call(self):
        publisher, viewer = Client(), Client()
        try:
            await (await viewer.watch(nodes["b"], "renewed")).until_connected()
            await (await publisher.publish(nodes["a"], "renewed")).until_connected()
            await until("some packets", lambda: min(len(p) for p in viewer.received.values()) >= 50, 30)
            for name in nodes:
                before = nodes.certificate_of_bus(name)
                nodes.renew(name)
                begun = time.monotonic()
                await until(f"{name} shows the other one", lambda: shows_another(name, before), 5)
                await until("nodes that know each other", nodes.are_whole, 5)
                print(f"{name} is on the bus with another certificate after {1_000 * (time.monotonic() - begun):.0f} ms")
            more = {kind: len(packets) + 100 for kind, packets in viewer.received.items()}
            await until("more packets", lambda: all(len(viewer.received[kind]) >= more[kind] for kind in more), 30)
            for kind in ("audio", "video"):
                assert_same_stream(self, list(publisher.sent[kind]), list(viewer.received[kind]), 150)
            self.assertEqual(people(nodes, "b", "renewed").keys(), people(nodes, "a", "renewed").keys())
            for node in nodes.values():
                self.assertEqual([line for line in node.log if "node away" in line], [])
        finally:
            await viewer.close()
            await publisher.close()

    async def test_a_second_process_with_a_nodes_name_ends_the_first_loudly(self):
        """The later start is the one that the operator meant."""
        twins = nodes_of_one_pop.Nodes("twins", ("a", "b"), split=False, awaits_twin=True)
        try:
            await until("nodes that know each other", twins.are_whole, 10)
            twin = twins.twin("a")
            for node in (*twins.values(), twin):
                node.may_be_idle = True
            try:
                await until("the first ends", lambda: not twins["a"].is_alive(), 15)
                self.assertEqual(twins["a"].process.returncode, 1)
                twins["a"].reader.join()
                said = [line for line in twins["a"].log if "give each node of a PoP its own node.name" in line]
                self.assertEqual(len(said), 1, twins["a"].log)
                twins["a"].is_killed = True
                await until("the second is b's other node", lambda: [it["state"] for it in twins["b"].status()["nodes"]] == ["up"], 10)
                self.assertTrue(twin.is_alive() and twins["b"].is_alive())
            finally:
                twin.stop()
        finally:
            twins.stop()

    async def test_a_resource_is_moved_and_ended_at_the_other_node(self):
        viewer = Client()
        publisher = await Client().publish(nodes["a"], "elsewhere")
        try:
            await publisher.until_connected()
            await (await viewer.watch(nodes["a"], "elsewhere")).until_connected()
            for client in (publisher, viewer):
                client.resource = client.resource.replace(nodes["a"].http, nodes["b"].http)
            await until("some packets", lambda: min(len(p) for p in viewer.received.values()) >= 100, 30)
            before = publisher.etag
            await publisher.restart_ice()
            self.assertNotEqual(publisher.etag, before)
            more = {kind: len(packets) + 100 for kind, packets in viewer.received.items()}
            await until("more packets", lambda: all(len(viewer.received[kind]) >= more[kind] for kind in more), 30)
            await viewer.close()
            await publisher.close()
            await until("nobody at a", lambda: nodes["a"].sessions()["sessions"] == [], 5)
        finally:
            await viewer.close()
            await publisher.close()

    async def test_a_node_tells_the_others_how_much_of_what_it_can_do_it_does(self):
        def seen():
            (other,) = nodes["b"].status()["nodes"]
            return other["load"], other["capacity"]

        publisher = Client()
        workers = len(nodes["a"].status()["workers"])
        await until("a node that does nothing", lambda: seen() == (0, 20 * workers), 5)
        try:
            await (await publisher.publish(nodes["a"], "load")).until_connected()
            await until("one client of twenty", lambda: seen()[0] == 50 // workers, 5)
        finally:
            await publisher.close()
        await until("none", lambda: seen()[0] == 0, 5)

    async def test_sound_and_picture_of_one_moment_are_of_one_moment_at_the_other_node(self):
        """By the reports that the viewer gets, each packet was made when the publisher's own say, give or take the same for both."""
        publisher, viewer = Client(), Client()
        try:
            await (await viewer.watch(nodes["b"], "sync")).until_connected()
            await (await publisher.publish(nodes["a"], "sync")).until_connected()
            await until("reports", lambda: min(len(reports) for reports in viewer.reports_received.values()) >= 3, 30)
            off_ms = {}
            for kind, clock in (("audio", 48_000), ("video", 90_000)):
                here = viewer.received[kind][-1]
                there = next(sample for sample in publisher.sent[kind] if sample.payload == here.payload)
                # The publisher's own reports differ by how late its loop was.
                made = statistics.median(made_at(report, there, clock) for report in publisher.reports_sent[kind])
                off_ms[kind] = 1_000 * (made_at(viewer.reports_received[kind][-1], here, clock) - made)
            print(f"the viewer's clock is off by {off_ms} ms")
            self.assertLess(abs(off_ms["audio"] - off_ms["video"]), 40)
        finally:
            await viewer.close()
            await publisher.close()

    async def test_a_client_that_comes_back_to_the_other_node_goes_on(self):
        wire = Wire(nodes["a"])
        port = await wire.start()
        ann, bob = Guest(nodes["a"], "way", "ann"), Guest(nodes["a"], "way", "bob")
        ann.url = f"ws://127.0.0.1:{port}"
        try:
            await ann.join()
            await bob.join()
            await ann.publish_tone(440)
            heard = await bob.track("ann", rtc.TrackKind.KIND_AUDIO)
            await until_tone(heard, 440)
            sid = ann.me.sid
            # Its socket is cut; the next one ends at b, and its media never left a.
            wire.node = nodes["b"]
            wire.cut()
            await ann.until_told("reconnected")
            self.assertEqual(ann.me.sid, sid)
            self.assertEqual(nodes["b"].metrics()["pop_mesh_joined_sockets"], 1)
            await ann.me.publish_data(b"still here", topic="after")
            await bob.until_told("data_received")
            await until_tone(heard, 440)
            self.assertEqual(bob.told("track_unsubscribed"), [])
            who = {"ann": "a", "bob": "a"}
            self.assertEqual(self.people("a", "way"), who)
            # The other node knows who is in the room, and has nobody of it.
            await until("b knows them", lambda: self.people("b", "way") == who, 5)
        finally:
            await bob.leave()
            await ann.leave()
            wire.close()


class MixedSchemas(unittest.IsolatedAsyncioTestCase):
    """A PoP in the middle of a rolling upgrade: node a speaks the version before, node b the newest."""

    @classmethod
    def setUpClass(cls):
        cls.nodes = nodes_of_one_pop.Nodes("mixed", ("a", "b"), split=False, schemas={"a": 0})

    @classmethod
    def tearDownClass(cls):
        cls.nodes.stop()

    async def asyncSetUp(self):
        await until("nodes that know each other", self.nodes.are_whole, 10)

    async def test_every_payload_crosses_both_ways_and_both_ends_say_what_they_speak(self):
        await call(self, self.nodes, "up", "a", "b")
        await call(self, self.nodes, "down", "b", "a")
        for name, other in (("a", "b"), ("b", "a")):
            (link,) = self.nodes[name].status()["links"]
            self.assertEqual((link["node"], link["state"], link["schema"]), (other, "up", 0), name)
            self.assertEqual(self.nodes[name].drops()["relay_malformed"], 0)
            # Links count what they cannot read.
            refused = {key: value for key, value in self.nodes[name].metrics().items() if key.startswith("pop_mesh_refused_total")}
            self.assertEqual({key: value for key, value in refused.items() if value}, {}, name)

    async def test_people_of_both_speak_with_each_other(self):
        may = {"can_update_own_metadata": True}
        ann, bob = Guest(self.nodes["a"], "talk", "ann", **may), Guest(self.nodes["b"], "talk", "bob", **may)
        try:
            await ann.join()
            await bob.join()
            for guest, other, hertz in ((ann, bob, 440), (bob, ann, 620)):
                await guest.publish_tone(hertz)
                await until_tone(await other.track(guest.identity, rtc.TrackKind.KIND_AUDIO), hertz)
                await guest.me.publish_data(b"said by " + guest.identity.encode())
                await other.until_told("data_received")
                self.assertEqual(bytes(other.told("data_received")[0][0].data), b"said by " + guest.identity.encode())
                await guest.me.set_metadata("of " + guest.identity)
                await other.until_told("participant_metadata_changed")
            who = {"ann": "a", "bob": "b"}
            for name in self.nodes:
                self.assertEqual(people(self.nodes, name, "talk"), who, name)
                listed = {session["id"]: session for session in self.nodes[name].sessions()["sessions"]}
                states = {it["identity"]: it["state"] for it in listed["talk"]["participants"]}
                self.assertNotIn("away", states.values(), states)
        finally:
            await bob.leave()
            await ann.leave()


class FewVoices(unittest.IsolatedAsyncioTestCase):
    """Of the microphones of a room one goes to the other node at once."""

    @classmethod
    def setUpClass(cls):
        cls.nodes = nodes_of_one_pop.Nodes("voices", ("a", "b"), split=False, session="loudest = 1")

    @classmethod
    def tearDownClass(cls):
        cls.nodes.stop()

    async def asyncSetUp(self):
        await until("nodes that know each other", self.nodes.are_whole, 10)

    async def test_who_speaks_is_heard_at_the_other_node_and_who_is_silent_costs_the_link_nothing(self):
        ann, bob, far = Guest(self.nodes["a"], "few", "ann"), Guest(self.nodes["a"], "few", "bob"), Guest(self.nodes["b"], "few", "far")
        voices = ((ann, 440), (bob, 620))
        try:
            for guest in (ann, bob, far):
                await guest.join()
            for guest, hertz in voices:
                guest.volume = 0
                await guest.publish_tone(hertz)
            heard = [await far.track(guest.identity, rtc.TrackKind.KIND_AUDIO) for guest, _ in voices]
            for speaker in (0, 1):
                for at, (guest, _) in enumerate(voices):
                    guest.volume = 10_000 if at == speaker else 0
                await until_tone(heard[speaker], voices[speaker][1])
                before = self.figures()
                await asyncio.sleep(2)
                crossed, came, held_back = (now - then for now, then in zip(self.figures(), before))
                # Two microphones with 50 packets a second each.
                self.assertGreater(came, 150)
                self.assertLess(abs(crossed - came / 2), 20)
                self.assertLess(abs(held_back - came / 2), 20)
        finally:
            for guest in (far, bob, ann):
                await guest.leave()

    def figures(self):
        metrics = self.nodes["a"].metrics()

        def total(name, way):
            return sum(count for key, count in metrics.items() if key.startswith(f"pop_{name}_total{{") and f'direction="{way}"' in key)

        return total("relay_packets", "out"), total("rtp_packets", "in"), self.nodes["a"].drops()["relay_not_loudest"]


if __name__ == "__main__":
    unittest.main()
