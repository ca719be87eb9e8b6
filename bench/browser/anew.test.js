// WHIP and WHEP know no resume at another server: a node dies, and its plain clients are told 404, post anew at another, and are back.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { serveAddress } from "./address.js";
import { launchChromium, servePage } from "./browsers.js";
import { until } from "./expect.js";
import { longestGap } from "./kill.js";
import { startPop } from "./nodes.js";

let pop, site, chromium, service;

before(async () => {
  [pop, site, chromium] = await Promise.all([startPop("anew", ["a", "b", "c"], { second: 77 }), servePage(), launchChromium()]);
  service = await serveAddress(pop, "a");
});

after(async () => {
  await chromium?.close();
  service?.close();
  site?.close();
  if (pop?.nodes.a.hasEnded) await pop.nodes.a.start();
  await pop?.stop();
});

async function publish(http, room) {
  const publisher = await chromium.open(site.url);
  await publisher.publish({ url: `${http}/whip/${room}`, token: await pop.nodes.b.token(room, "camera"), codec: "VP8", width: 320, height: 240 });
  return publisher;
}

async function watch(http, room) {
  const viewer = await chromium.open(site.url);
  await viewer.watch({ url: `${http}/whep/${room}`, token: await pop.nodes.b.token(room, "eye", "--no-publish") });
  await viewer.follow();
  return viewer;
}

test("a camera and a viewer whose node was killed post anew at another, and its pictures are decoded again", async (t) => {
  const { http } = pop.nodes.b;
  const [camera, far] = [await publish(service.http, "up"), await watch(http, "up")];
  const [still, eye] = [await publish(http, "down"), await watch(service.http, "down")];
  const decoded = async (viewer) => (await viewer.decoded()).length;
  for (const viewer of [far, eye]) await until("pictures", async () => (await decoded(viewer)) > 30, 30);

  service.to = "c";
  const killed = Date.now();
  await pop.nodes.a.kill();
  service.cut();
  const back = await Promise.all([camera.anew(), eye.anew()]);
  const after = (frames) => frames.filter(({ at }) => at > killed + 1_000);
  for (const [what, client, viewer] of [["WHIP", back[0], far], ["WHEP", back[1], eye]]) {
    await until(`${what}: pictures again`, async () => after(await viewer.decoded()).length > 30, 20);
    const { gap, end } = longestGap(await viewer.decoded(), killed - 100);
    const since = (at) => Math.round(at - killed);
    t.diagnostic(`${what}: no picture for ${Math.round(gap)} ms; after the kill the browser noticed after ${since(client.goneAt)} ms, the answer was there after ${since(client.answeredAt)} ms, a picture after ${since(end)} ms`);
    assert.ok(end > client.goneAt, "that it came back is what the new connection did");
  }
  for (const person of [camera, far, still, eye]) assert.ok([200, 204].includes(await person.stop()));
});
