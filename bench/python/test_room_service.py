"""What servers do to rooms, by LiveKit's own library (livekit-api), seen by participants of LiveKit's SDK."""

import asyncio
import json
import unittest
import urllib.error
import urllib.request

from client import until
from guest import Guest, listen, until_tone
from livekit import api, rtc
from node import SECRET, Node

AUDIO = rtc.TrackKind.KIND_AUDIO
TONE = 440


def setUpModule():
    global node
    node = Node("room-service")


def tearDownModule():
    node.stop()


class RoomService(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.name = self.id().rsplit(".", 1)[-1].replace("_", "-")
        self.guests = []
        self.api = api.LiveKitAPI(node.http, "e2e", SECRET)
        self.rooms = self.api.room

    async def asyncTearDown(self):
        for guest in self.guests:
            await guest.leave()
        await self.api.aclose()

    async def join(self, *identities):
        joined = [await Guest(node, self.name, identity).join() for identity in identities]
        self.guests += joined
        return joined

    async def assert_refused(self, code, status, call):
        with self.assertRaises(api.ServerError) as raised:
            await call
        self.assertEqual((raised.exception.code, raised.exception.status), (code, status))

    async def listed(self):
        answer = await self.rooms.list_participants(api.ListParticipantsRequest(room=self.name))
        return {info.identity: info for info in answer.participants}

    async def test_a_room_is_made_filled_listed_and_ended(self):
        made = await self.rooms.create_room(api.CreateRoomRequest(name=self.name, metadata="first", max_participants=2, empty_timeout=60))
        self.assertEqual((made.name, made.metadata, made.max_participants, made.empty_timeout), (self.name, "first", 2, 60))
        ann, bob = await self.join("ann", "bob")
        self.assertEqual((ann.room.metadata, await ann.room.sid), ("first", made.sid))
        with self.assertRaises(rtc.ConnectError):
            await asyncio.wait_for(Guest(node, self.name, "third").join(), 10)
        (listed,) = (await self.rooms.list_rooms(api.ListRoomsRequest(names=[self.name]))).rooms
        self.assertEqual((listed.sid, listed.num_participants), (made.sid, 2))
        await self.rooms.update_room_metadata(api.UpdateRoomMetadataRequest(room=self.name, metadata="second"))
        await bob.until_told("room_metadata_changed")
        self.assertEqual(bob.room.metadata, "second")
        await self.rooms.delete_room(api.DeleteRoomRequest(room=self.name))
        for guest in (ann, bob):
            self.assertEqual(await guest.until_told("disconnected"), (rtc.DisconnectReason.ROOM_DELETED,))
        await self.assert_refused("not_found", 404, self.rooms.delete_room(api.DeleteRoomRequest(room=self.name)))

    async def test_one_is_removed_and_the_others_stay(self):
        ann, bob = await self.join("ann", "bob")
        await self.rooms.remove_participant(api.RoomParticipantIdentity(room=self.name, identity="ann"))
        self.assertEqual(await ann.until_told("disconnected"), (rtc.DisconnectReason.PARTICIPANT_REMOVED,))
        await bob.until_told("participant_disconnected")
        self.assertEqual(set(await self.listed()), {"bob"})
        gone = api.RoomParticipantIdentity(room=self.name, identity="ann")
        await self.assert_refused("not_found", 404, self.rooms.get_participant(gone))

    async def test_a_muted_track_is_told_to_all(self):
        ann, bob = await self.join("ann", "bob")
        mine = await ann.publish_tone(TONE)
        await until_tone(await bob.track("ann", AUDIO), TONE)
        mute = api.MuteRoomTrackRequest(room=self.name, identity="ann", track_sid=mine.sid, muted=True)
        self.assertTrue((await self.rooms.mute_published_track(mute)).track.muted)
        await bob.until_told("track_muted")
        await ann.until_told("track_muted")
        mute.muted = False
        await self.assert_refused("failed_precondition", 412, self.rooms.mute_published_track(mute))

    async def test_subscriptions_are_changed_for_one(self):
        ann, bob = await self.join("ann", "bob")
        mine = await ann.publish_tone(TONE)
        await until_tone(await bob.track("ann", AUDIO), TONE)
        change = api.UpdateSubscriptionsRequest(room=self.name, identity="bob", track_sids=[mine.sid], subscribe=False)
        await self.rooms.update_subscriptions(change)
        # The SDK tells its application of what a server ended only with the next answer; until then that is silence.
        track = await bob.track("ann", AUDIO)
        await asyncio.sleep(0.5)
        heard, share = await listen(track, 0.25, 2)
        self.assertFalse(abs(heard - TONE) <= 20 and share > 0.5, f"{heard} Hz, {share}")
        change.subscribe = True
        await self.rooms.update_subscriptions(change)
        await bob.until_told("track_subscribed", 2)
        await until_tone(await bob.track("ann", AUDIO), TONE)
        change.track_sids[:] = ["TR_0000000000000001"]
        await self.assert_refused("not_found", 404, self.rooms.update_subscriptions(change))

    async def test_one_is_renamed_and_may_no_longer_publish(self):
        ann, bob = await self.join("ann", "bob")
        mine = await ann.publish_tone(TONE)
        await bob.track("ann", AUDIO)
        changed = await self.rooms.update_participant(
            api.UpdateParticipantRequest(
                room=self.name,
                identity="ann",
                name="Ann",
                metadata="of ann",
                attributes={"seat": "7"},
                permission=api.ParticipantPermission(can_subscribe=True, can_publish=False, can_publish_data=True),
            )
        )
        self.assertEqual((changed.name, changed.metadata, dict(changed.attributes)), ("Ann", "of ann", {"seat": "7"}))
        await until("ann's track is gone", lambda: not bob.tracks("ann"))
        seen = bob.room.remote_participants["ann"]
        self.assertEqual((seen.name, seen.metadata, seen.attributes), ("Ann", "of ann", {"seat": "7"}))
        self.assertNotIn(mine.sid, [track.sid for track in (await self.listed())["ann"].tracks])

    async def test_data_of_a_server_reaches_those_it_names(self):
        ann, bob = await self.join("ann", "bob")
        send = self.rooms.send_data
        await send(api.SendDataRequest(room=self.name, data=b"for bob", destination_identities=["bob"], topic="news"))
        await send(api.SendDataRequest(room=self.name, data=b"for all"))
        await ann.until_told("data_received")
        await bob.until_told("data_received", 2)
        self.assertEqual([(p.data, p.participant) for (p,) in ann.told("data_received")], [(b"for all", None)])
        self.assertEqual([(p.data, p.topic or "") for (p,) in bob.told("data_received")], [(b"for bob", "news"), (b"for all", "")])
        await self.assert_refused("not_found", 404, send(api.SendDataRequest(room="nowhere", data=b"x")))

    async def test_each_method_asks_for_its_grant(self):
        await self.join("ann")

        def ask(method, grants, body=None, secret=SECRET, kind="application/json"):
            token = api.AccessToken("e2e", secret).with_grants(api.VideoGrants(**grants)).to_jwt()
            body = json.dumps({"room": self.name, "identity": "ann"}).encode() if body is None else body
            headers = {"Authorization": f"Bearer {token}", "Content-Type": kind}
            request = urllib.request.Request(f"{node.http}/twirp/livekit.RoomService/{method}", body, headers)
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    return answer.status, json.load(answer)
            except urllib.error.HTTPError as error:
                return error.code, json.load(error)["code"]

        mine, others = {"room_admin": True, "room": self.name}, {"room_admin": True, "room": "other"}
        allowed = await asyncio.to_thread(ask, "GetParticipant", mine)
        self.assertEqual((allowed[0], allowed[1]["identity"]), (200, "ann"))
        for refused in [
            (403, "permission_denied", "GetParticipant", others),
            (403, "permission_denied", "GetParticipant", {"room": self.name, "room_list": True}),
            (403, "permission_denied", "RemoveParticipant", {"room_create": True, "room_list": True}),
            (403, "permission_denied", "ListRooms", mine),
            (403, "permission_denied", "CreateRoom", mine | {"room_list": True}),
            (403, "permission_denied", "DeleteRoom", mine | {"room_list": True}),
            (501, "unimplemented", "MoveParticipant", mine),
            (401, "unauthenticated", "GetParticipant", mine, None, SECRET[::-1]),
            (400, "malformed", "GetParticipant", mine, b"{"),
            (400, "malformed", "GetParticipant", mine, b"{" + b" " * (128 << 10) + b"}"),
            (404, "bad_route", "GetParticipant", mine, None, SECRET, "text/plain"),
        ]:
            with self.subTest(refused):
                self.assertEqual(await asyncio.to_thread(ask, *refused[2:]), refused[:2])
        self.assertEqual(set(await self.listed()), {"ann"})


if __name__ == "__main__":
    unittest.main()
