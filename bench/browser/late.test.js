// Viewers that come late, into a group of pictures that the node keeps: they see a picture at once, and the publisher hears nothing.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { launchChromium, servePage } from "./browsers.js";
import { pause, until } from "./expect.js";
import { startNode } from "./node.js";

let node, site, chromium;

before(async () => {
  [node, site, chromium] = await Promise.all([startNode("late"), servePage(), launchChromium()]);
});

after(async () => {
  await chromium?.close();
  site?.close();
  await node?.stop();
});

/** Mean time that a frame waits in the jitter buffer between two looks, in ms. */
function bufferMs(from, to) {
  const emitted = to.jitterBufferEmittedCount - from.jitterBufferEmittedCount;
  return (1000 * (to.jitterBufferDelay - from.jitterBufferDelay)) / Math.max(emitted, 1);
}

/** Joins pages to the room, one after the other, until one of them began with what is kept: the keyframe that the first asks for, or
 * one that came while the machine was busy, begins a group that the next one is in time for. */
async function joinInTime(room, publisher, tries) {
  const pages = await Promise.all(Array.from({ length: tries }, () => chromium.open(site.url)));
  const tokens = await Promise.all(pages.map((_, i) => node.token(room, `eye-${i}`, "--no-publish")));
  for (const [i, viewer] of pages.entries()) {
    const { pliCount: asked, keyFramesEncoded: keyframes } = (await publisher.stats()).video;
    const began = Date.now();
    await viewer.watch({ url: `${node.http}/whep/${room}`, token: tokens[i] });
    const decodes = async () => (await globalThis.popClient.stats()).video.framesDecoded > 0;
    await viewer.page.waitForFunction(decodes, null, { polling: 20, timeout: 15_000 });
    const firstFrameMs = Date.now() - began;
    const { pliCount, keyFramesEncoded } = (await publisher.stats()).video;
    if (i > 0 && pliCount === asked && keyFramesEncoded === keyframes) return { viewer, firstFrameMs, asked, joined: i + 1 };
  }
  assert.fail(`none of ${tries} viewers began with what is kept`);
}

for (const codec of ["VP8", "H264"]) {
  test(`a late viewer of ${codec} decodes without a keyframe request, and does not stay behind`, async (t) => {
    const room = `late-${codec}`;
    const publisher = await chromium.open(site.url);
    await publisher.publish({ url: `${node.http}/whip/${room}`, token: await node.token(room, "camera"), codec, bitrateMax: 800_000 });
    await until("a stream", async () => (await publisher.stats()).video.framesEncoded > 30);
    const { viewer, firstFrameMs, asked, joined } = await joinInTime(room, publisher, 4);
    await pause(1);
    const early = (await viewer.stats()).video;
    assert.equal((await publisher.stats()).video.pliCount, asked, "nor a second later");
    await pause(4);
    const later = (await viewer.stats()).video;
    const [atFirst, steady] = [bufferMs({ jitterBufferEmittedCount: 0, jitterBufferDelay: 0 }, early), bufferMs(early, later)];
    const frames = `${later.framesDecoded} frames decoded, ${later.framesDropped} not shown, ${later.freezeCount} freezes`;
    t.diagnostic(
      `viewer ${joined}: a picture after ${firstFrameMs} ms; in the jitter buffer ${atFirst.toFixed(0)} ms at first, ${steady.toFixed(0)} ms later; ${frames}`,
    );
    assert.ok(later.framesDecoded - early.framesDecoded > 60, `it plays on: ${frames}`);
    assert.ok(steady < 300, `${steady} ms in the jitter buffer: it has stayed behind`);
    assert.ok(later.totalFreezesDuration < 1, frames);
  });
}
