"""Three nodes of one PoP share service addresses (`http.vip`) on an Ethernet link, and speak with each other on another: one node has each
address, and when its host falls silent or has no carrier there, or it dies, hangs or stops, another answers at it."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time
import unittest

from network import entered
from node import PROGRAMS, Node
from stall import Stalls

NODES = {"a": 1, "b": 2, "c": 3}
PORT = 7_880
VIP, VIP6 = "10.94.0.80", "fd94::80"
# Those that one of the nodes does not have in its config; in the order of some of them it is the first.
FEWER, UNAWARE = [f"10.94.0.{81 + i}" for i in range(4)], "c"
# Of each, the second number of its addresses.
LINKS = {"lan": 93, "front": 94}
# From when nothing is heard of the holder to an answer of another; the machine that tests may be busy.
TAKEOVER_S_MAX = 1.5
# The kernel takes away what is not lent anew.
LIFETIME_S = 3
# A node that begins takes nothing for 3 s, and the others count it as long after they have seen it.
SETTLED_S = 4


def run(*words):
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True).stdout


class Lan:
    """A bridge for each of LINKS, and a namespace with an interface of each for each name."""

    def __init__(self, hosts):
        self.tag = f"pop-vip-{os.getpid()}"
        self.names = ["bridge", *hosts]
        try:
            for name in self.names:
                run("ip", "netns", "add", self.netns(name))
                run("ip", "-n", self.netns(name), "link", "set", "lo", "up")
            bridge = ["ip", "-n", self.netns("bridge"), "link"]
            for link, second in LINKS.items():
                run(*bridge, "add", link, "type", "bridge")
                run(*bridge, "set", link, "up")
                for name, number in hosts.items():
                    inside, device = ["ip", "-n", self.netns(name)], f"{link}0"
                    run(*bridge, "add", f"{link}-{name}", "type", "veth", "peer", "name", device, "netns", self.netns(name))
                    run(*bridge, "set", f"{link}-{name}", "master", link, "up")
                    run(*inside, "addr", "add", f"10.{second}.0.{number}/24", "dev", device)
                    run(*inside, "addr", "add", f"fd{second}::{number}/64", "dev", device, "nodad")
                    run(*inside, "link", "set", device, "up")
        except BaseException:
            self.remove()
            raise

    def netns(self, name):
        return f"{self.tag}-{name}"

    def inside(self, name):
        """Words before a command that is to run there."""
        return ["ip", "netns", "exec", self.netns(name)]

    def entered(self, name):
        """Sockets that this thread makes meanwhile are there, and stay there."""
        return entered(self.netns(name))

    def plug(self, name, is_in):
        """Whether frames of the host reach others, on both links. Its interfaces have a carrier at all times."""
        for link in LINKS:
            run("ip", "-n", self.netns("bridge"), "link", "set", f"{link}-{name}", *(["master", link] if is_in else ["nomaster"]))

    def carry(self, name, does):
        """Whether the host's interface where the service addresses are has a carrier."""
        run("ip", "-n", self.netns("bridge"), "link", "set", f"front-{name}", "up" if does else "down")

    def has(self, name, address):
        return address in run("ip", "-n", self.netns(name), "addr", "show", "to", address)

    def mac(self, name):
        return json.loads(run("ip", "-n", self.netns(name), "-j", "link", "show", "front0"))[0]["address"]

    def neighbour(self, name, address):
        """The link-layer address that a host has of another."""
        return next((it.get("lladdr") for it in json.loads(run("ip", "-n", self.netns(name), "-j", "neigh", "show", address))), None)

    def remove(self):
        for name in self.names:
            subprocess.run(["ip", "netns", "del", self.netns(name)], stderr=subprocess.DEVNULL)


def config(name, out):
    """Of a node, but for what all nodes of tests have."""
    address = f"10.93.0.{NODES[name]}"
    others = [f"10.93.0.{number}:7447" for other, number in NODES.items() if other != name]
    return f"""
[node]
name = "{name}"
pop = "vip"
state_dir = "{out}/state"
[bus]
listen = ["{address}:7447"]
connect = {others}
[mesh]
listen = "{address}:7890"
ca = "{out}/ca.pem"
cert = "{out}/node.pem"
key = "{out}/node.key"
"""


def setUpModule():
    global lan, nodes, folder, begun_at, stalls
    # Before there are threads.
    stalls = Stalls()
    folder = tempfile.TemporaryDirectory(prefix="pop-ca-")
    place = pathlib.Path(folder.name)
    lan, nodes = Lan(NODES | {"client": 9}), {}
    try:
        run(PROGRAMS / "pop", "ca", "init", "--dir", place / "ca")
        for name, number in NODES.items():
            out, address = place / name, f"10.93.0.{number}"
            run(PROGRAMS / "pop", "ca", "issue", "--dir", place / "ca", "--node", name, "--pop", "vip", "--address", address, "--out", out)
            nodes[name] = Node(
                f"vip-{name}",
                address=address,
                serves=address,
                media_port=10_000,
                http_port=PORT,
                http=f"vip = {[VIP, VIP6, *([] if name == UNAWARE else FEWER)]}",
                judged=f"host {address} and udp portrange",
                under=lan.inside(name),
                extra=config(name, out),
            )
            nodes[name].may_be_idle = True
        begun_at = time.monotonic()
    except BaseException:
        tearDownModule()
        raise


def tearDownModule():
    # All of it, whichever part of it fails.
    with contextlib.ExitStack() as stack:
        stack.callback(stalls.stop)
        stack.callback(folder.cleanup)
        stack.callback(lan.remove)
        for node in nodes.values():
            stack.callback(node.stop)


def holders(address=VIP):
    return [name for name in NODES if lan.has(name, address)]


def answers(address=VIP, patience=0.1):
    """Whether a client gets an answer at the address by a new connection."""
    with lan.entered("client"):
        try:
            connection = socket.create_connection((address, PORT), patience)
        except OSError:
            return False
    with connection:
        try:
            connection.settimeout(1)
            connection.sendall(b"HEAD / HTTP/1.1\r\nHost: pop\r\nConnection: close\r\n\r\n")
            return connection.recv(12).startswith(b"HTTP/1.1 ")
        except OSError:
            return False


def until(what, true, seconds):
    """How long it took."""
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > seconds:
            logs = "".join(f"{name}: {line}" for name, node in nodes.items() for line in node.log[-12:])
            raise AssertionError(f"not within {seconds} s: {what}; {holders()} have it\n{logs}")
        time.sleep(0.01)
    return time.monotonic() - began


def ask(name, what):
    with lan.entered(name):
        return getattr(nodes[name], what)()


class ServiceAddress(unittest.TestCase):
    def setUp(self):
        self.until_one()
        stalls.begin()

    def start_again(self, name):
        nodes[name].start()
        self.await_ready(name)

    def await_ready(self, name):
        global begun_at
        nodes[name].await_ready()
        begun_at = time.monotonic()

    def until_one(self):
        """Every node has seen the others for long enough, and one has it, the same in the eyes of all."""
        state = {}
        time.sleep(max(0, begun_at + SETTLED_S - time.monotonic()))

        def is_so():
            state.update({name: ask(name, "status")["vips"] for name in NODES})
            found = [{it["address"]: it["holder"] for it in vips if it["address"] not in FEWER} for vips in state.values()]
            return found[0] == found[1] == found[2] and all(holders(address) == [found[0][address]] for address in (VIP, VIP6))

        until("one holder", is_so, 15)
        self.holder = holders()[0]
        self.others = [name for name in NODES if name != self.holder]

    def report(self, what, seconds):
        print(f"{self._testMethodName}: {what} after {1_000 * seconds:.0f} ms", flush=True)

    def until_taken_over(self, began, address=VIP, others=None):
        """A survivor has it, answers, and the client knows where it is."""
        others = others or self.others
        until("a survivor has it", lambda: any(name in others for name in holders(address)), 5)
        had = time.monotonic() - began
        until("a survivor answers", lambda: answers(address), 5)
        took = time.monotonic() - began
        taker = next(name for name in holders(address) if name in others)
        self.report(f"{taker} has it after {1_000 * had:.0f} ms and answers", took)
        self.assertLess(took, TAKEOVER_S_MAX + 2 * stalls.seconds())
        self.assertEqual(lan.neighbour("client", address), lan.mac(taker))
        return taker

    def test_one_node_has_each_address_and_answers_there(self):
        self.assertTrue(answers() and answers(VIP6))
        self.assertEqual(lan.neighbour("client", VIP), lan.mac(self.holder))
        held = {name: ask(name, "metrics") for name in NODES}
        for address in (VIP, VIP6):
            self.assertEqual([name for name in NODES if held[name][f'pop_vip_held{{pop="vip",address="{address}"}}'] == 1], holders(address))
        # What opens connections to others goes by the host's own address.
        shown = json.loads(run("ip", "-n", lan.netns(self.holder), "-j", "addr", "show", "to", VIP))
        addresses = [it for interface in shown for it in interface.get("addr_info", []) if it]
        self.assertEqual([(it["prefixlen"], it.get("deprecated"), it["valid_life_time"] <= LIFETIME_S) for it in addresses], [(32, True, True)])

    def test_an_address_that_a_node_does_not_know_is_at_one_that_does(self):
        def held():
            return {address: holders(address) for address in FEWER}

        until("one holder of each", lambda: all(len(names) == 1 and UNAWARE not in names for names in held().values()), 5)
        self.assertTrue(all(answers(address) for address in FEWER))
        knows = next(name for name in NODES if name != UNAWARE)
        shown = {it["address"]: [it["holder"]] for it in ask(knows, "status")["vips"]}
        self.assertEqual({address: shown[address] for address in FEWER}, held())

    def test_a_holder_whose_interface_has_no_carrier_leaves_it_to_another_until_it_has(self):
        self.assertTrue(answers())
        before, able = self.holder, f'pop_vip_able{{pop="vip",address="{VIP}"}}'
        self.assertEqual([ask(name, "metrics")[able] for name in NODES], [1, 1, 1])
        began = time.monotonic()
        lan.carry(before, False)
        try:
            taker = self.until_taken_over(began)
            until("it is given up", lambda: not lan.has(before, VIP) and not lan.has(before, VIP6), 3)
            self.assertEqual(ask(before, "metrics")[able], 0)
            self.assertEqual({it["node"]: it["state"] for it in ask(taker, "status")["nodes"]}[before], "up", "it lives")
            until("it knows who has it", lambda: {it["address"]: it["holder"] for it in ask(before, "status")["vips"]}[VIP] == taker, 3)
        finally:
            lan.carry(before, True)
        self.report("it is again where it was", until("it is again where it was", lambda: holders() == [before], 10))
        self.until_one()
        self.assertEqual(self.holder, before)
        until("the client knows", lambda: answers() and lan.neighbour("client", VIP) == lan.mac(before), 2)

    def test_an_ipv6_address_is_taken_over_as_soon(self):
        before = holders(VIP6)[0]
        self.assertTrue(answers(VIP6))
        began = time.monotonic()
        nodes[before].kill()
        self.until_taken_over(began, VIP6, [name for name in NODES if name != before])
        self.start_again(before)

    def test_a_silent_host_loses_it_and_takes_it_again_when_it_is_heard(self):
        self.assertTrue(answers())
        lan.plug(self.holder, False)
        began = time.monotonic()
        try:
            self.until_taken_over(began)
            self.assertTrue(lan.has(self.holder, VIP), "nobody told it")
        finally:
            lan.plug(self.holder, True)
        self.report("after the cut one node has it", until("one holder", lambda: len(holders()) == 1, 10))
        before = self.holder
        self.until_one()
        self.assertEqual(self.holder, before)
        until("the client knows", lambda: answers() and lan.neighbour("client", VIP) == lan.mac(before), 2)

    def test_the_kernel_takes_it_from_a_node_that_is_killed(self):
        self.assertTrue(answers())
        began = time.monotonic()
        nodes[self.holder].kill()
        self.until_taken_over(began)
        until("the dead node's host has lost it", lambda: not lan.has(self.holder, VIP), LIFETIME_S + 2)
        self.report("the kernel took it away", time.monotonic() - began)
        self.assertTrue(answers())
        before = self.holder
        self.start_again(before)
        with lan.entered("client"):
            connection = socket.create_connection((VIP, PORT), 1)
        with connection:
            connection.sendall(b"HEAD / HTTP/1.1\r\nHost: pop\r\n\r\n")
            self.assertTrue(connection.recv(4_096).startswith(b"HTTP/1.1 "))
            until("the first has it again", lambda: lan.has(before, VIP), 10)
            began = time.monotonic()
            connection.settimeout(TAKEOVER_S_MAX)
            with self.assertRaises(ConnectionResetError, msg="a client that says nothing hears that its node has it no longer"):
                connection.recv(1)
            self.report("a connection to the one that had it meanwhile ends", time.monotonic() - began)
        until("it is again where it was", lambda: holders() == [before], 10)
        self.until_one()
        until("an answer", answers, 2)

    def test_a_node_that_hangs_loses_it(self):
        self.assertTrue(answers())
        process = nodes[self.holder].process
        began = time.monotonic()
        process.send_signal(signal.SIGSTOP)
        try:
            self.until_taken_over(began)
            time.sleep(max(0, began + 2 - time.monotonic()))
        finally:
            process.send_signal(signal.SIGCONT)
        self.await_ready(self.holder)
        self.report("after the hang one node has it", until("one holder", lambda: len(holders()) == 1, 10))
        self.until_one()
        until("an answer", answers, 2)

    def test_a_node_that_stops_says_goodbye_by_it_and_gives_it_up_at_once(self):
        self.assertTrue(answers())
        with lan.entered("client"):
            connection = socket.create_connection((VIP, PORT), 1)
        connection.sendall(b"HEAD / HTTP/1.1\r\nHost: pop\r\n\r\n")
        self.assertTrue(connection.recv(4_096).startswith(b"HTTP/1.1 "))
        began = time.monotonic()
        nodes[self.holder].process.send_signal(signal.SIGTERM)
        try:
            with connection:
                connection.settimeout(TAKEOVER_S_MAX)
                self.assertEqual(connection.recv(4_096), b"", "the end of a connection that was open reaches its client")
            self.until_taken_over(began)
            until("the node that stops has it no longer", lambda: not lan.has(self.holder, VIP), 5)
        finally:
            self.assertEqual(nodes[self.holder].process.wait(10), 0)
            self.start_again(self.holder)

    def test_a_node_that_cannot_have_it_says_what_to_change(self):
        name = self.others[0]
        out = pathlib.Path(folder.name) / name
        file = out / "wrong.toml"
        cases = [
            ("10.95.0.80", [], "is in no subnet of this host"),
            ("10.94.0.%d" % NODES[name], [], "is an address of this host alone"),
            (VIP, ["setpriv", "--bounding-set", "-net_raw"], "needs CAP_NET_RAW"),
            (VIP, ["setpriv", "--bounding-set", "-net_admin"], "needs CAP_NET_ADMIN"),
        ]
        for address, under, sentence in cases:
            http = f'[http]\nlisten = "127.0.0.1:7881"\nvip = ["{address}"]\n[admin]\nlisten = "127.0.0.1:0"\nsocket = "{out}/wrong.sock"\n'
            file.write_text(http + config(name, out))
            words = [*lan.inside(name), *under, PROGRAMS / "pop", "run", "--config", file]
            ended = subprocess.run(words, capture_output=True, text=True, timeout=20)
            self.assertEqual(ended.returncode, 1, ended.stderr)
            self.assertIn(sentence, ended.stderr)


if __name__ == "__main__":
    unittest.main()
