// Viewers that come first, and viewers whose publisher dies and comes back.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { launchChromium, launchFirefox, servePage } from "./browsers.js";
import { pause, until, untilPlaying, watchFor } from "./expect.js";
import { startNode } from "./node.js";

let node, site, chromium, firefox;

before(async () => {
  [node, site, chromium, firefox] = await Promise.all([startNode("continuity"), servePage(), launchChromium(), launchFirefox()]);
});

after(async () => {
  await Promise.allSettled([chromium?.close(), firefox?.close()]);
  site?.close();
  await node?.stop();
});

async function publishFrom(browser, room, codec) {
  const publisher = await browser.open(site.url);
  await publisher.publish({ url: `${node.http}/whip/${room}`, token: await node.token(room, "camera"), codec });
  return publisher;
}

test("a viewer that comes before the publisher plays when the publisher comes", async () => {
  const room = "early";
  const viewer = await chromium.open(site.url);
  await viewer.watch({ url: `${node.http}/whep/${room}`, token: await node.token(room, "eye", "--no-publish") });
  await until("a connected viewer", async () => (await viewer.stats()).state === "connected");
  await pause(1);
  assert.equal((await viewer.stats()).video.framesDecoded ?? 0, 0, "nobody publishes yet");
  const publisher = await publishFrom(chromium, room, "VP8");
  await untilPlaying(viewer);
  await publisher.stop();
  await viewer.stop();
});

test("viewers play on when the publisher is killed and starts again", async (t) => {
  const room = "phoenix";
  const first = await launchChromium();
  let publisher = await publishFrom(first, room, "VP8");
  const viewers = [];
  for (const browser of [chromium, firefox]) {
    const viewer = await browser.open(site.url);
    await viewer.watch({ url: `${node.http}/whep/${room}`, token: await node.token(room, `eye-${browser.name}`, "--no-publish") });
    await untilPlaying(viewer);
    viewers.push({ name: browser.name, viewer });
  }
  await first.kill();
  await pause(2);
  const frozen = await Promise.all(viewers.map(({ viewer }) => viewer.stats()));

  const second = await launchChromium();
  try {
    publisher = await publishFrom(second, room, "VP8");
    for (const [i, { name, viewer }] of viewers.entries()) {
      const before = frozen[i].video;
      await until(`${name} decodes the new publisher`, async () => (await viewer.stats()).video.framesDecoded > before.framesDecoded + 10);
      const seen = await watchFor(4, publisher, viewer);
      const lostAtRestart = seen.seen.video.packetsLost - before.packetsLost;
      t.diagnostic(`${name}: ${seen.decoded} of ${seen.encoded} frames after the restart, ${lostAtRestart} packets lost over it`);
      assert.ok(seen.decoded >= 0.8 * seen.encoded, `${name} decodes ${seen.decoded} of ${seen.encoded} frames`);
      assert.ok(seen.energy > 0, `${name} hears the new publisher`);
      // A jump in sequence numbers would count thousands as lost; what was in flight at the kill is a few.
      assert.ok(Math.abs(lostAtRestart) < 50, `${name} counts ${lostAtRestart} lost packets over the restart`);
      assert.equal(seen.seen.state, "connected");
    }
  } finally {
    await second.close();
  }
});
