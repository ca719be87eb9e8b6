// Every codec from Chromium to Chromium and to Firefox: pictures decoded and sound heard, by the browsers' own account.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { launchChromium, launchFirefox, servePage } from "./browsers.js";
import { until, untilPlaying, watchFor } from "./expect.js";
import { startNode } from "./node.js";

const WINDOW_S = 4;
let node, site, publishers, chromium, firefox;

before(async () => {
  [node, site, publishers, chromium, firefox] = await Promise.all([
    startNode("calls"),
    servePage(),
    launchChromium(),
    launchChromium(),
    launchFirefox(),
  ]);
});

after(async () => {
  await Promise.allSettled([publishers?.close(), chromium?.close(), firefox?.close()]);
  site?.close();
  await node?.stop();
});

for (const codec of ["VP8", "H264", "AV1", "VP9"]) {
  test(`${codec} plays in Chromium and in Firefox`, async (t) => {
    const room = `call-${codec.toLowerCase()}`;
    const publisher = await publishers.open(site.url);
    await publisher.publish({ url: `${node.http}/whip/${room}`, token: await node.token(room, "camera"), codec });
    for (const browser of [chromium, firefox]) {
      const viewer = await browser.open(site.url);
      await until(`${browser.name} offers ${codec}`, () => viewer.decodes(codec));
      const token = await node.token(room, `eye-${browser.name}`, "--no-publish");
      await viewer.watch({ url: `${node.http}/whep/${room}`, token });
      await untilPlaying(viewer);
      const seen = await watchFor(WINDOW_S, publisher, viewer);
      t.diagnostic(
        `${browser.name}: ${seen.decoded} of ${seen.encoded} frames in ${seen.seconds.toFixed(1)} s, ` +
          `${seen.seen.video.frameWidth}x${seen.seen.video.frameHeight}, lost ${seen.lost}, ${seen.seen.srtp ?? "cipher not told"}`,
      );
      assert.equal(seen.seen.video.codec, codec);
      assert.equal(seen.seen.video.frameWidth > 0, true, "a picture has a size");
      assert.ok(seen.encoded > 10, "the publisher makes frames");
      assert.ok(seen.decoded >= 0.8 * seen.encoded, `${seen.decoded} of ${seen.encoded} frames were decoded`);
      assert.ok(seen.samples > 0.8 * WINDOW_S * 44_000, `${seen.samples} samples of sound in ${WINDOW_S} s`);
      assert.ok(seen.energy > 0, "the sound is not silence");
      if (browser.name === "Chromium") assert.match(seen.seen.srtp, /GCM/, "the node chose GCM");
      assert.equal(await viewer.stop(), 200, "DELETE ends the viewer");
      await viewer.page.close();
    }
    assert.equal(await publisher.stop(), 200, "DELETE ends the publisher");
    await publisher.page.close();
    await until("an empty node", async () => !JSON.stringify(await node.sessions()).includes(room), 10);
  });
}
