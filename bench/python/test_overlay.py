"""Three PoPs of a node each, far from each other: what each measures of the paths, what the others hear of it, and which ways are taken."""

import asyncio
import unittest

from client import until
from pops import Pops, run_pop

# One way. Over ams it is 55 ms from fra to sin.
WIRES = ["fra-ams delay 5ms", "ams-sin delay 50ms", "fra-sin delay 80ms"]


def start():
    """Anew for each test: what has failed is remembered for a minute."""
    global pops, network, nodes
    pops = Pops("overlay", ["fra", "ams", "sin"], WIRES)
    network, nodes = pops.network, pops.nodes


def overlay(pop):
    return nodes[pop].status()["overlay"]


def path(at, start, end):
    """The path from `start` to `end` as the node of PoP `at` knows it; None when it knows of none."""
    return next((path for path in overlay(at)["paths"] if (path["from"], path["to"]) == (start, end)), None)


def route(start, end):
    return next((route for route in overlay(start)["routes"] if route["to"] == end), {"way": "none"})


async def until_way(start, end, way, seconds=20):
    await until(f"the way from {start} to {end} is {way}", lambda: route(start, end)["way"] == way, seconds)


class Overlay(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        await asyncio.to_thread(start)
        self.addCleanup(pops.stop)
        await until("all paths are known at all", lambda: all(len(overlay(pop)["paths"]) == 6 for pop in nodes), 30)

    async def test_each_pop_knows_what_each_measures(self):
        truth = {("fra", "ams"): 10, ("ams", "sin"): 100, ("fra", "sin"): 160}
        for at in nodes:
            for (start, end), rtt_ms in truth.items():
                for one, other in ((start, end), (end, start)):
                    # A busy machine adds some.
                    await until(f"{one} to {other} at {at}", lambda: rtt_ms <= path(at, one, other)["rtt_ms"] <= rtt_ms + 25, 20)
        self.assertEqual([(pop["pop"], pop["state"], pop["links"]) for pop in overlay("fra")["pops"]], [("ams", "up", 1), ("sin", "up", 1)])
        shown = run_pop("mesh", "--socket", nodes["fra"].socket)
        print(shown, flush=True)
        self.assertIn("FROM/TO", shown)
        self.assertIn("a.sin", shown)

    async def test_the_way_is_the_one_on_which_a_packet_is_least_late(self):
        await until_way("fra", "sin", "via ams")
        self.assertEqual(route("fra", "sin")["backup"], "direct")
        network.change("fra-sin delay 40ms")
        await until_way("fra", "sin", "direct")
        await until_way("sin", "fra", "direct")

    async def test_a_path_that_loses_in_one_direction_is_avoided_in_that_one(self):
        network.change("fra-sin delay 40ms")
        await until_way("fra", "sin", "direct")
        await until_way("sin", "fra", "direct")
        network.change("fra>sin loss 30%")
        await until_way("fra", "sin", "via ams")
        await until("it is told how much", lambda: 0.15 < (path("ams", "sin", "fra") or {"loss_in": 0})["loss_in"] < 0.45, 15)
        self.assertEqual(route("sin", "fra")["way"], "direct", "the other direction loses nothing")

    async def test_a_path_that_is_cut_is_left_and_the_pop_stays_known(self):
        network.change("fra-sin delay 40ms")
        await until_way("fra", "sin", "direct")
        changes = overlay("fra")["changes"]
        network.change("fra-sin loss 100%")
        await until_way("fra", "sin", "via ams", 5)
        await until_way("sin", "fra", "via ams", 5)
        self.assertEqual((route("fra", "sin")["direct_ms"], route("fra", "sin")["reason"]), (None, "failed"))
        self.assertEqual(next(pop["state"] for pop in overlay("fra")["pops"] if pop["pop"] == "sin"), "up")
        self.assertEqual(overlay("fra")["changes"], changes + 1)
        await until("the metrics say so", lambda: nodes["fra"].metrics().get('pop_mesh_route{pop="sin",way="via ams"}') == 1, 3)
        metrics = nodes["fra"].metrics()
        self.assertNotIn('pop_mesh_path_rtt_seconds{pop="sin"}', metrics)
        self.assertGreater(metrics['pop_mesh_path_rtt_seconds{pop="ams"}'], 0.009)


if __name__ == "__main__":
    unittest.main()
