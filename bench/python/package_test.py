"""The .deb in a Debian that has nothing but the base: it installs, starts, is upgraded without losing config or keys, and goes.

A chroot has no systemd: the test runs what the unit file names, as the unit's user."""

import os
import pathlib
import re
import select
import signal
import subprocess
import tempfile
import unittest
import urllib.request

import node


def run(words, **options):
    done = subprocess.run(words, capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise AssertionError(f"{words} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def build(version):
    """Of the program that the suite has built."""
    return pathlib.Path(run(["scripts/package", "--built", "--version", version], cwd=node.REPOSITORY, stdin=subprocess.DEVNULL).strip())


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="pop-package-")
        cls.addClassCleanup(folder.cleanup)
        cls.root = pathlib.Path(folder.name) / "root"
        lists = [str(path) for path in [pathlib.Path("/etc/apt/sources.list"), *pathlib.Path("/etc/apt/sources.list.d").glob("*.sources")]]
        lists = [path for path in lists if os.path.exists(path)]
        run(["mmdebstrap", "--quiet", "--variant=minbase", "--include=adduser", "bookworm", str(cls.root), *lists])
        # A node learns who it is from there.
        run(["mount", "-t", "proc", "proc", str(cls.root / "proc")])
        cls.addClassCleanup(run, ["umount", "--lazy", str(cls.root / "proc")])
        cls.first, cls.second = build("0.0.1"), build("0.0.2")

    def chroot(self, *words, **options):
        return run(["chroot", str(self.root), *words], **options)

    def start(self):
        """Runs ExecStart as the unit's user; returns the process when it is ready."""
        unit = (self.root / "lib/systemd/system/pop.service").read_text()
        say = dict(re.findall(r"^(User|ExecStart|RuntimeDirectory|StateDirectory)=(.*)$", unit, re.M))
        for place in ("run/" + say["RuntimeDirectory"], "var/lib/" + say["StateDirectory"]):
            (self.root / place).mkdir(parents=True, exist_ok=True)
            self.chroot("chown", f"{say['User']}:", f"/{place}")
        in_root = ["setpriv", f"--reuid={say['User']}", f"--regid={say['User']}", "--init-groups", "--no-new-privs"]
        self.chroot(*in_root, "pop", "check", "/etc/pop/pop.toml")
        words = ["chroot", str(self.root), *in_root, *say["ExecStart"].split()]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.kill)
        if not select.select([process.stdout], [], [], 10)[0]:
            raise AssertionError("not ready within 10 s")
        line = process.stdout.readline()
        self.assertTrue(line.startswith("ready http="), line or process.stderr.read())
        return process, dict(word.split("=", 1) for word in line.split()[1:])

    def stop(self, process):
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(10), 0)
        process.stdout.close()
        process.stderr.close()

    def install(self, package):
        place = self.root / "opt" / package.name
        place.write_bytes(package.read_bytes())
        self.chroot("dpkg", "--install", f"/opt/{package.name}")

    def test_it_installs_starts_upgrades_and_goes(self):
        self.install(self.first)
        self.assertIn("0.0.1", self.chroot("dpkg-query", "-W", "-f", "${Version}", "pop"))
        keys = self.root / "etc/pop/keys.toml"
        self.assertEqual(keys.stat().st_mode & 0o777, 0o640)
        secret = keys.read_text()
        for place in ("usr/share/man/man1/pop.1.gz", "usr/share/bash-completion/completions/pop", "usr/lib/sysctl.d/90-pop.conf"):
            self.assertTrue((self.root / place).stat().st_size > 0, place)

        process, ready = self.start()
        with urllib.request.urlopen(f"{ready['admin']}/ready", timeout=5) as answer:
            self.assertEqual(answer.status, 200)
        token = self.chroot("pop", "token", "create", "--room", "r", "--identity", "i", "--socket", "/run/pop/pop.sock")
        self.assertIn("ey", token)

        self.assertIn("ndr", self.chroot("pop", "bench", "--help"))

        # An upgrade while it runs: the operator's config and keys stay, and the old program goes on until it is restarted.
        config = self.root / "etc/pop/pop.toml"
        config.write_text(config.read_text().replace('level = "info"', 'level = "warn"'))
        self.install(self.second)
        with urllib.request.urlopen(f"{ready['admin']}/ready", timeout=5) as answer:
            self.assertEqual(answer.status, 200)
        self.assertIn('level = "warn"', config.read_text())
        self.assertEqual(keys.read_text(), secret)
        self.stop(process)
        process, _ = self.start()
        self.stop(process)

        self.chroot("dpkg", "--remove", "pop")
        self.assertFalse((self.root / "usr/bin/pop").exists())
        self.assertTrue(keys.exists(), "a removal keeps the keys")
        self.chroot("dpkg", "--purge", "pop")
        for place in ("etc/pop", "var/lib/pop", "lib/systemd/system/pop.service", "usr/share/pop"):
            self.assertFalse((self.root / place).exists(), place)
        for table in ("passwd", "group"):
            self.assertNotIn("\npop:", (self.root / "etc" / table).read_text())

    def test_the_same_commit_makes_the_same_package(self):
        again = self.second.read_bytes()
        self.assertEqual(build("0.0.2").read_bytes(), again)


if __name__ == "__main__":
    unittest.main()
