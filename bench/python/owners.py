"""Whose a participant is, as every node says: what must not differ for longer than a moment."""

import asyncio
import http.client
import time

INTERVAL_S = 0.02
# After a take-over no node may show anybody twice, or where it was before.
SETTLED_S = 0.5


class Owners:
    """Asks all nodes again and again, from construction until `close`. `seen`: of each node when it was asked, when it answered, and the
    nodes that those of this identity are at."""

    def __init__(self, nodes, room, identity):
        self.nodes, self.room, self.identity = nodes, room, identity
        self.seen = {name: [] for name in nodes}
        self.tasks = [asyncio.create_task(self._follow(name)) for name in nodes]

    async def _follow(self, name):
        while True:
            try:
                self.seen[name].append(await asyncio.to_thread(self._ask, name))
            except (OSError, http.client.HTTPException):
                # It is dead, or begins anew.
                pass
            await asyncio.sleep(INTERVAL_S)

    def _ask(self, name):
        asked = time.monotonic()
        sessions = self.nodes[name].sessions()["sessions"]
        people = [it for session in sessions if session["id"] == self.room for it in session["participants"]]
        return asked, time.monotonic(), [it["node"] for it in people if it["identity"] == self.identity]

    def now(self, name):
        return self.seen[name][-1][2] if self.seen[name] else []

    def since(self, name, moment):
        """What a node said that was asked after a moment."""
        return [owners for asked, _, owners in self.seen[name] if asked >= moment]

    def taken_at(self, owner):
        """When a node first said that this one has it."""
        return min(answered for seen in self.seen.values() for _, answered, owners in seen if owner in owners)

    def close(self):
        for task in self.tasks:
            task.cancel()
