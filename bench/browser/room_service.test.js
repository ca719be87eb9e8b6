// What a server does to rooms by LiveKit's server SDK for Node (Twirp in JSON), seen by people in a browser.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { DataPacket_Kind, RoomServiceClient } from "livekit-server-sdk";

import { launchChromium } from "./browsers.js";
import { pause, until } from "./expect.js";
import { openRoom, serveLiveKitPage } from "./livekit.js";
import { startNode } from "./node.js";

const ROOM = "served";

let node, site, browser, rooms, ann, bob, camera;

before(async () => {
  [node, site, browser] = await Promise.all([startNode("room-service"), serveLiveKitPage(), launchChromium()]);
  rooms = new RoomServiceClient(node.http, "e2e", "a secret of this test run alone, 0123456789");
  [ann, bob] = await Promise.all(["ann", "bob"].map(come));
  camera = await ann.camera(true);
  await untilMoving(bob);
});

after(async () => {
  await browser?.close();
  site?.close();
  await node?.stop();
});

async function come(identity) {
  const person = await openRoom(browser, site);
  return Object.assign(person, await person.join(node.http.replace("http", "ws"), await node.token(ROOM, identity)));
}

const frames = async (viewer) => (await viewer.received())[camera]?.frames ?? 0;

async function untilMoving(viewer) {
  const before = await frames(viewer);
  await until("the picture moves", async () => (await frames(viewer)) > before + 5);
}

const heard = (person, name, has = () => true) =>
  until(`${person.identity} hears ${name}`, async () => (await person.events()).some((event) => event.name === name && has(event.text)));

test("rooms and who is in them are listed", async () => {
  assert.deepEqual((await rooms.listRooms()).map((room) => [room.name, room.numParticipants]), [[ROOM, 2]]);
  const people = await rooms.listParticipants(ROOM);
  assert.deepEqual(people.map((person) => person.identity).sort(), ["ann", "bob"]);
  const [track] = (await rooms.getParticipant(ROOM, "ann")).tracks;
  assert.deepEqual([track.sid, track.muted, track.mimeType], [camera, false, "video/VP8"]);
  await assert.rejects(rooms.getParticipant(ROOM, "nobody"), { code: "not_found" });
});

test("a track that is unsubscribed stops, and comes back", async () => {
  await rooms.updateSubscriptions(ROOM, "bob", [camera], false);
  await until("the picture stands", async () => {
    const before = await frames(bob);
    await pause(1);
    return (await frames(bob)) === before;
  });
  await rooms.updateSubscriptions(ROOM, "bob", [camera], true);
  await untilMoving(bob);
});

test("data, metadata and permissions reach the clients", async () => {
  await rooms.sendData(ROOM, new TextEncoder().encode("from the server"), DataPacket_Kind.RELIABLE, { destinationIdentities: ["bob"], topic: "t" });
  await heard(bob, "DataReceived", (text) => text[0] === "from the server");
  await rooms.updateParticipant(ROOM, "ann", { metadata: "a speaker", name: "Ann" });
  await until("bob sees ann's metadata", async () => (await bob.remotes())[0].metadata === "a speaker");
  await rooms.updateRoomMetadata(ROOM, "on air");
  await heard(ann, "RoomMetadataChanged");
});

test("a muted track is muted for all, and who is removed is out", async () => {
  await rooms.mutePublishedTrack(ROOM, "ann", camera, true);
  await heard(bob, "TrackMuted");
  await until("ann knows", async () => (await ann.names()).includes("TrackMuted"));
  await rooms.removeParticipant(ROOM, "ann");
  await heard(ann, "Disconnected");
  await until("bob is alone", async () => (await bob.remotes()).length === 0);
  await rooms.deleteRoom(ROOM);
  await heard(bob, "Disconnected");
});

test("a wrong secret, and a token for another thing, are refused", async () => {
  await assert.rejects(new RoomServiceClient(node.http, "e2e", "guessed").listRooms(), { code: "unauthenticated" });
  await assert.rejects(rooms.removeParticipant("elsewhere", "ann"), { code: "not_found" });
});
