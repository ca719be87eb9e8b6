"""What an operator's tools read: promtool on a node's metrics and on the alert rules, systemd-analyze on the unit, and that board and
alerts name only metrics that exist."""

import json
import re
import subprocess
import unittest
import urllib.request

import node

PROMTOOL = node.TARGET / "tools" / "promtool"
CONFIG = node.REPOSITORY / "config"

# What systemd-analyze says of a service that is confined, in tenths; 10 is one that is not. 1.7 when this was written: the host's
# network and two capabilities are what a PoP is for.
EXPOSURE_MAX = 20

# Functions and keywords of PromQL and labels of the rules that look like metrics are told apart by the prefix.
METRIC = re.compile(r"\b((?:pop|process)_[a-z0-9_]+)\b")


def promtool(*words, text=None):
    return subprocess.run([PROMTOOL, *words], input=text, capture_output=True, text=True)


def scrape(url, accept):
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=10) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


class Observability(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.node = node.Node("observability")
        cls.addClassCleanup(cls.node.stop)

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
        _, text = scrape(f"{self.node.admin}/metrics", "text/plain")
        kinds = dict(line.split(" ")[2:4] for line in text.splitlines() if line.startswith("# TYPE"))
        known = set()
        for name, kind in kinds.items():
            known |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}
        board = json.loads((CONFIG / "grafana/pop.json").read_text())
        used = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
        used += re.findall(r"expr: (.*(?:\n {10}.*)*)", (CONFIG / "prometheus/alerts.yml").read_text())
        self.assertGreater(len(used), 25)
        # The certificate's metric exists where one is configured.
        named = set(METRIC.findall("\n".join(used))) - {"pop_tls_certificate_expiry_timestamp_seconds"}
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
