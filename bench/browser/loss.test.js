// Behind a link that loses one packet in twenty a viewer sees nearly every frame, because the node sends packets again, and a
// publisher is seen in nearly every frame, because the node asks it to. Both by RTX: as a stream of its own, to the last packet.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { launchChromium, servePage } from "./browsers.js";
import { sumOf, until, untilPlaying, watchFor } from "./expect.js";
import { healPackets, losePackets, makeHost, removeHost } from "./netns.js";
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
  await losePackets(host, "towards", LOSS);
  const seen = await watchFor(12, publisher, viewer);
  await healPackets(host);
  const retransmitted = sumOf(await node.metrics(), RETRANSMITTED) - before;
  t.diagnostic(
    `clean ${clean.decoded}/${clean.encoded} frames; with ${LOSS * 100} % loss ${seen.decoded}/${seen.encoded} frames, ` +
      `${seen.nacks} NACKs, ${retransmitted} retransmissions, ${seen.lost} of ${seen.packets} packets never came`,
  );
  assert.ok(seen.nacks > 0, "the viewer asked for packets");
  assert.ok(retransmitted > 0, "the node sent packets again");
  const { rtxSsrc, retransmittedPacketsReceived } = seen.seen.video;
  t.diagnostic(`${retransmittedPacketsReceived} packets came by RTX, SSRC ${rtxSsrc}`);
  // They are lost like everything else: of 40, a quarter is missing once in a hundred thousand runs.
  assert.ok(rtxSsrc && retransmittedPacketsReceived > 0.75 * retransmitted, "retransmissions came by RTX");
  assert.ok(seen.decoded > 0.9 * seen.encoded, `${seen.decoded} of ${seen.encoded} frames were decoded`);
  // Chromium counts what came by RTX as lost. Each lost packet has two chances or more: a twentieth of a twentieth is left, and
  // what is on its way at the end.
  assert.ok(seen.lost - retransmittedPacketsReceived < 0.02 * seen.packets, `${seen.lost} of ${seen.packets} packets were lost`);
  await viewer.stop();
  await publisher.stop();
});

test("a publisher that loses 5 % is seen whole by its retransmissions", async (t) => {
  const room = "lossy-up";
  const publisher = await far.open(`${node.http}/demo`);
  // Its page has no secure origin, so it may use no camera.
  const token = await node.token(room, "camera");
  await publisher.publish({ url: `${node.http}/whip/${room}`, token, codec: "VP8", noise: true, bitrateMax: 800_000 });
  const viewer = await near.open(site.url);
  await viewer.watch({ url: `${node.http}/whep/${room}`, token: await node.token(room, "eye", "--no-publish") });
  await until("frames", async () => (await viewer.stats()).video.framesDecoded > 5);

  await losePackets(host, "from", LOSS);
  const seen = await watchFor(12, publisher, viewer);
  await healPackets(host);
  const { rtxSsrc, retransmittedPacketsSent, nackCount } = seen.sent.video;
  t.diagnostic(
    `${seen.decoded}/${seen.encoded} frames, ${nackCount} NACKs, ${retransmittedPacketsSent} packets sent again by SSRC ${rtxSsrc}, ` +
      `${seen.lost} of ${seen.packets} packets never came to the viewer`,
  );
  assert.ok(nackCount > 0, "the node asked for packets");
  assert.ok(rtxSsrc && retransmittedPacketsSent > 0, "the publisher sent packets again by RTX");
  assert.ok(seen.decoded > 0.9 * seen.encoded, `${seen.decoded} of ${seen.encoded} frames were decoded`);
  assert.ok(seen.lost < 0.02 * seen.packets, `${seen.lost} of ${seen.packets} packets stayed lost`);
});
