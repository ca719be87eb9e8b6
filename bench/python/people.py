"""Light people by `pop-bench people`: hundreds that publish or watch at a node, and tell what they got by where it is from."""

import json
import subprocess

from node import PROGRAMS, SECRET


class People:
    """At `node` from construction, in which they join, until `stop`. `options` as in `pop-bench people --help`."""

    def __init__(self, node, **options):
        words = ["people", "--http", node.http, "--key", f"e2e={SECRET}"]
        for name, value in options.items():
            words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
        self.process = subprocess.Popen([PROGRAMS / "pop-bench", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.joined = self._read()["joined"]

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"pop-bench people ended with {self.process.wait()}")
        return json.loads(line)

    def _ask(self, word):
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self._read()

    def reset(self):
        self._ask("reset")

    def stats(self):
        """Since the last reset: by origin (a number) streams, packets, lost, delay_ms and longest_pause_ms with p50, p99 and max."""
        return {int(origin): of for origin, of in self._ask("stats")["stats"]["origins"].items()}

    def stop(self):
        self.process.stdin.close()
        self.process.stdout.close()
        if self.process.wait(20) != 0:
            raise AssertionError(f"pop-bench people ended with {self.process.returncode}")
