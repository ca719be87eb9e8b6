"""Several nodes of one PoP on loopback, each with a certificate of one CA."""

import pathlib
import socket
import subprocess
import tempfile

from node import PROGRAMS, Node


def free_tcp_ports(count):
    """All different, since they are held until all are found."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [it.getsockname()[1] for it in sockets]
    for it in sockets:
        it.close()
    return ports


class Nodes(dict):
    """The nodes by name, from construction until `stop`. `split`: clients get their transports on another node than their sockets.
    `schemas`: those that speak another version to the others than the newest."""

    def __init__(self, test, names, split=True, schemas=None, **options):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="pop-ca-")
        place = pathlib.Path(self.folder.name)
        ca = ["--dir", place / "ca"]
        subprocess.run([PROGRAMS / "pop", "ca", "init", *ca], check=True, stdout=subprocess.DEVNULL)
        ports = free_tcp_ports(2 * len(names))
        bus = dict(zip(names, ports))
        mesh = dict(zip(names, ports[len(names) :]))
        for name in names:
            out = place / name
            words = ["--node", name, "--pop", "python", "--address", "127.0.0.1", "--out", out]
            subprocess.run([PROGRAMS / "pop", "ca", "issue", *ca, *words], check=True, stdout=subprocess.DEVNULL)
            others = [f"127.0.0.1:{bus[other]}" for other in names if other != name]
            self[name] = Node(
                f"{test}-{name}",
                extra=f"""
[node]
name = "{name}"
pop = "python"
state_dir = "{out}/state"
[bus]
listen = ["127.0.0.1:{bus[name]}"]
connect = {others}
[mesh]
split = {str(split).lower()}
listen = "127.0.0.1:{mesh[name]}"
relay_port = 0
ca = "{out}/ca.pem"
cert = "{out}/node.pem"
key = "{out}/node.key"
{f"schema = {schemas[name]}" if name in (schemas or {}) else ""}
""",
                **options,
            )
            self[name].may_be_idle = len(names) > 2

    def are_whole(self):
        """Each node that lives knows all others that do, and has a link with each."""
        alive = [node for node in self.values() if node.is_alive()]
        up = len(alive) - 1

        def is_whole(node):
            status = node.status()
            return all(sum(it["state"] == "up" for it in status[what]) == up for what in ("nodes", "links"))

        return all(is_whole(node) for node in alive)

    def stop(self):
        errors = []
        for node in self.values():
            try:
                node.stop()
            except AssertionError as error:
                errors.append(error)
        self.folder.cleanup()
        if errors:
            raise errors[0]
