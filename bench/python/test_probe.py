"""Latency probes by tools that nobody here wrote: coturn's STUN client, scapy's STAMP, curl; and a call under a flood of probes."""

import asyncio
import http.server
import json
import os
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.request

import aioice.stun
from client import Client, assert_same_stream, until
from hostile import Forger
from node import PROGRAMS, TARGET, Node
from scapy.contrib.stamp import STAMPSessionReflectorTestUnauthenticated, STAMPSessionSenderTestUnauthenticated, STAMPTestTLV

UNIX_TO_NTP_S = 2_208_988_800
PREFIX_RATE, TOTAL_RATE = 50, 500


def setUpModule():
    global node, pop
    probe = f"[node]\nname = 'probed'\n[probe]\nstun = 0\nstamp = 0\nprefix_requests_per_second = {PREFIX_RATE}\nrequests_per_second = {TOTAL_RATE}"
    # Only what the node sends: the flood towards it is forged.
    node = Node("probe", judged="udp src portrange", extra=probe)
    with urllib.request.urlopen(f"{node.http}/.well-known/pop.json", timeout=10) as answer:
        pop = json.load(answer)


def tearDownModule():
    node.stop()


def place(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


def probes(kind, result="answered"):
    return int(node.metrics()[f'pop_probe_requests_total{{kind="{kind}",result="{result}"}}'])


def binding():
    return struct.pack("!HHI", 1, 0, 0x2112A442) + os.urandom(12)


def check():
    """A connectivity check for the public ufrag, as aioice writes it."""
    message = aioice.stun.Message(message_method=aioice.stun.Method.BINDING, message_class=aioice.stun.Class.REQUEST)
    message.attributes["USERNAME"] = f"{pop['ice']['ufrag']}:x"
    message.add_message_integrity(pop["ice"]["pwd"].encode())
    return bytes(message)


class NoContent(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


class ForeignTools(unittest.TestCase):
    def test_coturns_client_learns_its_address(self):
        host, port = place(pop["stun"][0])
        before = probes("stun")
        tool = TARGET / "tools" / "turnutils_stunclient"
        said = subprocess.run([tool, "-p", str(port), host], capture_output=True, text=True, timeout=20)
        self.assertRegex(said.stdout + said.stderr, r"UDP reflexive addr: 127\.0\.0\.1:\d+")
        self.assertGreater(probes("stun"), before)

    def exchange(self, request):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.connect(place(pop["stamp"][0]))
            client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 33)
            client.send(bytes(request))
            return client.recv(2_000)

    def test_scapy_reads_a_stamp_reply_with_the_kernels_time(self):
        asked = time.time()
        request = STAMPSessionSenderTestUnauthenticated(seq=7, ts=asked + UNIX_TO_NTP_S, ssid=0x1234)
        answer = self.exchange(request)
        self.assertEqual(len(answer), len(bytes(request)))
        reply = STAMPSessionReflectorTestUnauthenticated(answer)
        self.assertEqual((reply.seq, reply.seq_sender, reply.ssid, reply.ttl_sender), (7, 7, 0x1234, 33))
        self.assertEqual(bytes(reply)[24:38], bytes(request)[:14], "sequence, time and error of the sender come back")
        received, sent = reply.ts_rx - UNIX_TO_NTP_S, reply.ts - UNIX_TO_NTP_S
        self.assertLess(asked - 0.001, received)
        self.assertLess(received, sent)
        self.assertLess(sent, time.time() + 0.001)
        self.assertGreaterEqual(reply.err_estimate.multiplier, 1)
        self.assertEqual((reply.mbz1, reply.mbz2), (0, 0))

    def test_scapys_tlvs_come_back_marked(self):
        # The U flag is the first bit (RFC 8972, section 4); scapy's names start at the last, so the flags are numbers here.
        tlvs = [STAMPTestTLV(flags=0x80, type=1, len=8, value=bytes(8)), STAMPTestTLV(flags=0x80, type=200, len=4, value=b"abcd")]
        request = STAMPSessionSenderTestUnauthenticated(seq=1, tlv_objects=tlvs)
        reply = STAMPSessionReflectorTestUnauthenticated(self.exchange(request))
        read = [(int(tlv.type), int(tlv.flags), bytes(tlv.value)) for tlv in reply.tlv_objects]
        self.assertEqual(read, [(1, 0, bytes(8)), (200, 0x80, b"abcd")])

    def test_a_twamp_light_sender_gets_as_much_as_it_sends(self):
        request = struct.pack("!IQH", 3, 0, 1) + bytes(27)
        answer = self.exchange(request)
        self.assertEqual((len(answer), answer[24:38], answer[40]), (41, request[:14], 33))

    def test_curl_gets_204_and_the_timing_headers(self):
        words = ["curl", "--silent", "--show-error", "--include", "--max-time", "10", f"{node.http}/probe"]
        head = subprocess.run(words, check=True, capture_output=True, text=True).stdout.lower()
        self.assertTrue(head.startswith("http/1.1 204 "), head)
        for line in ("cache-control: no-store", "timing-allow-origin: *", "access-control-allow-origin: *", "server-timing: node;"):
            self.assertIn(line, head)

    def test_the_command_believes_a_certificate_of_a_known_authority_alone(self):
        with tempfile.TemporaryDirectory(prefix="pop-e2e-") as folder:
            cert, key, request = (os.path.join(folder, name) for name in ("cert.pem", "key.pem", "request.conf"))
            with open(request, "w") as file:
                file.write("[req]\nprompt = no\ndistinguished_name = dn\nx509_extensions = v3\n[dn]\nCN = localhost\n")
                file.write("[v3]\nsubjectAltName = DNS:localhost\nbasicConstraints = CA:FALSE\n")
            make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
            subprocess.run([*make, "-config", request, "-keyout", key, "-out", cert], check=True, capture_output=True)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(cert, key)
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), NoContent)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self.addCleanup(server.server_close)
            self.addCleanup(server.shutdown)
            for name, authorities, code in (("localhost", cert, 0), ("127.0.0.1", cert, 1), ("localhost", "", 1)):
                words = [PROGRAMS / "pop", "probe", "-c", "2", "-i", "20ms", "--http", f"https://{name}:{server.server_port}/probe"]
                environment = {k: v for k, v in os.environ.items() if k != "SSL_CERT_FILE"} | ({"SSL_CERT_FILE": authorities} if authorities else {})
                said = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=30)
                self.assertEqual(said.returncode, code, said.stdout + said.stderr)
                self.assertEqual(said.stdout.count(" time="), 2 * (code == 0), said.stdout)

    def test_the_command_agrees_with_the_kernel_about_loopback(self):
        for method in ("--stun", "--stamp", "--http", "--ice"):
            words = [PROGRAMS / "pop", "probe", method, "-c", "5", "-i", "50ms", "--json", node.http]
            report = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
            self.assertEqual(report["probes"][0]["received"], 5)
            self.assertLess(report["probes"][0]["rtt_ms"]["min"], 50)


class Floods(unittest.IsolatedAsyncioTestCase):
    async def test_a_call_goes_on_under_a_flood_of_probes_and_nothing_is_amplified(self):
        viewer, publisher = Client(), Client()
        forger = Forger()
        self.addCleanup(forger.close)
        await (await viewer.watch(node, "flooded")).until_connected()
        await (await publisher.publish(node, "flooded")).until_connected()
        await until("media before the flood", lambda: min(map(len, viewer.received.values())) >= 50, 30)
        before = {kind: await asyncio.to_thread(probes, kind) for kind in ("stun", "stamp", "ice")}
        media = publisher.path()[1]
        targets = {"stun": (place(pop["stun"][0]), binding), "stamp": (place(pop["stamp"][0]), lambda: os.urandom(44)), "ice": (media, check)}
        sent, bytes_in = dict.fromkeys(targets, 0), dict.fromkeys(targets, 0)
        seconds = 4

        def flood():
            datagrams = {kind: [make() for _ in range(64)] for kind, (_, make) in targets.items()}
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for kind, (target, _) in targets.items():
                    # Forged sources in 200 prefixes, and garbage in between.
                    source = (f"127.{sent[kind] % 200}.7.9", 20_000 + sent[kind] % 9_999)
                    datagram = datagrams[kind][sent[kind] % 64] if sent[kind] % 8 else os.urandom(30)
                    forger.send(source, target, datagram)
                    sent[kind] += 1
                    bytes_in[kind] += len(datagram)
                time.sleep(0)

        thread = threading.Thread(target=flood)
        thread.start()
        goal = {kind: len(book) + 100 for kind, book in viewer.received.items()}
        await until("media during the flood", lambda: all(len(viewer.received[k]) >= n for k, n in goal.items()), 20)
        await asyncio.to_thread(thread.join)
        goal = {kind: len(book) + 50 for kind, book in viewer.received.items()}
        await until("media after the flood", lambda: all(len(viewer.received[k]) >= n for k, n in goal.items()), 20)
        for kind in goal:
            assert_same_stream(self, list(publisher.sent[kind]), list(viewer.received[kind]), 150)
        await viewer.close()
        await publisher.close()

        longest = {"stun": 32, "stamp": 44, "ice": 64}
        for kind in targets:
            answered = await asyncio.to_thread(probes, kind) - before[kind]
            limited = await asyncio.to_thread(probes, kind, "limited")
            bytes_out = answered * longest[kind]
            print(f"{kind}: {sent[kind]} forged, {answered} answered, {limited} limited, {bytes_in[kind]} bytes in, {bytes_out} bytes out", flush=True)
            # The rate is each reflector's and each worker's; a second's worth may come at once, and calls of the other tests did.
            self.assertLessEqual(answered, TOTAL_RATE * (seconds + 2))
            self.assertGreater(answered, 0)
            self.assertLessEqual(bytes_out, bytes_in[kind])
            self.assertGreater(sent[kind], TOTAL_RATE * seconds)
