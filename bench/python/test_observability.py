"""What an operator's tools read: promtool on a node's metrics and on the alert rules, systemd-analyze on the unit, that board and
alerts name only metrics that exist, and that the API answers as config/openapi.json says."""

import http.client
import json
import pathlib
import re
import socket
import subprocess
import unittest
import urllib.request

import jsonschema

import node
import nodes
from client import Client, until

PROMTOOL = node.TARGET / "tools" / "promtool"
CONFIG = node.REPOSITORY / "config"

# What systemd-analyze says of a service, in tenths of its 0 (confined) to 10; 2.1 when this was written. The host's network, two
# capabilities and the look at the clock are what a PoP is for.
EXPOSURE_MAX = 22

# Functions and keywords of PromQL and labels of the rules that look like metrics are told apart by the prefix.
METRIC = re.compile(r"\b((?:pop|process)_[a-z0-9_]+)\b")


def promtool(*words, text=None):
    return subprocess.run([PROMTOOL, *words], input=text, capture_output=True, text=True)


def scrape(url, accept):
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=10) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the socket of the pop command."""

    def __init__(self, path):
        super().__init__("localhost", timeout=10)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.path))


def setUpModule():
    global running
    running = node.Node("observability")


def tearDownModule():
    running.stop()


class Api(unittest.IsolatedAsyncioTestCase):
    @classmethod
    def setUpClass(cls):
        cls.node = running
        cls.api = json.loads((CONFIG / "openapi.json").read_text())
        cls.answered = set()

    def ask(self, method, path, pattern=None, body=None, listener=False):
        """Asks the unix socket, or the admin listener, and holds the answer to the file."""
        connection = http.client.HTTPConnection(self.node.admin.removeprefix("http://")) if listener else UnixConnection(self.node.socket)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        described = self.api["paths"][pattern or path][method.lower()]["responses"]
        self.assertIn(str(answer.status), described, f"{method} {path}: {text}")
        content = described[str(answer.status)]["content"]
        kind = answer.headers["Content-Type"].split(";")[0]
        if kind == "application/json":
            schema = {**content[kind]["schema"], "components": self.api["components"]}
            jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)
        self.answered.add(f"{method.lower()} {pattern or path}")
        return answer.status, json.loads(text) if kind == "application/json" else text.decode()

    async def test_every_answer_is_as_described(self):
        viewer, publisher = Client(), Client()
        await (await viewer.watch(self.node, "api")).until_connected()
        await (await publisher.publish(self.node, "api")).until_connected()
        await until("packets", lambda: min(len(p) for p in viewer.received.values()) >= 50, 30)

        self.assertEqual(self.ask("GET", "/ready")[0], 200)
        self.assertEqual(self.ask("GET", "/healthz", listener=True)[0], 200)
        self.ask("GET", "/version")
        self.assertEqual(self.ask("GET", "/api/v1/openapi.json", listener=True)[1], self.api)
        for listener in (False, True):
            self.assertEqual(self.ask("GET", "/api/v1/status", listener=listener)[1]["participants"], 2)
        people = self.ask("GET", "/api/v1/sessions")[1]["sessions"][0]["participants"]
        self.assertEqual({person["kind"] for person in people}, {"publish", "watch"})

        self.assertEqual(self.ask("POST", "/api/v1/tokens", body={"room": "r", "identity": "i"})[0], 200)
        self.assertEqual(self.ask("POST", "/api/v1/tokens", body={"room": "", "identity": "i"})[0], 400)
        self.assertEqual(self.ask("POST", "/api/v1/tokens", body={"room": "r", "identity": "i"}, listener=True)[0], 403)
        self.assertEqual(self.ask("POST", "/api/v1/reload")[0], 200)
        self.assertEqual(self.ask("PUT", "/api/v1/log", body={"filter": "debug"})[1]["filter"], "debug")
        self.assertEqual(self.ask("PUT", "/api/v1/log", body={"filter": "loud=very"})[0], 400)
        self.assertEqual(self.ask("PUT", "/api/v1/log", body={"filter": "info"})[0], 200)
        self.ask("GET", "/api/v1/log")

        capture = {"room": "api", "path": f"{self.node.folder.name}/a.pcapng", "duration": "10s"}
        status, started = self.ask("POST", "/api/v1/captures", body=capture)
        self.assertEqual(status, 201)
        where = f"/api/v1/captures/{started['id']}"
        self.ask("GET", where, "/api/v1/captures/{id}")
        self.assertEqual(self.ask("DELETE", where, "/api/v1/captures/{id}")[1]["state"], "done")
        self.assertEqual(self.ask("GET", "/api/v1/captures/999", "/api/v1/captures/{id}")[0], 404)

        route = {"name": "tap", "direction": "out", "room": "api", "codec": "opus", "peer": "127.0.0.1:40000"}
        self.assertEqual(self.ask("POST", "/api/v1/rtp/routes", body=route)[0], 201)
        self.assertEqual(self.ask("POST", "/api/v1/rtp/routes", body=route)[0], 409)
        self.assertEqual(self.ask("POST", "/api/v1/rtp/routes", body=route | {"name": "x", "peer": "224.0.0.1:40000"})[0], 400)
        self.assertEqual(len(self.ask("GET", "/api/v1/rtp/routes", listener=True)[1]["routes"]), 1)
        for method in ("GET", "DELETE"):
            self.assertEqual(self.ask(method, "/api/v1/rtp/routes/tap", "/api/v1/rtp/routes/{name}")[0], 200)
        self.assertEqual(self.ask("GET", "/api/v1/rtp/routes/tap", "/api/v1/rtp/routes/{name}")[0], 404)

        # /metrics has tests of its own.
        every = {f"{method} {path}" for path, item in self.api["paths"].items() for method in item}
        self.assertEqual(every - self.answered, {"get /metrics"})
        await viewer.close()
        await publisher.close()


    async def test_a_full_disk_fails_the_capture_and_nothing_else(self):
        disk = pathlib.Path(self.node.folder.name) / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
        self.addCleanup(subprocess.run, ["umount", disk], check=True)
        viewer, publisher = Client(), Client()
        await (await viewer.watch(self.node, "disk")).until_connected()
        await (await publisher.publish(self.node, "disk")).until_connected()
        await until("packets", lambda: min(len(p) for p in viewer.received.values()) >= 10, 30)

        capture = {"room": "disk", "path": str(disk / "a.pcapng"), "duration": "3s"}
        started = self.ask("POST", "/api/v1/captures", body=capture)[1]
        where = f"/api/v1/captures/{started['id']}"
        await until("the end", lambda: self.ask("GET", where, "/api/v1/captures/{id}")[1]["state"] != "running", 20)
        ended = self.ask("GET", where, "/api/v1/captures/{id}")[1]
        self.assertEqual(ended["state"], "failed", ended)
        self.assertIn("No space left", ended["error"])
        status, refused = self.ask("POST", "/api/v1/captures", body=capture | {"path": str(disk / "b.pcapng")})
        self.assertEqual((status, "No space left" in refused["error"]), (507, True), refused)
        # The call goes on.
        before = min(len(p) for p in viewer.received.values())
        await until("more packets", lambda: min(len(p) for p in viewer.received.values()) >= before + 50, 30)
        await viewer.close()
        await publisher.close()


class Observability(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.node = running

    def test_promtool_finds_nothing_to_say_of_the_metrics(self):
        kind, text = scrape(f"{self.node.admin}/metrics", "text/plain;version=0.0.4")
        self.assertTrue(kind.startswith("text/plain; version=0.0.4"), kind)
        verdict = promtool("check", "metrics", text=text)
        self.assertEqual((verdict.returncode, verdict.stdout, verdict.stderr), (0, "", ""))
        self.assertGreater(len([line for line in text.splitlines() if line.startswith("# TYPE")]), 50)

    def test_a_scraper_that_asks_for_openmetrics_gets_it(self):
        kind, text = scrape(f"{self.node.admin}/metrics", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
        self.assertTrue(kind.startswith("application/openmetrics-text; version=1.0.0"), kind)
        self.assertTrue(text.endswith("# EOF\n"))

    def test_the_alerts_fire_when_they_should(self):
        for words in (["check", "rules", CONFIG / "prometheus/alerts.yml"], ["test", "rules", CONFIG / "prometheus/alerts_test.yml"]):
            verdict = promtool(*words)
            self.assertEqual(verdict.returncode, 0, verdict.stdout + verdict.stderr)

    def test_board_and_alerts_name_only_metrics_that_exist(self):
        # Metrics of links are those of a node that has others.
        several = nodes.Nodes("board", ("a",))
        several["a"].may_be_idle = True
        try:
            text = "".join(scrape(f"{node.admin}/metrics", "text/plain")[1] for node in (self.node, several["a"]))
        finally:
            several.stop()
        kinds = dict(line.split(" ")[2:4] for line in text.splitlines() if line.startswith("# TYPE"))
        known = set()
        for name, kind in kinds.items():
            known |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}
        board = json.loads((CONFIG / "grafana/pop.json").read_text())
        used = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
        used += re.findall(r"expr: (.*(?:\n {10}.*)*)", (CONFIG / "prometheus/alerts.yml").read_text())
        self.assertGreater(len(used), 25)
        # A certificate's metric exists where one is configured, and so does a service address's.
        named = set(METRIC.findall("\n".join(used))) - {"pop_tls_certificate_expiry_timestamp_seconds", "pop_vip_held"}
        self.assertEqual(named - known, set())

    def test_systemd_finds_the_unit_confined(self):
        unit = CONFIG / "systemd/pop.service"
        verdict = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_MAX}", "--no-pager", unit],
            capture_output=True,
            text=True,
        )
        self.assertEqual(verdict.returncode, 0, verdict.stdout[-2_000:] + verdict.stderr)
        print(verdict.stdout.strip().splitlines()[-1], flush=True)


if __name__ == "__main__":
    unittest.main()
