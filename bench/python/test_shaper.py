"""The shaper with a real kernel at both ends: delay, loss by seed, corruption that reaches the program, and nothing left behind."""

import subprocess
import sys
import unittest

from network import Network

# Sends numbered datagrams to ADDRESS, one each GAP seconds, and prints the round trip of each in microseconds (-1: none).
PING = """
import socket, struct, sys, time
to, count, gap = (sys.argv[1], 7), int(sys.argv[2]), float(sys.argv[3])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(0.5)
for i in range(count):
    start = time.perf_counter()
    s.sendto(struct.pack("!I", i) + bytes(96), to)
    try:
        while struct.unpack("!I", s.recv(2048)[:4])[0] != i:
            pass
        print(round((time.perf_counter() - start) * 1e6))
    except TimeoutError:
        print(-1)
    time.sleep(gap)
"""

ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 7))
print("ready", flush=True)
while True:
    data, peer = s.recvfrom(2048)
    s.sendto(data, peer)
"""


class Shaper(unittest.TestCase):
    def network(self, wires, seed=1):
        network = Network({"a": "10.79.1.1/24", "b": "10.79.1.2/24"}, wires, seed)
        self.addCleanup(lambda: network.process.poll() is None and network.stop())
        echo = subprocess.Popen([*network.inside("b"), sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True)
        self.addCleanup(echo.stdout.close)
        self.addCleanup(echo.wait)
        self.addCleanup(echo.kill)
        self.assertEqual(echo.stdout.readline(), "ready\n")
        return network

    def ping(self, network, count=20, gap=0.0):
        words = [*network.inside("a"), sys.executable, "-c", PING, network.address["b"], str(count), str(gap)]
        output = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
        return [int(line) for line in output.split()]

    def test_a_delay_is_what_was_asked_for_and_changes_at_run_time(self):
        network = self.network(["a-b delay 20ms"])
        for one_way_ms in (20, 5):
            network.change(f"a-b delay {one_way_ms}ms")
            rtts = sorted(self.ping(network))
            # Never early. Our programs at the ends may be late on a busy machine, all of them hardly.
            self.assertGreaterEqual(rtts[0], 2_000 * one_way_ms)
            self.assertLess(rtts[0], 2_000 * one_way_ms + 2_000)

    def test_equal_seeds_lose_the_same_packets(self):
        runs = []
        for seed in (5, 5, 6):
            network = self.network(["a>b loss 30%"], seed)
            # Nothing but our datagrams may take numbers of the sequence.
            runs.append([i for i, rtt in enumerate(self.ping(network, 30)) if rtt < 0])
            self.assertEqual(network.stop()["wires"]["a>b"]["lost"], len(runs[-1]))
        self.assertEqual(runs[0], runs[1])
        self.assertNotEqual(runs[0], runs[2])

    def test_a_flipped_bit_reaches_the_program(self):
        network = self.network(["b>a corrupt 100%"])
        code = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.sendto(bytes(100), (sys.argv[1], 7))
print(sum(byte.bit_count() for byte in s.recv(2048)))
"""
        words = [*network.inside("a"), sys.executable, "-c", code, network.address["b"]]
        self.assertEqual(subprocess.run(words, capture_output=True, text=True, timeout=30).stdout, "1\n")

    def test_a_wrong_command_is_answered_and_changes_nothing(self):
        network = self.network(["a-b delay 5ms"])
        with self.assertRaisesRegex(AssertionError, "no end is called"):
            network.change("a-x delay 1s")
        self.assertLess(min(self.ping(network, 5)), 100_000)

    def test_nothing_is_left_when_the_test_dies(self):
        network = self.network([])
        netns = network.netns["a"]
        self.assertIn(netns, namespaces())
        # What the kernel does when a process ends without a word.
        network.process.stdin.close()
        self.assertEqual(network.process.wait(10), 0)
        network.process.stdout.close()
        self.assertNotIn(netns, namespaces())

    def test_three_ends_have_three_distances(self):
        network = Network.star([3, 20, 55])
        try:
            for i, rtt in enumerate([3, 20, 55]):
                words = [*network.inside("client"), sys.executable, "-c", CONNECT, network.address[f"node{i}"]]
                seen = float(subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout)
                # A refused TCP connection is one round trip.
                self.assertGreaterEqual(seen, rtt)
                self.assertLess(seen, rtt + 3)
        finally:
            network.stop()


CONNECT = """
import socket, sys, time
best = 1e9
for _ in range(5):
    start = time.perf_counter()
    socket.socket().connect_ex((sys.argv[1], 9))
    best = min(best, time.perf_counter() - start)
print(best * 1e3)
"""


def namespaces():
    return [line.split()[0] for line in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout.splitlines()]


if __name__ == "__main__":
    unittest.main()
