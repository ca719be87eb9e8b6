"""`scripts/pop-lab up --world`: five PoPs that know how far each is from each, a cut between two that is gone round, and nothing left of
it. The lab is of the whole machine: one that runs already has to be removed first. Needs root."""

import asyncio
import json
import os
import pathlib
import subprocess
import unittest
import urllib.request

from client import until
from node import PROGRAMS

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts/pop-lab"
POPS = ["fra", "ams", "nyc", "sin", "khi"]
ENVIRONMENT = os.environ | {"POP": str(PROGRAMS / "pop")}


def lab(*words, code=0):
    done = subprocess.run([SCRIPT, *words], env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode != code:
        raise AssertionError(f"pop-lab {words} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def status(pop):
    with urllib.request.urlopen(f"http://10.74.0.{2 + POPS.index(pop)}:9464/api/v1/status", timeout=5) as answer:
        return json.load(answer)


def route(start, end):
    return next((route["way"] for route in status(start)["overlay"]["routes"] if route["to"] == end), "none")


def what_is_there():
    """Of a lab: its namespaces, its device here, its folder, its processes."""
    namespaces = [line.split()[0] for line in subprocess.check_output(["ip", "netns", "list"], text=True).splitlines()]
    commands = []
    for process in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "/run/pop-lab/" in command or "--prefix pop-lab " in command:
            commands.append(command)
    devices = [name for name in os.listdir("/sys/class/net") if name == "poplab"]
    folders = [str(path) for path in [pathlib.Path("/run/pop-lab")] if path.exists()]
    return [name for name in namespaces if name.startswith("pop-lab")] + devices + folders + commands


class Lab(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.assertEqual(what_is_there(), [], "a lab is there already: scripts/pop-lab down removes it")
        self.addCleanup(lab, "down")

    async def test_five_pops_know_each_other_and_go_round_a_cut(self):
        said = await asyncio.to_thread(lab, "up", "--world")
        for pop in POPS:
            self.assertRegex(said, rf"(?m)^{pop} .* http://10\.74\.0\.\d:9464 .*/demo\?room=lab#token=")
        self.assertIn("a lab is there already", lab("up", "--world", code=1))

        def matrix(pop):
            return {(path["from"], path["to"]): path["rtt_ms"] for path in status(pop)["overlay"]["paths"]}

        await until("each knows of all paths", lambda: all(len(matrix(pop)) == 20 for pop in POPS), 30)
        seen = matrix("fra")
        for start, end, rtt_ms in (("fra", "ams", 10), ("nyc", "khi", 250), ("khi", "sin", 95)):
            self.assertTrue(rtt_ms - 5 <= seen[start, end] <= rtt_ms + 30, (start, end, seen[start, end]))
        self.assertEqual([link["api_keys"] for link in status("khi")["links"]], [["lab"]] * 4)

        await until("the way is direct", lambda: route("fra", "sin") == "direct", 20)
        lab("cut", "sin", "fra")
        await until("another way", lambda: route("fra", "sin").startswith("via ") and route("sin", "fra").startswith("via "), 10)
        said = lab("status")
        self.assertIn("cut: fra-sin", said)
        self.assertIn("FROM/TO", said)
        lab("heal", "fra", "sin")
        await until("there is a path again", lambda: ("fra", "sin") in matrix("fra"), 30)
        self.assertNotIn("cut: ", lab("status"))
        self.assertIn("no end is called", lab("wire", "fra-oslo loss 1%", code=1))

        lab("kill", "khi")
        await until("nyc finds no way to khi", lambda: route("nyc", "khi") == "none", 15)
        lab("start", "khi")
        await until("and one again", lambda: route("nyc", "khi") != "none", 20)
        lab("down")
        self.assertEqual(what_is_there(), [])

    async def test_a_world_that_lost_its_network_is_removed_too(self):
        await asyncio.to_thread(lab, "up", "--world")
        pid = int(pathlib.Path("/run/pop-lab/shaper/pid").read_text().split()[0])
        os.kill(pid, 9)
        await until("the script sees it", lambda: "the network has ended" in lab("status"), 5)
        self.assertIn("there is no world", lab("cut", "fra", "sin", code=1))
        lab("down")
        self.assertEqual(what_is_there(), [])

    async def test_nodes_of_one_pop_are_one_and_leave_nothing(self):
        said = await asyncio.to_thread(lab, "up", "2")
        self.assertRegex(said, r"(?m)^b .*http://10\.74\.0\.3:9464")

        def is_whole():
            with urllib.request.urlopen("http://10.74.0.2:9464/api/v1/status", timeout=5) as answer:
                return [(node["node"], node["state"]) for node in json.load(answer)["nodes"]] == [("b", "up")]

        await until("a knows b", is_whole, 10)
        self.assertIn("there is no world", lab("cut", "a", "b", code=1))
        lab("down")
        self.assertEqual(what_is_there(), [])


if __name__ == "__main__":
    unittest.main()
