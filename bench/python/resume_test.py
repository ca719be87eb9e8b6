"""A call whose one half was at a node that died, and goes on at the node where the other half is. Not in the default run: of four runs
one had no picture again within 10 s in one direction, and why is not known. `scripts/test --long nodes` runs it."""

import time
import unittest

from client import until
from guest import Guest, Wire
from test_resume import Call


class Half(Call):
    async def test_who_was_at_a_node_that_died_goes_on_at_another(self):
        nodes, room = await self.start(split=False), "call"
        wire = Wire(nodes["a"])
        ann, bob = Guest(nodes["a"], room, "ann"), Guest(nodes["b"], room, "bob")
        ann.url = f"ws://127.0.0.1:{await wire.start()}"
        try:
            pictures, tone = await self.call(ann, bob)
            sid = ann.me.sid
            # Nobody of the room is at c, and it knows who is.
            await until("c keeps the room", lambda: self.people("c", room) == {"ann": "a", "bob": "b"}, 5)
            wire.node = nodes["c"]
            nodes["a"].kill()
            wire.cut()
            await self.goes_on(ann, bob, pictures, tone, time.monotonic())
            people = self.people("b", room)
            self.assertIn(people.pop("ann"), ("b", "c"))
            self.assertEqual(people, {"bob": "b"})
            self.assertEqual(ann.me.sid, sid)
            self.assertEqual(bob.told("reconnecting"), [])
        finally:
            await bob.leave()
            await ann.leave()
            wire.close()


if __name__ == "__main__":
    unittest.main()
