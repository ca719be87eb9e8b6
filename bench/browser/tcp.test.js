// A browser whose network passes no UDP publishes and watches over TCP, and nobody else notices.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { launchChromium, servePage } from "./browsers.js";
import { until, untilPlaying, watchFor } from "./expect.js";
import { blockUdp, makeHost, removeHost } from "./netns.js";
import { startNode } from "./node.js";

let host, node, site, near, far;

before(async () => {
  host = await makeHost();
  await blockUdp(host);
  [node, site, near, far] = await Promise.all([
    startNode("tcp", { address: host.near }),
    servePage(),
    launchChromium(),
    launchChromium({ netns: host.netns }),
  ]);
});

after(async () => {
  await Promise.allSettled([near?.close(), far?.close()]);
  site?.close();
  await node?.stop();
  if (host) await removeHost(host);
});

const connections = async () => {
  let sum = 0;
  for (const [key, value] of await node.metrics()) if (key.startsWith("pop_worker_tcp_connections{")) sum += value;
  return sum;
};

/** Nearly every frame is decoded, and by the protocols that were meant. */
async function expectFrames(t, publisher, viewer, protocols) {
  const seen = await watchFor(8, publisher, viewer);
  t.diagnostic(`${seen.decoded}/${seen.encoded} frames from ${seen.sent.protocol} to ${seen.seen.protocol}, ${seen.lost} packets lost`);
  assert.deepEqual([seen.sent.protocol, seen.seen.protocol], protocols);
  assert.ok(seen.encoded > 80, `${seen.encoded} frames were encoded`);
  assert.ok(seen.decoded > 0.9 * seen.encoded, `${seen.decoded} of ${seen.encoded} frames were decoded`);
}

test("a viewer behind a UDP block watches over TCP, its neighbour over UDP", async (t) => {
  const room = "down";
  const publisher = await near.open(site.url);
  await publisher.publish({ url: `${node.http}/whip/${room}`, token: await node.token(room, "camera"), codec: "VP8" });
  const [blocked, free] = [await far.open(`${node.http}/demo`), await near.open(site.url)];
  await blocked.watch({ url: `${node.http}/whep/${room}`, token: await node.token(room, "blocked", "--no-publish") });
  await free.watch({ url: `${node.http}/whep/${room}`, token: await node.token(room, "free", "--no-publish") });
  await Promise.all([untilPlaying(blocked, 40), untilPlaying(free)]);
  await expectFrames(t, publisher, free, ["udp", "udp"]);
  await expectFrames(t, publisher, blocked, ["udp", "tcp"]);
  assert.ok((await connections()) > 0);
  await Promise.all([publisher.stop(), blocked.stop(), free.stop()]);
  await until("the connection ends with its transport", async () => (await connections()) === 0);
});

test("a publisher behind a UDP block is seen over TCP and over UDP", async (t) => {
  const room = "up";
  const publisher = await far.open(`${node.http}/demo`);
  const options = { noise: true, codec: "VP8", bitrateMax: 1_500_000 };
  await publisher.publish({ url: `${node.http}/whip/${room}`, token: await node.token(room, "camera"), ...options });
  const [blocked, free] = [await far.open(`${node.http}/demo`), await near.open(site.url)];
  await blocked.watch({ url: `${node.http}/whep/${room}`, token: await node.token(room, "blocked", "--no-publish") });
  await free.watch({ url: `${node.http}/whep/${room}`, token: await node.token(room, "free", "--no-publish") });
  for (const viewer of [blocked, free]) await until("frames", async () => (await viewer.stats()).video.framesDecoded > 5, 40);
  await expectFrames(t, publisher, free, ["tcp", "udp"]);
  await expectFrames(t, publisher, blocked, ["tcp", "tcp"]);
});
