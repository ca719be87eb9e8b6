"""Three PoPs, one of which is broken into: its operator takes its certificate back, and tells one node of another PoP."""

import asyncio
import unittest

from client import until
from guest import Guest
from pops import Pops, run_pop

WIRES = ["fra-ams delay 5ms", "ams-sin delay 50ms", "fra-sin delay 80ms"]


def setUpModule():
    global pops, nodes
    pops = Pops("revoked", ["fra", "ams", "sin"], WIRES, {"fra": "e2e", "ams": "e2e", "sin": "e2e"}, more='revoked = "{ca}/crl.pem"')
    nodes = pops.nodes


def tearDownModule():
    pops.stop()


def linked(pop):
    return sorted(link["pop"] for link in nodes[pop].status()["links"])


class Revoked(unittest.IsolatedAsyncioTestCase):
    async def test_a_pop_whose_certificate_is_taken_back_is_gone_everywhere_and_stays_away(self):
        await until("all links are up", lambda: all(len(linked(pop)) == 2 for pop in nodes), 20)
        guests = {pop: await Guest(nodes[pop], "stage", f"at-{pop}").join() for pop in nodes}
        others = lambda pop: sorted(guests[pop].room.remote_participants)
        await until("all are one", lambda: all(len(others(pop)) == 2 for pop in nodes), 10)
        age_ms = pops.link("fra", "sin")["age_ms"]
        run_pop("ca", "revoke", "--dir", pops.ca / "ca", "--node", "a", "--pop", "ams")
        began = asyncio.get_running_loop().time()
        run_pop("reload", "--socket", nodes["fra"].socket)
        await until("its links are gone", lambda: (linked("fra"), linked("sin"), linked("ams")) == (["sin"], ["fra"], []), 5)
        print(f"{asyncio.get_running_loop().time() - began:.1f} s until it has no link", flush=True)
        await asyncio.sleep(5)
        self.assertEqual((linked("fra"), linked("sin"), linked("ams")), (["sin"], ["fra"], []))
        for pop in ("fra", "sin"):
            metrics = nodes[pop].metrics()
            self.assertGreater(metrics['pop_mesh_refused_total{reason="revoked"}'], 0, pop)
            self.assertEqual(metrics["pop_mesh_revoked_certificates"], 2)
        await until("its people are gone", lambda: others("fra") == ["at-sin"] and others("sin") == ["at-fra"], 30)
        self.assertGreater(pops.link("fra", "sin")["age_ms"], age_ms, "it is the same link")
        await guests["fra"].me.publish_data("still here", reliable=True)
        (said,) = await guests["sin"].until_told("data_received", seconds=3)
        self.assertEqual(said.data, b"still here")
        self.assertEqual(guests["ams"].told("data_received"), [])
        for guest in guests.values():
            await guest.leave()


if __name__ == "__main__":
    unittest.main()
