"""aiortc to aiortc through a node: every payload arrives as it was sent, for each SRTP profile and DTLS role."""

import asyncio
import unittest

from client import GCM_128, GCM_256, SHA1_80, Client, assert_same_stream, until
from node import Node


def setUpModule():
    global node
    node = Node("aiortc-calls")


def tearDownModule():
    node.stop()


class Calls(unittest.IsolatedAsyncioTestCase):
    async def call(self, name, profiles, setup, expected):
        """A publisher and a viewer of the same kind; compares what the one sent with what the other received."""
        options = {"profiles": profiles, "setup": setup}
        viewer, publisher = Client(**options), Client(**options)
        try:
            await (await viewer.watch(node, name)).until_connected()
            await (await publisher.publish(node, name)).until_connected()
            await until("200 packets", lambda: min(len(p) for p in viewer.received.values()) >= 200, 30)
            for client in (viewer, publisher):
                self.assertEqual(client.profile, expected.openssl_profile)
                # A client that offered passive is the DTLS server, so the node was the client.
                self.assertEqual(client.dtls._role, "server" if setup == "passive" else "client")
            for kind in ("audio", "video"):
                assert_same_stream(self, list(publisher.sent[kind]), list(viewer.received[kind]), 200)
        finally:
            await viewer.close()
            await publisher.close()

    async def test_a_client_that_offers_everything_gets_gcm_128(self):
        await self.call("all", [SHA1_80, GCM_256, GCM_128], None, GCM_128)

    async def test_gcm_128_as_dtls_client(self):
        await self.call("gcm-client", [GCM_128], None, GCM_128)

    async def test_gcm_128_as_dtls_server(self):
        await self.call("gcm-server", [GCM_128], "passive", GCM_128)

    async def test_gcm_256_as_dtls_client(self):
        await self.call("gcm256-client", [GCM_256], None, GCM_256)

    async def test_sha1_80_as_dtls_client(self):
        await self.call("sha1-client", [SHA1_80], None, SHA1_80)

    async def test_sha1_80_as_dtls_server(self):
        await self.call("sha1-server", [SHA1_80], "passive", SHA1_80)


class Fingerprints(unittest.IsolatedAsyncioTestCase):
    """reliability.md row 14: a certificate that is not the one of the offer."""

    async def refused(self):
        """Handshakes that the fingerprint ended, by the node's DTLS role."""
        metrics = await asyncio.to_thread(node.metrics)
        sample = 'pop_dtls_handshakes_total{role="%s",result="fingerprint"}'
        return {role: metrics[sample % role] for role in ("client", "server")}

    async def refuse(self, name, setup):
        before = await self.refused()
        honest = {"eye": Client(), "source": Client()}
        thief = {"eye": Client(setup=setup, wrong_fingerprint=True), "source": Client(setup=setup, wrong_fingerprint=True)}
        try:
            # The honest pair shows that the room works; the thieves' own room shows that they neither feed nor see anything.
            await honest["source"].publish(node, name)
            await honest["eye"].watch(node, name)
            await thief["eye"].watch(node, name, "thief")
            await thief["source"].publish(node, f"{name}-stolen", "thief")
            witness = await Client().watch(node, f"{name}-stolen", "witness")
            honest["witness"] = witness
            await witness.until_connected()
            await until("honest media", lambda: len(honest["eye"].received["video"]) >= 100, 30)
            # Without this a thief whose handshake never came to the certificate would pass. The node is what the client is not.
            rise = {"client": 2, "server": 0} if setup == "passive" else {"client": 0, "server": 2}
            expected = {role: before[role] + rise[role] for role in rise}
            for _ in range(50):
                if await self.refused() == expected:
                    break
                await asyncio.sleep(0.1)
            await asyncio.sleep(1)
            self.assertEqual(await self.refused(), expected, "both thieves, each once, were refused for the certificate")
            self.assertEqual(thief["eye"].media_datagrams, 0, "nothing is sent to a thief")
            self.assertEqual(witness.received, {"audio": [], "video": []}, "nothing of a thief is forwarded")
        finally:
            for client in (*honest.values(), *thief.values()):
                await client.close()

    async def test_a_wrong_certificate_of_a_dtls_client_gets_no_media(self):
        await self.refuse("wrong-client", None)

    async def test_a_wrong_certificate_of_a_dtls_server_gets_no_media(self):
        await self.refuse("wrong-server", "passive")


if __name__ == "__main__":
    unittest.main()
