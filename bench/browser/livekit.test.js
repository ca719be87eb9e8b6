// Rooms by LiveKit's own client, unmodified: join, publish, subscribe, mute, unpublish, come back.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { launchChromium, launchFirefox } from "./browsers.js";
import { until } from "./expect.js";
import { openRoom, serveLiveKitPage } from "./livekit.js";
import { startNode } from "./node.js";

let node, site, browsers, url;

before(async () => {
  [node, site, ...browsers] = await Promise.all([startNode("livekit"), serveLiveKitPage(), launchChromium(), launchFirefox()]);
  url = node.http.replace("http", "ws");
});

after(async () => {
  await Promise.allSettled((browsers ?? []).map((browser) => browser.close()));
  site?.close();
  await node?.stop();
});

/** Somebody in a room. */
async function come(browser, room, identity, ...token) {
  const person = await openRoom(browser, site);
  const joined = await person.join(url, await node.token(room, identity, ...token));
  assert.equal(joined.identity, identity);
  return Object.assign(person, joined);
}

/** What `viewer` decodes of `sid`, once it decodes something more. */
async function untilPlaying(viewer, sid) {
  let before;
  return until(`${viewer.identity} plays ${sid}`, async () => {
    const seen = (await viewer.received())[sid];
    const grew = seen && before && (seen.kind === "video" ? seen.frames > before.frames + 5 : seen.samples > before.samples + 10_000);
    before ??= seen;
    return grew && seen;
  });
}

async function untilHeard(person, event, matches = () => true) {
  return until(`${person.identity} hears ${event}`, async () => (await person.events()).find((it) => it.name === event && matches(it.text)));
}

test("two people see and hear each other, in Chromium and in Firefox", async (t) => {
  const people = [await come(browsers[0], "pair", "chromium"), await come(browsers[1], "pair", "firefox")];
  const tracks = [];
  for (const person of people) tracks.push([await person.camera(true), await person.microphone(true)]);
  for (const [i, viewer] of people.entries()) {
    for (const sid of tracks[1 - i]) {
      const seen = await untilPlaying(viewer, sid);
      t.diagnostic(`${viewer.identity} has ${JSON.stringify(seen)}`);
      assert.ok(seen.kind === "audio" || seen.width > 0, "a picture has a size");
    }
    const [other] = await viewer.remotes();
    assert.equal(other.identity, people[1 - i].identity);
    assert.deepEqual(other.tracks.map((track) => track.source).sort(), ["camera", "microphone"]);
  }
  await people[0].leave();
  await untilHeard(people[1], "ParticipantDisconnected", ([who]) => who === people[0].sid);
  await people[1].leave();
  for (const person of people) await person.page.close();
  await until("an empty node", async () => !JSON.stringify(await node.sessions()).includes("pair"), 10);
});

for (const place of [0, 1]) {
  test(`mute, unpublish and publish again reach the other one from ${["Chromium", "Firefox"][place]}`, async () => {
    const room = `changes-${place}`;
    const [ann, bob] = [await come(browsers[place], room, "ann"), await come(browsers[0], room, "bob")];
    const camera = await ann.camera(true);
    await untilPlaying(bob, camera);
    await ann.camera(false);
    await untilHeard(bob, "TrackMuted");
    await ann.camera(true);
    await untilHeard(bob, "TrackUnmuted");
    await untilPlaying(bob, camera);

    await ann.unpublish("Camera");
    await untilHeard(bob, "TrackUnpublished");
    assert.deepEqual((await bob.remotes())[0].tracks, []);
    const again = await ann.camera(true);
    assert.notEqual(again, camera);
    await untilPlaying(bob, again);
    const microphone = await ann.microphone(true);
    await untilPlaying(bob, microphone);
    await Promise.all([ann.leave(), bob.leave()]);
    for (const person of [ann, bob]) await person.page.close();
  });
}

test("a client whose socket is cut comes back with the tracks that it had", async (t) => {
  const [ann, bob] = [await come(browsers[0], "cut", "ann"), await come(browsers[0], "cut", "bob")];
  const sent = await ann.camera(true);
  const back = await bob.microphone(true);
  const before = [await untilPlaying(bob, sent), await untilPlaying(ann, back)];
  for (const person of [bob, ann]) {
    await person.cutSocket();
    await untilHeard(person, "Reconnected");
  }
  const after = [await untilPlaying(bob, sent), await untilPlaying(ann, back)];
  assert.deepEqual(after.map((seen) => seen.mediaTrack), before.map((seen) => seen.mediaTrack), "the track objects are unchanged");
  t.diagnostic(`lost ${after.map((seen) => seen.lost)}, freezes ${after.map((seen) => seen.freezes)}`);
  for (const person of [ann, bob]) {
    const names = await person.names();
    assert.ok(!names.includes("TrackUnsubscribed") && !names.includes("ParticipantDisconnected"), names.join(" "));
    assert.equal((await person.remotes()).length, 1);
  }
  // What is published after a resume goes through, too.
  await untilPlaying(bob, await ann.microphone(true));
  await Promise.all([ann.leave(), bob.leave()]);
  for (const person of [ann, bob]) await person.page.close();
});

test("the same identity again takes the older one's place", async () => {
  const [old, bob] = [await come(browsers[0], "twice", "ann"), await come(browsers[0], "twice", "bob")];
  await untilPlaying(bob, await old.camera(true));
  const young = await come(browsers[0], "twice", "ann");
  const [reason] = (await untilHeard(old, "Disconnected")).text;
  assert.equal(reason, "2", "DUPLICATE_IDENTITY");
  const sid = await young.camera(true);
  await untilPlaying(bob, sid);
  const [ann, ...none] = await bob.remotes();
  assert.deepEqual([none, ann.sid, ann.tracks.map((track) => track.sid)], [[], young.sid, [sid]], "no ghost");
  await Promise.all([young.leave(), bob.leave()]);
  for (const person of [old, young, bob]) await person.page.close();
});

test("a client that is told to begin anew, or to leave, does so", async () => {
  const [ann, bob] = [await come(browsers[0], "told", "ann"), await come(browsers[0], "told", "bob")];
  await untilPlaying(bob, await ann.camera(true));
  await ann.simulate("leave-full-reconnect");
  await untilHeard(ann, "Reconnected");
  const [other] = await until("bob sees ann again", async () => {
    const remotes = await bob.remotes();
    return remotes.length === 1 && remotes[0].tracks.length === 1 && remotes;
  });
  assert.notEqual(other.sid, ann.sid);
  await untilPlaying(bob, other.tracks[0].sid);
  await ann.simulate("server-leave");
  await untilHeard(ann, "Disconnected");
  await untilHeard(bob, "ParticipantDisconnected", ([who]) => who === other.sid);
  await bob.leave();
  for (const person of [ann, bob]) await person.page.close();
});
