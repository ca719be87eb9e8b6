"""Who comes back as somebody else, or as nobody that there is, is refused at each node and written down; whom it would have concerned does
not notice, and goes on when its node dies in the middle of it."""

import asyncio
import time
import unittest

import aiohttp
from client import until
from guest import Guest, Wire, sign
from livekit.protocol import models, rtc as protocol
from test_resume import Call
import test_resume

# Strangers who come again as soon as they were refused.
LANES = 6


def setUpModule():
    test_resume.setUpModule()


def tearDownModule():
    test_resume.tearDownModule()


class Strangers(Call):
    async def resume(self, node, token, sid):
        """The first word that somebody hears who comes back with this id."""
        words = {"access_token": token, "reconnect": "1", "sid": sid, "sdk": "python"}
        async with self.http.ws_connect(f"{node.http}/rtc/v1", params=words) as socket:
            message = await socket.receive(timeout=10)
            if message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED):
                raise ConnectionResetError(f"closed with {message.data} before a word")
            return protocol.SignalResponse.FromString(message.data)

    async def refuse(self, node, token, sid):
        told = await self.resume(node, token, sid)
        self.assertEqual(told.WhichOneof("message"), "leave", told)
        self.assertEqual((told.leave.action, told.leave.reason), (protocol.LeaveRequest.RECONNECT, models.STATE_MISMATCH))

    async def flood(self, lane, room):
        """Comes with ids that nobody has, one after the other, at each node in turn; how often it was refused."""
        token, number = sign(room, f"lane-{lane}"), 0
        try:
            while not self.over.is_set():
                name = "abc"[number % 3]
                number += 1
                try:
                    await self.refuse(self.nodes[name], token, f"PA_{lane << 32 | number:016x}")
                    self.refused[name] += 1
                except aiohttp.ClientError:
                    self.assertFalse(self.nodes[name].is_alive(), name)
                except ConnectionResetError:
                    # Another node had it carried to the one that died.
                    self.assertFalse(self.nodes["a"].is_alive(), name)
        finally:
            self.over.set()

    def said(self, name, *words):
        return [line for line in self.nodes[name].log if all(word in line for word in words)]

    async def test_who_comes_as_another_or_as_nobody_is_refused_and_the_rightful_one_goes_on(self):
        nodes, room = await self.start(split=False), "rightful"
        wire = Wire(nodes["a"])
        ann, bob = Guest(nodes["a"], room, "ann"), Guest(nodes["b"], room, "bob")
        ann.url = f"ws://127.0.0.1:{await wire.start()}"
        self.refused, self.over = dict.fromkeys(nodes, 0), asyncio.Event()
        # Of the room, but somebody else; herself, but in another room; both with her id.
        thieves = [sign(room, "eve"), sign("elsewhere", "ann")]
        lanes = []
        async with aiohttp.ClientSession() as self.http:
            try:
                pictures, tone = await self.call(ann, bob)
                await until("c keeps the room", lambda: self.people("c", room) == {"ann": "a", "bob": "b"}, 5)
                sid = ann.me.sid
                lanes = [asyncio.create_task(self.flood(lane, room)) for lane in range(LANES)]
                for node in nodes.values():
                    for token in thieves:
                        await self.refuse(node, token, sid)
                self.assertEqual(ann.told("reconnecting"), [], "while she is here")
                wire.open.clear()
                wire.node = nodes["c"]
                nodes["a"].kill()
                died = time.monotonic()
                wire.cut()
                # She is away, and they are before her.
                for name in "bc":
                    for token in thieves:
                        await self.refuse(nodes[name], token, sid)
                wire.open.set()
                await self.goes_on(ann, bob, pictures, tone, died)
                await self.each_has_one_owner("bc", {"ann": "a", "bob": "b"})
                self.assertEqual(ann.me.sid, sid)
                at = self.people("b", room)["ann"]
                for token in thieves:
                    await self.refuse(nodes["b"], token, sid)
                went_on = not self.over.is_set()
                self.over.set()
                await asyncio.gather(*lanes)
                self.assertTrue(went_on, "a flood all the time")
                print(f"refused at each node: {self.refused}", flush=True)
                self.assertGreater(min(self.refused[name] for name in "bc"), 20)
                self.assertEqual({who for name in "bc" for who in self.people(name, room)}, {"ann", "bob"})
                self.assertEqual([it for name in "bc" for it in self.people(name, "elsewhere")], [])
                # At the node that was asked, or the one that it asked in turn. Who it was, what it wanted, and where.
                self.assertGreaterEqual(sum(len(self.said(name, "resume refused", "identity=lane-")) for name in nodes), sum(self.refused.values()))
                thefts = [("eve", room), ("ann", "elsewhere")]
                for who, where in thefts:
                    told = [self.said(name, "resume refused", f"identity={who}", f"room={where}", f"participant={sid}") for name in nodes]
                    # At three nodes while she was here, at two while she was away, at one when she was back.
                    self.assertEqual(sum(map(len, told)), 6, f"{who}: {told}")
                for name in "bc":
                    self.assertTrue(self.said(name, "resume refused", "identity=lane-0", f"room={room}"), name)
                    count = nodes[name].metrics()['pop_signal_refused_total{reason="resume"}']
                    self.assertEqual(count, len(self.said(name, "resume refused")), "each is counted, and in the log")
                self.assertEqual(len(self.said(at, "take over", "identity=ann", f"participant={sid}", "from=")), 1)
                self.assertEqual([it for name in "bc" for it in self.said(name, "resume refused", "identity=ann", f"room={room}")], [])
            finally:
                self.over.set()
                await asyncio.gather(*lanes, return_exceptions=True)
                await bob.leave()
                await ann.leave()
                wire.close()



if __name__ == "__main__":
    unittest.main()
