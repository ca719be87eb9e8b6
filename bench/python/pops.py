"""PoPs of a node each, far from each other, in namespaces of their own."""

import pathlib
import subprocess
import tempfile

from network import Network
from node import PROGRAMS, Node

# Where people are: outside of all of them.
PEOPLE = "10.73.0.1"


def run_pop(*words):
    return subprocess.run([PROGRAMS / "pop", *words], check=True, capture_output=True, text=True).stdout


class Pops:
    """From construction until `stop`. `names` in order have the addresses from 10.73.0.2 on; `wires` are how far they are from each other;
    `api_keys` what the certificate of a node carries, by PoP; `peers` whom each names, others than all."""

    def __init__(self, label, names, wires, api_keys=(), peers=()):
        self.addresses = {name: f"10.73.0.{2 + i}" for i, name in enumerate(names)}
        self.nodes = {}
        self.folder = tempfile.TemporaryDirectory(prefix="pop-ca-")
        ca = pathlib.Path(self.folder.name)
        self.network = Network({"people": f"@.{PEOPLE}/24"} | {pop: f"{address}/24" for pop, address in self.addresses.items()}, wires)
        run_pop("ca", "init", "--dir", ca / "ca")
        for pop, address in self.addresses.items():
            out = ca / pop
            held = ["--api-keys", api_keys[pop]] if pop in api_keys else []
            run_pop("ca", "issue", "--dir", ca / "ca", "--node", "a", "--pop", pop, "--address", address, "--out", out, *held)
            named = peers[pop] if pop in peers else [other for other in names if other != pop]
            addresses = [f"{self.addresses[other]}:7890" for other in named]
            self.nodes[pop] = Node(
                f"{label}-{pop}",
                address=address,
                serves=address,
                media_port=10_000,
                device="any",
                judged=f"host {address} and udp portrange",
                under=self.network.inside(pop),
                extra=f"""
[node]
name = "a"
pop = "{pop}"
state_dir = "{out}/state"
[mesh]
listen = "{address}:7890"
peers = {addresses}
ca = "{out}/ca.pem"
cert = "{out}/node.pem"
key = "{out}/node.key"
""",
            )
            self.nodes[pop].may_be_idle = True

    def stop(self):
        for node in self.nodes.values():
            node.stop()
        self.network.stop()
        self.folder.cleanup()

    def link(self, start, end):
        """What `start` says of its link with `end`."""
        return next((link for link in self.nodes[start].status()["links"] if link["pop"] == end), None)
