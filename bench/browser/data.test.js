// Data between LiveKit's own clients, unmodified: everything reliable once and in order, lossy as it comes, to whom it is meant for.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { launchChromium, launchFirefox } from "./browsers.js";
import { until } from "./expect.js";
import { openRoom, serveLiveKitPage } from "./livekit.js";
import { addMailbox } from "./mailbox.js";
import { startNode } from "./node.js";

let node, site, browsers, url;

before(async () => {
  [node, site, ...browsers] = await Promise.all([
    startNode("data", { interfaces: [] }),
    serveLiveKitPage(),
    launchChromium(),
    launchFirefox(),
  ]);
  url = node.http.replace("http", "ws");
});

after(async () => {
  await Promise.allSettled((browsers ?? []).map((browser) => browser.close()));
  site?.close();
  await node?.stop();
});

async function come(browser, room, identity, ...token) {
  const person = await openRoom(browser, site);
  await person.join(url, await node.token(room, identity, ...token));
  return Object.assign(await addMailbox(person), { identity });
}

async function leave(...people) {
  for (const person of people) {
    await person.leave();
    await person.page.close();
  }
}

const RELIABLE = 0;
const LOSSY = 1;

for (const [from, to] of [[0, 0], [0, 1], [1, 0]]) {
  const names = ["Chromium", "Firefox"];
  test(`5,000 reliable messages from ${names[from]} arrive at ${names[to]} once and in order, and lossy ones arrive`, async (t) => {
    const room = `five-${from}${to}`;
    const [ann, bob] = [await come(browsers[from], room, "ann"), await come(browsers[to], room, "bob")];
    await until("they see each other", async () => (await ann.remotes()).length === 1 && (await bob.remotes()).length === 1);
    const begin = Date.now();
    const sent = await ann.send(5_000, 300, { reliable: true, topic: "all" });
    await until("bob has all", async () => (await bob.count("all")) >= 5_000, 60);
    const elapsed = Date.now() - begin;
    const got = await bob.report("all");
    t.diagnostic(`5,000 messages in ${elapsed} ms`);
    assert.deepEqual(got, { count: 5_000, ordered: true, from: ["ann"], kinds: [RELIABLE], hash: sent });

    // The client drops some itself when its buffer is not empty, and SCTP sends each once, so some may be missing.
    await ann.send(200, 500, { reliable: false, topic: "lossy", pauseMs: 5 });
    await until("lossy ones arrive", async () => (await bob.count("lossy")) >= 50, 10);
    const lossy = await bob.report("lossy");
    t.diagnostic(`${lossy.count} of 200 lossy messages`);
    assert.ok(lossy.count >= 50, `${lossy.count} lossy messages`);
    assert.deepEqual([lossy.from, lossy.kinds], [["ann"], [LOSSY]]);

    const back = await bob.send(300, 15_000, { reliable: true, topic: "back" });
    await until("ann has all", async () => (await ann.count("back")) >= 300, 60);
    assert.equal((await ann.report("back")).hash, back);
    await leave(ann, bob);
  });
}

test("a message goes to whom it is meant for", async () => {
  const people = await Promise.all(["ann", "bob", "cleo"].map((name) => come(browsers[0], "meant", name)));
  const [ann, bob, cleo] = people;
  await until("they see each other", async () => (await ann.remotes()).length === 2);
  await ann.send(20, 10, { reliable: true, topic: "secret", destinationIdentities: ["bob"] });
  await ann.send(1, 10, { reliable: true, topic: "public" });
  await until("the public one is there", async () => (await cleo.count("public")) === 1 && (await bob.count("public")) === 1);
  assert.equal(await bob.count("secret"), 20);
  assert.equal(await cleo.count("secret"), 0);
  assert.equal(await ann.count("public"), 0, "nobody hears himself");
  await leave(...people);
});

test("a socket that is cut while messages flow costs none of them", async (t) => {
  const [ann, bob] = [await come(browsers[0], "cut", "ann"), await come(browsers[0], "cut", "bob")];
  await until("they see each other", async () => (await ann.remotes()).length === 1);
  const sending = ann.send(2_000, 400, { reliable: true, topic: "all", pauseMs: 2 });
  await until("it flows", async () => (await bob.count("all")) > 100);
  await bob.cutSocket();
  await until("bob is back", async () => (await bob.names()).includes("Reconnected"), 20);
  await ann.cutSocket();
  await until("ann is back", async () => (await ann.names()).includes("Reconnected"), 20);
  const sent = await sending;
  await until("bob has all", async () => (await bob.count("all")) >= 2_000, 30);
  const got = await bob.report("all");
  assert.deepEqual(got, { count: 2_000, ordered: true, from: ["ann"], kinds: [RELIABLE], hash: sent });
  await leave(ann, bob);
});

test("text streams and calls of procedures work", async () => {
  const [ann, bob] = [await come(browsers[0], "calls", "ann"), await come(browsers[1], "calls", "bob")];
  await until("they see each other", async () => (await ann.remotes()).length === 1);
  await bob.page.evaluate(() => {
    const room = globalThis.popRoom.room();
    room.registerRpcMethod("greet", async ({ callerIdentity, payload }) => `${payload}, ${callerIdentity}`);
    room.registerTextStreamHandler("story", async (reader, { identity }) => {
      globalThis.story = `${identity}: ${await reader.readAll()}`;
    });
  });
  const answer = await ann.page.evaluate(() =>
    globalThis.popRoom.room().localParticipant.performRpc({ destinationIdentity: "bob", method: "greet", payload: "hello" }),
  );
  assert.equal(answer, "hello, ann");
  await ann.page.evaluate(() => globalThis.popRoom.room().localParticipant.sendText("once ".repeat(20_000), { topic: "story" }));
  const story = await until("the story is told", () => bob.page.evaluate(() => globalThis.story), 20);
  assert.equal(story, `ann: ${"once ".repeat(20_000)}`);
  await leave(ann, bob);
});

test("nothing was dropped that should not be", async () => {
  const metrics = await node.metrics();
  for (const reason of ["lossy_rate", "lossy_queue_full", "sctp_malformed", "channel_refused", "malformed", "kind", "reliable_overflow", "protocol", "sctp_flood"]) {
    assert.equal(metrics.get(`pop_data_dropped_total{reason="${reason}"}`), 0, reason);
  }
  assert.equal(metrics.get("pop_sctp_panics_total"), 0);
  assert.ok(metrics.get('pop_data_messages_total{direction="sent",kind="reliable"}') > 15_000);
});
