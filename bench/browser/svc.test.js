// Layers inside one stream, VP9 and AV1, from a WHIP publisher to LiveKit's own client, both in Chromium: a subscriber that wants fewer
// frames gets the lower temporal layers of the same stream, and all again.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { launchChromium, servePage } from "./browsers.js";
import { pause, until } from "./expect.js";
import { openRoom, serveLiveKitPage } from "./livekit.js";
import { startNode } from "./node.js";

let node, site, plain, chromium;

before(async () => {
  [node, site, plain, chromium] = await Promise.all([startNode("svc"), serveLiveKitPage(), servePage(), launchChromium()]);
});

after(async () => {
  await chromium?.close();
  site?.close();
  plain?.close();
  await node?.stop();
});

for (const [codec, mode] of [["vp9", "L3T3_KEY"], ["av1", "L3T3"]]) {
  test(`${codec} ${mode}: a subscriber chooses among the layers of one stream`, async (t) => {
    const room = `svc-${codec}-${mode.toLowerCase().replace("_", "-")}`;
    const url = node.http.replace("http", "ws");
    const [camera, viewer] = [await chromium.open(plain.url), await openRoom(chromium, site)];
    const publish = { codec, scalabilityMode: mode, width: 1280, height: 720, bitrateMax: 2_500_000 };
    await camera.publish({ url: `${node.http}/whip/${room}`, token: await node.token(room, "camera"), ...publish });
    await viewer.join(url, await node.token(room, "viewer"));
    const video = () => viewer.remotes().then((people) => people[0]?.tracks.find((track) => track.kind === "video")?.sid);
    const sid = await until("the camera's track", video);
    const seen = async () => (await viewer.received())[sid] ?? {};
    const width = (wanted) => until(`a picture of ${wanted}`, async () => (await seen()).width === wanted, 25);
    const want = (fps) =>
      viewer.page.evaluate(
        ([sid, fps]) => {
          const people = [...globalThis.popRoom.room().remoteParticipants.values()];
          people.flatMap((person) => [...person.trackPublications.values()]).find((p) => p.trackSid === sid).setVideoFPS(fps);
        },
        [sid, fps],
      );
    await width(1280);
    const rates = {};
    for (const fps of [30, 8, 29]) {
      await want(fps);
      await pause(1.5);
      const before = await seen();
      await pause(4);
      const now = await seen();
      rates[fps] = (now.frames - before.frames) / 4;
      t.diagnostic(`${fps} wanted: ${rates[fps]} frames a second, ${now.width} wide, ${now.freezes - before.freezes} freezes`);
      assert.equal(now.lost, 0, "nothing is missing where frames are left out");
      assert.equal(now.width, 1280);
    }
    assert.ok(rates[8] > 2 && rates[8] < rates[30] / 2, "the lowest temporal layer alone");
    assert.ok(rates[29] > 1.5 * rates[8], "and all of them again");
    await Promise.all([camera.stop(), viewer.leave()]);
    await Promise.all([camera.page.close(), viewer.page.close()]);
  });
}
