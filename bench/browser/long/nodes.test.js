// One room over the nodes of a PoP: whoever is at any node sees and hears everybody; nothing crosses a link that nobody wants; what
// happens to a node, or between two, is felt by its own people alone.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { launchChromium, launchFirefox, servePage } from "../browsers.js";
import { pause, sumOf, until, untilPlaying, watchFor } from "../expect.js";
import { openRoom, serveLiveKitPage } from "../livekit.js";
import { startPop } from "../nodes.js";

let pop, site, page, chromium, firefox;

before(async () => {
  [pop, site, page, chromium, firefox] = await Promise.all([
    startPop("nodes"),
    serveLiveKitPage(),
    servePage(),
    launchChromium(),
    launchFirefox(),
  ]);
});

after(async () => {
  await Promise.allSettled([chromium?.close(), firefox?.close()]);
  site?.close();
  page?.close();
  await pop?.stop();
});

/** Somebody in a room, at the node `name`. */
async function come(browser, name, room, identity, options = {}, connect = {}) {
  const node = pop.nodes[name];
  const person = await openRoom(browser, site);
  return Object.assign(person, await person.join(node.http.replace("http", "ws"), await node.token(room, identity), options, connect));
}

async function leave(...people) {
  await Promise.all(people.map((person) => person.leave()));
  for (const person of people) await person.page.close();
}

/** A camera and a microphone by WHIP at the node `name`. */
async function publish(name, room, identity, options = {}) {
  const node = pop.nodes[name];
  const publisher = await chromium.open(page.url);
  await publisher.publish({ url: `${node.http}/whip/${room}`, token: await node.token(room, identity), codec: "VP8", ...options });
  return publisher;
}

async function watch(name, room, identity, browser = chromium) {
  const node = pop.nodes[name];
  const viewer = await browser.open(page.url);
  await viewer.watch({ url: `${node.http}/whep/${room}`, token: await node.token(room, identity, "--no-publish") });
  return viewer;
}

/** `viewer` decodes a picture and hears a sound of each of `others`. */
async function untilPlayingAll(viewer, others) {
  let last;
  const playing = async () => {
    const [remotes, received] = [await viewer.remotes(), await viewer.received()];
    last = remotes.map(({ identity, tracks }) => ({ identity, tracks: tracks.map(({ sid, kind }) => ({ kind, ...received[sid] })) }));
    return others.every((identity) => {
      const tracks = last.find((person) => person.identity === identity)?.tracks ?? [];
      return tracks.some(({ frames }) => frames > 10) && tracks.some(({ energy, samples }) => energy > 0 && samples > 48_000);
    });
  };
  await until(`${viewer.identity} plays ${others}`, playing, 30).catch((error) => assert.fail(`${error.message}; last ${JSON.stringify(last)}`));
  return last;
}

test("Chromium on one node, Firefox on another and a WHIP camera on a third: everybody decodes everybody", async (t) => {
  const room = "everybody";
  const ann = await come(chromium, "a", room, "ann");
  const bob = await come(firefox, "b", room, "bob");
  const eve = await come(chromium, "c", room, "eve");
  const camera = await publish("c", room, "camera");
  for (const person of [ann, bob]) {
    await person.camera(true, { resolution: { width: 640, height: 360, frameRate: 15 } });
    await person.microphone(true);
  }
  for (const [viewer, others] of [[ann, ["bob", "camera"]], [bob, ["ann", "camera"]], [eve, ["ann", "bob", "camera"]]]) {
    t.diagnostic(`${viewer.identity}: ${JSON.stringify(await untilPlayingAll(viewer, others))}`);
  }
  // Each node tells the same: who is there, and at which node.
  const hosts = { ann: "a", bob: "b", eve: "c", camera: "c" };
  for (const name of pop.names) {
    const people = await pop.people(name, room);
    assert.deepEqual(Object.fromEntries(Object.entries(people).map(([identity, { node }]) => [identity, node])), hosts, `as ${name} sees it`);
    for (const [identity, { local }] of Object.entries(people)) assert.equal(local, hosts[identity] === name, `${identity} at ${name}`);
  }
  await camera.stop();
  await leave(ann, bob, eve);
  await until("empty nodes", async () => {
    const seen = await Promise.all(pop.names.map((name) => pop.people(name, room)));
    return seen.every((people) => Object.keys(people).length === 0);
  }, 10);
});

test("what is published by WHIP at one node is watched by WHEP at another, whole", async (t) => {
  const room = "broadcast";
  const publisher = await publish("a", room, "camera");
  const viewers = { chromium: await watch("b", room, "eye-b"), firefox: await watch("c", room, "eye-c", firefox) };
  for (const [name, viewer] of Object.entries(viewers)) {
    await untilPlaying(viewer);
    const seen = await watchFor(5, publisher, viewer);
    t.diagnostic(`${name}: ${seen.decoded} of ${seen.encoded} frames, ${seen.lost} packets lost, ${seen.samples} samples`);
    assert.ok(seen.encoded > 30 && seen.decoded >= 0.9 * seen.encoded, `${name} decoded ${seen.decoded} of ${seen.encoded} frames`);
    assert.ok(seen.samples > 0.9 * seen.seconds * 48_000 && seen.energy > 0, `${name} hears`);
    assert.equal(seen.lost, 0, `${name} lost packets`);
  }
  for (const viewer of Object.values(viewers)) assert.equal(await viewer.stop(), 200);
  assert.equal(await publisher.stop(), 200);
});

test("a small tile makes only its layer cross the link, two viewers make one copy, and nobody makes none", async (t) => {
  const room = "layers";
  const ann = await come(chromium, "a", room, "ann");
  const al = await come(chromium, "a", room, "al");
  const bob = await come(chromium, "b", room, "bob");
  const sid = await ann.camera(true, { resolution: { width: 960, height: 540, frameRate: 10 } }, { videoCodec: "vp8" });
  // How wide a layer is, her browser decides: one that has the camera open for somebody else gives this one the same picture.
  const rid = { 0: "q", 1: "h" };
  const untilLayer = async (viewer, layer) => {
    let widths;
    const isSeen = async () => {
      widths = [(await viewer.received())[sid]?.width, (await ann.sent())[rid[layer]]?.width];
      return widths[0] !== undefined && widths[0] === widths[1];
    };
    await until(`${viewer.identity} sees layer ${layer}`, isSeen, 30).catch((error) => assert.fail(`${error.message}; seen and sent: ${widths}`));
  };
  // Somebody at her own node takes the middle layer, so that both are sent to it.
  await al.quality(sid, 1);
  await untilLayer(al, 1);
  /** Bytes of RTP packets that have left for other nodes. */
  const media = async () => sumOf(await pop.nodes.a.metrics(), 'pop_relay_media_bytes_total{direction="out",worker="0"}');
  /** Over three seconds: bytes of RTP packets that crossed, and what `viewer` got. */
  const crossing = async (viewer) => {
    const before = (await viewer.received())[sid];
    const earlier = await media();
    await pause(3);
    const crossed = (await media()) - earlier;
    const after = (await viewer.received())[sid];
    // Of each packet the RTP header with its extensions.
    return { crossed, got: after.bytes - before.bytes + (after.packets - before.packets) * 36 };
  };
  const seen = {};
  for (const [layer, name] of [[1, "middle"], [0, "low"]]) {
    await bob.quality(sid, layer);
    await untilLayer(bob, layer);
    await pause(1);
    seen[name] = await crossing(bob);
  }
  const eve = await come(chromium, "b", room, "eve");
  await until("eve sees it", async () => (await eve.received())[sid]?.frames > 5);
  await eve.quality(sid, 0);
  await untilLayer(eve, 0);
  await pause(1);
  seen.two = await crossing(bob);
  const [track] = (await pop.people("a", room)).ann.tracks;
  assert.deepEqual(track.links, ["b"], "the looking glass tells which link it crosses");
  await Promise.all([bob.enable(sid, false), eve.enable(sid, false)]);
  await pause(1);
  const earlier = await media();
  await pause(3);
  const unwanted = (await media()) - earlier;
  t.diagnostic(`${JSON.stringify(seen)}, unwanted ${unwanted}`);
  for (const [what, { crossed, got }] of Object.entries(seen)) {
    assert.ok(crossed > 0 && crossed < 1.2 * got, `${what}: ${crossed} bytes crossed for ${got} that one viewer got`);
  }
  // An encoder that has just begun gives the middle one little more than twice the bytes.
  assert.ok(seen.low.crossed < 0.75 * seen.middle.crossed, "the small layer is less than the middle one");
  assert.equal(unwanted, 0, "bytes of media that nobody wants");
  await untilLayer(al, 1);
  await leave(ann, al, bob, eve);
});

/** How long it takes until `look` is true, in ms; it is asked all the time. */
async function timeUntil(what, look, limitMs) {
  const start = performance.now();
  while (!(await look())) {
    assert.ok(performance.now() - start < limitMs, `${what}: not within ${limitMs} ms`);
    await pause(0.01);
  }
  return Math.round(performance.now() - start);
}

test("a sound goes on over a link that loses 2 % and is 30 ms long", async (t) => {
  const room = "lossy";
  const [ann, bob] = [await come(chromium, "a", room, "ann"), await come(chromium, "b", room, "bob")];
  const sid = await ann.tone(0.5);
  await until("bob hears", async () => (await bob.received())[sid]?.energy > 0);
  // A client plays what comes late only when it waits for it.
  await bob.buffer(sid, 250);
  await pop.network.change("a-b loss 2% delay 30ms");
  await pause(3);
  const before = (await bob.received())[sid];
  await pause(15);
  const after = (await bob.received())[sid];
  const lostOnWire = (await pop.network.stats()).wires["a>b"]?.lost ?? 0;
  await pop.network.change("a-b clear");
  const grown = Object.fromEntries(["packets", "lost", "samples", "concealed"].map((key) => [key, after[key] - before[key]]));
  t.diagnostic(`${JSON.stringify(grown)}; the wire lost ${lostOnWire}`);
  assert.ok(lostOnWire > 0, "the wire loses");
  assert.ok(grown.packets > 600, "50 packets a second");
  assert.ok(grown.lost <= 0.001 * grown.packets + 1, `${grown.lost} of ${grown.packets} packets never came`);
  assert.ok(grown.concealed < 0.01 * grown.samples, `${grown.concealed} of ${grown.samples} samples were made up`);
  await leave(ann, bob);
});

test("who is at a node that dies is away at once, gone after the grace, and nobody else loses a packet", async (t) => {
  const room = "crash";
  const [ann, eve, bob] = [await come(chromium, "a", room, "ann"), await come(chromium, "b", room, "eve"), await come(chromium, "c", room, "bob")];
  const sound = await ann.tone(0.5);
  const picture = await ann.camera(true, { resolution: { width: 640, height: 360, frameRate: 15 } });
  const bobs = await bob.tone(0.3);
  for (const sid of [sound, picture, bobs]) await until("eve receives", async () => (await eve.received())[sid]?.packets > 50);
  const before = await eve.received();
  const { incarnation } = (await pop.nodes.a.status()).nodes.find(({ node }) => node === "c");

  await pop.nodes.c.kill();
  const survivors = ["a", "b"];
  const isAway = async () => (await Promise.all(survivors.map((name) => pop.people(name, room)))).every(({ bob: it }) => it?.state === "away");
  const awayMs = await timeUntil("bob is away", isAway, 500);
  await bob.page.close();
  await pause(3);
  assert.ok(await isAway(), "within the grace he is still there");
  for (const person of [ann, eve]) assert.ok(!(await person.names()).includes("ParticipantDisconnected"), "nobody is told yet");
  const isGone = async () => (await Promise.all(survivors.map((name) => pop.people(name, room)))).every(({ bob: it }) => !it);
  const goneMs = await timeUntil("bob is gone", isGone, 4_000);
  for (const person of [ann, eve]) await until("everybody is told", async () => (await person.names()).includes("ParticipantDisconnected"));
  const after = await eve.received();
  t.diagnostic(`away after ${awayMs} ms, gone ${3_000 + goneMs} ms later`);
  for (const sid of [sound, picture]) {
    assert.ok(after[sid].packets > before[sid].packets + 100, "it goes on");
    assert.equal(after[sid].lost - before[sid].lost, 0, "and loses nothing");
  }

  // The same node again is its next self at once.
  await pop.nodes.c.start();
  await pop.untilWhole();
  const now = (await pop.nodes.a.status()).nodes.find(({ node }) => node === "c").incarnation;
  assert.ok(now.start > incarnation.start, `${JSON.stringify(incarnation)}, then ${JSON.stringify(now)}`);
  const cat = await come(chromium, "c", room, "cat");
  await until("cat receives", async () => (await cat.received())[sound]?.packets > 50 && (await cat.received())[picture]?.frames > 5);

  // Killed and back within the grace: whom it had is gone, for its next self does not name them.
  await pop.nodes.c.kill();
  await cat.page.close();
  await pop.nodes.c.start();
  await pop.untilWhole();
  const isCatGone = async () => (await Promise.all(survivors.map((name) => pop.people(name, room)))).every(({ cat: it }) => !it);
  await until("cat is gone", isCatGone, 2);
  await leave(ann, eve);
});

for (const [what, cut, heal] of [
  ["both directions", ["a-c down", "b-c down"], ["a-c up", "b-c up"]],
  ["one direction", ["a>c down"], ["a>c up"]],
]) {
  test(`after a cut of ${what} all nodes know the same people`, async (t) => {
    const room = `cut-${cut.length}`;
    const [ann, bob, eve] = [await come(chromium, "a", room, "ann"), await come(chromium, "b", room, "bob"), await come(chromium, "c", room, "eve")];
    // A node where nobody is in the room knows nobody of it.
    const known = () => Promise.all(["a", "c"].map(async (name) => Object.entries(await pop.people(name, room))));
    const isEqual = async (...identities) => {
      const sets = (await known()).map((people) => people.filter(([, { state }]) => state !== "away").map(([identity]) => identity).sort().join());
      return sets.every((set) => set === identities.sort().join());
    };
    await until("all three", () => isEqual("ann", "bob", "eve"));
    for (const words of cut) await pop.network.change(words);
    // People come and go on both sides meanwhile; both sides go on by themselves.
    const cat = await come(chromium, "c", room, "cat");
    const dan = await come(chromium, "a", room, "dan");
    await leave(bob);
    await pause(8);
    for (const words of heal) await pop.network.change(words);
    const ms = await timeUntil("equal sets", () => isEqual("ann", "eve", "cat", "dan"), 2_000);
    t.diagnostic(`equal ${ms} ms after the cut has healed`);
    // Media, too: who came meanwhile is heard on the other side.
    const sid = await dan.tone(0.4);
    await until("cat hears dan", async () => (await cat.received())[sid]?.energy > 0);
    await leave(ann, eve, cat, dan);
  });
}
