// ICE restarts by PATCH in the middle of a call, from the publisher and from the viewer: frames go on, and a browser that has given
// its old credentials away is still the same client.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { launchChromium, launchFirefox, servePage } from "./browsers.js";
import { until, untilPlaying, watchFor } from "./expect.js";
import { startNode } from "./node.js";

const WINDOW_S = 3;
let node, site, chromium, firefox;

before(async () => {
  [node, site, chromium, firefox] = await Promise.all([startNode("restart"), servePage(), launchChromium(), launchFirefox()]);
});

after(async () => {
  await Promise.allSettled([chromium?.close(), firefox?.close()]);
  site?.close();
  await node?.stop();
});

for (const name of ["Chromium", "Firefox"]) {
  test(`${name} restarts ICE by PATCH and its frames go on`, async (t) => {
    const browser = name === "Firefox" ? firefox : chromium;
    const room = `restart-${name}`;
    const publisher = await chromium.open(site.url);
    await publisher.publish({ url: `${node.http}/${room}/whip`, token: await node.token(room, "camera") });
    const viewer = await browser.open(site.url);
    await viewer.watch({ url: `${node.http}/${room}/whep`, token: await node.token(room, "eye", "--no-publish") });
    await untilPlaying(viewer);
    assert.equal(await publisher.trickle(), 204, "candidates are taken");
    assert.equal(await viewer.trickle(), 204);

    for (const client of [publisher, viewer]) {
      const restarted = await client.restart();
      assert.notEqual(restarted.etag, restarted.before.etag);
      assert.notEqual(restarted.node, restarted.before.local, "the node has new credentials, too");
      if (name === "Chromium" || client === publisher) {
        const settled = async () => {
          const { ice } = await client.stats();
          return ice.ufrag === restarted.client && ["connected", "completed"].includes(ice.state) && ice.dtls === "connected";
        };
        await until("the new ICE session is connected", settled);
      }
      assert.equal(await client.trickle(), 204, "the new ETag is the current one");
      const seen = await watchFor(WINDOW_S, publisher, viewer);
      t.diagnostic(`${client === publisher ? "publisher" : "viewer"}: ${seen.decoded} of ${seen.encoded} frames, lost ${seen.lost}`);
      assert.ok(seen.encoded > 10 && seen.decoded >= 0.8 * seen.encoded, `${seen.decoded} of ${seen.encoded} frames were decoded`);
      assert.ok(seen.samples > 0.8 * WINDOW_S * 44_000 && seen.energy > 0, "the sound goes on");
    }
    assert.equal(await viewer.stop(), 200);
    assert.equal(await publisher.stop(), 200);
  });
}
