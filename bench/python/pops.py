"""PoPs of a node each, or more, far from each other, in namespaces of their own."""

import pathlib
import subprocess
import tempfile

from network import Network
from node import PROGRAMS, Node

# Where people are: outside of all of them.
PEOPLE = "10.73.0.1"

CROWDED = "connections_per_address_max = 4096\nrequests_per_address_per_s_max = 100000"


def run_pop(*words):
    return subprocess.run([PROGRAMS / "pop", *words], check=True, capture_output=True, text=True).stdout


def place_of(name):
    """A node's name and its PoP's."""
    return (name[-1].lower(), name[:-1]) if name[-1].isupper() else ("a", name)


class Pops:
    """From construction until `stop`. `names` in order have the addresses from 10.73.0.2 on; `wires` are how far they are from each other;
    `api_keys` what the certificate of a node carries, by PoP; `peers` whom each names, others than all. `sin` is node a of PoP sin, and
    `sinB` would be one more of it, b. `schemas`: those that speak another version to the others than the newest. `more`: further lines
    of each config's [mesh], in which {ca} is the folder of the CA. `is_crowded`: hundreds of people come from one address, and nothing is
    captured."""

    def __init__(self, label, names, wires, api_keys=(), peers=(), schemas=(), more="", is_crowded=False):
        self.addresses = {name: f"10.73.0.{2 + i}" for i, name in enumerate(names)}
        self.nodes = {}
        self.folder = tempfile.TemporaryDirectory(prefix="pop-ca-")
        ca = self.ca = pathlib.Path(self.folder.name)
        self.network = Network({"people": f"@.{PEOPLE}/24"} | {pop: f"{address}/24" for pop, address in self.addresses.items()}, wires)
        run_pop("ca", "init", "--dir", ca / "ca")
        # A list that takes back nobody of these.
        run_pop("ca", "revoke", "--dir", ca / "ca", "--serial", "01")
        for name, address in self.addresses.items():
            out = ca / name
            node, pop = place_of(name)
            held = ["--api-keys", api_keys[name]] if name in api_keys else []
            run_pop("ca", "issue", "--dir", ca / "ca", "--node", node, "--pop", pop, "--address", address, "--out", out, *held)
            named = peers[name] if name in peers else [other for other in names if place_of(other)[1] != pop]
            addresses = [f"{self.addresses[other]}:7890" for other in named]
            beside = [f"{self.addresses[other]}:7447" for other in names if other != name and place_of(other)[1] == pop]
            bus = f'[bus]\nlisten = ["{address}:7447"]\nconnect = {beside}' if beside else ""
            self.nodes[name] = Node(
                f"{label}-{name}",
                address=address,
                serves=address,
                media_port=10_000,
                device="any",
                judged=f"host {'255.255.255.255' if is_crowded else address} and udp portrange",
                http=CROWDED if is_crowded else "",
                under=self.network.inside(name),
                extra=f"""
[node]
name = "{node}"
pop = "{pop}"
state_dir = "{out}/state"
{bus}
[mesh]
{"split = false" if beside else ""}
{f"schema = {schemas[name]}" if name in schemas else ""}
listen = "{address}:7890"
peers = {addresses}
ca = "{out}/ca.pem"
cert = "{out}/node.pem"
key = "{out}/node.key"
{more.format(ca=ca / 'ca')}
""",
            )
            self.nodes[name].may_be_idle = True

    def stop(self):
        for node in self.nodes.values():
            node.stop()
        self.network.stop()
        self.folder.cleanup()

    def link(self, start, end):
        """What `start` says of its link with `end`."""
        node, pop = place_of(end)
        is_it = lambda link: (link["node"], link["pop"]) == (node, pop)
        return next((link for link in self.nodes[start].status()["links"] if is_it(link)), None)
