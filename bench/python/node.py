"""A pop process for one test module: own ports, own keys, a capture of its media, and the judgement of the capture."""

import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import tempfile
import threading
import urllib.request

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TARGET = REPOSITORY / os.environ.get("CARGO_TARGET_DIR", "target")
PROGRAMS = TARGET / "release"
ARTIFACTS = TARGET / "e2e"

# Of the API key "e2e".
SECRET = "a secret of this test run alone, 0123456789"


def free_media_port(address):
    """Two workers' ports side by side, below the range from which the kernel gives ports to clients."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    while True:
        port = 30_000 + 2 * random.randrange(1_000)
        try:
            for i in range(2):
                with socket.socket(family, socket.SOCK_DGRAM) as probe:
                    probe.bind((address, port + i))
            return port
        except OSError:
            continue


class Node:
    """Runs from construction until `stop`. `judged` is the capture's filter, before the ports, on `device`; media is on `address` alone;
    HTTP and the admin listener on `serves`; `media_port` is that of the first worker, where this host cannot tell which is free; `dataplane` and `http` are more of those tables, `extra` more of the config; `under` are the words of a
    program that starts it."""

    def __init__(
        self,
        name,
        judged="udp portrange",
        device="lo",
        address="127.0.0.1",
        serves="127.0.0.1",
        media_port=None,
        backend="auto",
        consent="15s",
        dataplane="",
        extra="",
        http="",
        http_port=0,
        under=(),
    ):
        self.name = name
        self.judged = judged
        self.device = device
        self.folder = tempfile.TemporaryDirectory(prefix="pop-e2e-")
        folder = pathlib.Path(self.folder.name)
        self.socket = folder / "pop.sock"
        self.media_port = media_port or free_media_port(address)
        self.keys = folder / "keys.toml"
        self.keys.write_text(f'e2e = "{SECRET}"\n')
        self.keys.chmod(0o600)
        config = folder / "pop.toml"
        config.write_text(
            f"""
[http]
listen = "{serves}:{http_port}"
{http}
[admin]
listen = "{serves}:0"
socket = "{self.socket}"
[media]
addresses = ["{address}"]
port = {self.media_port}
consent_timeout = "{consent}"
[dataplane]
cores = "0-1"
backend = "{backend}"
{dataplane}
[auth]
keys_file = "keys.toml"
{extra}
"""
        )
        self.log = []
        # Whether it had to carry media is not known before.
        self.may_be_idle = False
        self.words = [*under, PROGRAMS / "pop", "run", "--json", "--config", config]
        self.start()
        self.await_ready()
        self._start_capture()

    def start(self):
        """Again, when it has ended."""
        if hasattr(self, "process"):
            self.reader.join()
            self.process.stdout.close()
            self.process.stderr.close()
        self.is_killed = False
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = process = subprocess.Popen(self.words, text=True, **pipes)
        # Nobody else reads the pipe: a full one would stop the node.
        self.reader = threading.Thread(target=lambda: self.log.extend(process.stderr), daemon=True)
        self.reader.start()

    def await_ready(self):
        """Its addresses; a node that begins anew in its process tells them again."""
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.reader.join()
            raise AssertionError(f"pop ended with {code} before it was ready:\n{''.join(self.log)}")
        self.ready = json.loads(line)
        self.http = self.ready["http"]
        self.admin = self.ready["admin"]

    def _start_capture(self):
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        self.capture = ARTIFACTS / f"{self.name}.pcap"
        ports = f"{self.judged} {self.media_port}-{self.media_port + 1}"
        words = ["tcpdump", "-i", self.device, "-w", self.capture, "-U", "-B", "32768", "-s", "0", "-Z", "root", ports]
        self.tcpdump = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for line in self.tcpdump.stderr:
            if "listening on" in line:
                return
        raise AssertionError("tcpdump does not capture")

    def token(self, room, identity, *options):
        words = [PROGRAMS / "pop", "token", "create", "--keys", self.keys, "--room", room, "--identity", identity, "--json", *options]
        return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)["token"]

    def metrics(self):
        """All samples of /metrics, by name and labels."""
        with urllib.request.urlopen(f"{self.admin}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, value in (x.rsplit(" ", 1) for x in lines if x and not x.startswith("#"))}

    def drops(self):
        """Dropped packets by reason, over all workers."""
        drops = {}
        for name, value in self.metrics().items():
            if name.startswith("pop_rtp_dropped_packets_total{"):
                reason = name.split('reason="', 1)[1].split('"', 1)[0]
                drops[reason] = drops.get(reason, 0) + int(value)
        return drops

    def sessions(self):
        return self._ask("sessions")

    def status(self):
        return self._ask("status")

    def is_paired(self):
        """The other node of a pair is up, and so is the link with it."""
        status = self.status()
        return [[it["state"] for it in status[what]] for what in ("nodes", "links")] == [["up"], ["up"]]

    def is_alive(self):
        return self.process.poll() is None

    def kill(self):
        """It dies at once, without a word."""
        self.is_killed = True
        self.process.kill()
        self.process.wait()

    def _ask(self, what):
        with urllib.request.urlopen(f"{self.admin}/api/v1/{what}", timeout=10) as answer:
            return json.load(answer)

    def stop(self):
        """Ends the node; it must end well, and no key and index may have made two ciphertexts."""
        threading.Event().wait(1.2)  # What the kernel still holds for tcpdump reaches the file within a second.
        self.tcpdump.send_signal(signal.SIGINT)
        self.tcpdump.wait(10)
        said = self.tcpdump.stderr.read()
        self.tcpdump.stderr.close()
        alive = self.is_alive()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.reader.join()
        self.process.stdout.close()
        self.process.stderr.close()
        self.folder.cleanup()
        # What it says of its end comes before the stack.
        bugs = [line for line in self.log if re.search("a bug|panicked|abort|allocation|overflowed", line)]
        tail = "".join(bugs[:10] + self.log[-40:])
        if not self.is_killed and (not alive or code != 0):
            raise AssertionError(f"pop ended with {code}{'' if alive else ' before it was told to'}:\n{tail}")
        # The oracle judges what it sees: a packet that is missing could be the second under its index.
        if re.findall(r"(\d+) packets? dropped by kernel", said) != ["0"]:
            raise AssertionError(f"tcpdump lost packets of {self.capture}, or does not say: {said}")
        words = ["--allow-empty"] if self.may_be_idle else []
        oracle = [PROGRAMS / "pop-bench", "oracle", "--ports", f"{self.media_port}-{self.media_port + 1}", *words, self.capture]
        verdict = subprocess.run(oracle, capture_output=True, text=True)
        # On stderr it also tells what it left out: fragments, a record that is cut off.
        if verdict.returncode != 0 or verdict.stderr:
            raise AssertionError(f"nonce oracle on {self.capture}: {verdict.stdout}{verdict.stderr}")
        print(f"nonce oracle, {self.capture.name}: {verdict.stdout.strip()}", flush=True)
        self.capture.unlink()
