"""Several nodes of one PoP on loopback, each with a certificate of one CA."""

import contextlib
import pathlib
import random
import socket
import ssl
import subprocess
import tempfile

from node import PROGRAMS, Node


def free_tcp_ports(count):
    """All different, since they are held until all are found; below the range from which the kernel gives ports to clients, one of which could
    have it when the node comes."""
    sockets = []
    while len(sockets) < count:
        with contextlib.suppress(OSError):
            sockets.append(socket.create_server(("127.0.0.1", random.randrange(20_000, 30_000))))
    ports = [it.getsockname()[1] for it in sockets]
    for it in sockets:
        it.close()
    return ports


class Nodes(dict):
    """The nodes by name, from construction until `stop`. `split`: clients get their transports on another node than their sockets.
    `schemas`: those that speak another version to the others than the newest. `awaits_twin`: they look for one more, see `twin`.
    `session`: lines of that part of the config."""

    def __init__(self, test, names, split=True, schemas=None, awaits_twin=False, session="", **options):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="pop-ca-")
        self.place = place = pathlib.Path(self.folder.name)
        self._ca("init")
        *ports, self.twin_port = free_tcp_ports(2 * len(names) + 1)
        self.bus = bus = dict(zip(names, ports))
        mesh = dict(zip(names, ports[len(names) :]))

        def start(name, bus_port, mesh_port, called):
            out = place / name
            others = [f"127.0.0.1:{bus[other]}" for other in names if other != name]
            if awaits_twin:
                others.append(f"127.0.0.1:{self.twin_port}")
            return Node(
                f"{test}-{called}",
                extra=f"""
[node]
name = "{name}"
pop = "python"
state_dir = "{out}/state"
[bus]
listen = ["127.0.0.1:{bus_port}"]
connect = {others}
[mesh]
split = {str(split).lower()}
listen = "127.0.0.1:{mesh_port}"
relay_port = 0
ca = "{out}/ca.pem"
cert = "{out}/node.pem"
key = "{out}/node.key"
{f"schema = {schemas[name]}" if name in (schemas or {}) else ""}
[session]
{session}
""",
                **options,
            )

        for name in names:
            self._ca("issue", "--node", name, "--pop", "python", "--address", "127.0.0.1", "--out", place / name)
            try:
                self[name] = start(name, bus[name], mesh[name], name)
            except BaseException:
                # Nobody else has them.
                self.stop()
                raise
            self[name].may_be_idle = len(names) > 2
        self._start = start

    def _ca(self, what, *words):
        subprocess.run([PROGRAMS / "pop", "ca", what, "--dir", self.place / "ca", *words], check=True, stdout=subprocess.DEVNULL)

    def renew(self, name):
        """Gives a node another certificate and key while it runs."""
        self._ca("renew", "--out", self.place / name)
        words = [PROGRAMS / "pop", "reload", "--socket", self[name].socket]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)

    def certificate_of_bus(self, name):
        """What it shows to who comes to its bus."""
        files = self.place / name
        context = ssl.create_default_context(cafile=files / "ca.pem")
        context.load_cert_chain(files / "node.pem", files / "node.key")
        with socket.create_connection(("127.0.0.1", self.bus[name]), timeout=10) as connection:
            with context.wrap_socket(connection, server_hostname=f"{name}.python.pop.internal") as secured:
                return secured.getpeercert(binary_form=True)

    def twin(self, name):
        """A second process with a node's name and state, as if it were one more host. The caller stops it."""
        (mesh_port,) = free_tcp_ports(1)
        return self._start(name, self.twin_port, mesh_port, f"{name}-twin")

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
