"""GStreamer's webrtcbin publishes by WHIP and watches by WHEP; frames count when they are decoded."""

import json
import pathlib
import subprocess
import unittest

import node

CLIENT = pathlib.Path(__file__).with_name("gstreamer_client.py")

# Three seconds of video.
FRAMES = 75

# libnice checks no more once it has a pair: who sends media or reports stays all the same. The reports of a viewer come up to 7 s apart.
CONSENT_S = 8
FRAMES_BEYOND_CONSENT = 25 * (CONSENT_S + 3)

# A viewer gives up after half a minute, and a busy machine takes its time to start one.
PATIENCE_S = 45


def own_address():
    """One of this machine's that is not loopback: libnice gathers no loopback candidates."""
    listed = subprocess.run(["ip", "-json", "-4", "address", "show", "up", "scope", "global"], check=True, capture_output=True)
    addresses = [entry["local"] for link in json.loads(listed.stdout) for entry in link.get("addr_info", [])]
    if not addresses:
        raise AssertionError("this machine has no address but loopback's: GStreamer cannot be tested")
    return addresses[0]


class Gstreamer(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.node = node.Node("gstreamer", address=own_address(), consent=f"{CONSENT_S}s")
        cls.addClassCleanup(cls.node.stop)

    def start(self, role, codec, frames):
        way = "whip" if role == "publish" else "whep"
        room = codec
        token = self.node.token(room, f"gstreamer-{role}")
        # The system's Python: the bindings are packages of the system.
        words = ["/usr/bin/python3", CLIENT, role, f"{self.node.http}/{way}/{room}", token, codec, str(frames)]
        pipe = subprocess.PIPE
        client = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self.addCleanup(client.kill)
        return client

    def report(self, client):
        """Ends a publisher; waits for a viewer."""
        if client.args[2] == "publish":
            client.stdin.close()
            client.stdin = None
        out, err = client.communicate(timeout=PATIENCE_S)
        self.assertEqual(client.returncode, 0, err[-2_000:])
        report = json.loads(out.splitlines()[-1])
        self.assertIsNone(report["failure"], err[-2_000:])
        return report

    def call(self, codec, frames=FRAMES):
        viewer = self.start("watch", codec, frames)
        publisher = self.start("publish", codec, frames)
        viewer.wait(PATIENCE_S)
        seen, sent = self.report(viewer), self.report(publisher)
        print(f"{codec}: {seen['decoded']}, {seen['stats']}", flush=True)
        self.assertGreater(sent["stats"]["outbound-rtp packets-sent"], 2 * frames)
        self.assertGreaterEqual(min(seen["decoded"].values()), frames)
        self.assertEqual(seen["sizes"], ["320x240"])
        self.assertEqual(seen["stats"]["inbound-rtp packets-lost"], 0)

    def test_vp8(self):
        self.call("VP8", FRAMES_BEYOND_CONSENT)

    def test_h264(self):
        self.call("H264")

    def test_vp9(self):
        self.call("VP9")


if __name__ == "__main__":
    unittest.main()
