// A viewer behind a link that loses one packet in twenty sees nearly every frame, because the node sends them again.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { launchChromium, servePage } from "./browsers.js";
import { sumOf, untilPlaying, watchFor } from "./expect.js";
import { loseTowards, makeHost, removeHost } from "./netns.js";
import { startNode } from "./node.js";

const LOSS = 0.05;
const RETRANSMITTED = "pop_retransmitted_packets_total";
let host, node, site, near, far;

before(async () => {
  host = await makeHost();
  [node, site, near, far] = await Promise.all([
    startNode("loss", { address: host.near, interfaces: [host.device] }),
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

test("a viewer that loses 5 % recovers by our retransmissions", async (t) => {
  const room = "lossy";
  const publisher = await near.open(site.url);
  await publisher.publish({ url: `${node.http}/whip/${room}`, token: await node.token(room, "camera"), codec: "VP8" });
  const viewer = await far.open(`${node.http}/demo`);
  await viewer.watch({ url: `${node.http}/whep/${room}`, token: await node.token(room, "eye", "--no-publish") });
  await untilPlaying(viewer);

  const clean = await watchFor(5, publisher, viewer);
  const before = sumOf(await node.metrics(), RETRANSMITTED);
  await loseTowards(host, LOSS);
  const seen = await watchFor(12, publisher, viewer);
  const retransmitted = sumOf(await node.metrics(), RETRANSMITTED) - before;
  t.diagnostic(
    `clean ${clean.decoded}/${clean.encoded} frames; with ${LOSS * 100} % loss ${seen.decoded}/${seen.encoded} frames, ` +
      `${seen.nacks} NACKs, ${retransmitted} retransmissions, ${seen.lost} of ${seen.packets} packets never came`,
  );
  assert.ok(seen.nacks > 0, "the viewer asked for packets");
  assert.ok(retransmitted > 0, "the node sent packets again");
  assert.ok(seen.decoded > 0.9 * seen.encoded, `${seen.decoded} of ${seen.encoded} frames were decoded`);
  // Each lost packet has two chances or more: a twentieth of a twentieth is left, and what is on its way at the end.
  assert.ok(seen.lost < 0.02 * seen.packets, `${seen.lost} of ${seen.packets} packets stayed lost`);
});
