// What is agreed beyond the codec is used: header extensions, redundant audio, simulcast layers, and Firefox as a publisher.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { launchChromium, launchFirefox, servePage } from "./browsers.js";
import { pause, until, untilPlaying, watchFor } from "./expect.js";
import { startNode } from "./node.js";
import { rtpPackets } from "./pcap.js";

const MID = "urn:ietf:params:rtp-hdrext:sdes:mid";
const ABS_SEND_TIME = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time";
const TRANSPORT_CC = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01";
const AUDIO_LEVEL = "urn:ietf:params:rtp-hdrext:ssrc-audio-level";
let node, site, publishers, chromium, firefox;

before(async () => {
  [node, site, publishers, chromium, firefox] = await Promise.all([
    startNode("negotiation"),
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

async function publish(browser, room, options) {
  const publisher = await browser.open(site.url);
  await publisher.publish({ url: `${node.http}/whip/${room}`, token: await node.token(room, "camera"), ...options });
  return publisher;
}

async function watch(browser, room) {
  const viewer = await browser.open(site.url);
  await viewer.watch({ url: `${node.http}/whep/${room}`, token: await node.token(room, `eye-${browser.name}`, "--no-publish") });
  return viewer;
}

async function leave(...clients) {
  for (const client of clients) {
    assert.equal(await client.stop(), 200);
    await client.page.close();
  }
}

test("header extensions arrive under the viewer's ids with values of their own", async (t) => {
  const publisher = await publish(publishers, "extensions", { codec: "VP8" });
  const viewer = await watch(chromium, "extensions");
  await untilPlaying(viewer);
  await pause(2);
  const { audio, video } = await viewer.stats();
  const agreed = await viewer.extensions();
  const packets = (await rtpPackets(node.captures[0].file)).filter(({ sourcePort }) => node.mediaPorts.includes(sourcePort));
  const [sound, picture] = [audio.ssrc, video.ssrc].map((ssrc) => packets.filter((packet) => packet.ssrc === ssrc));
  assert.ok(sound.length > 50 && picture.length > 50, `${sound.length} and ${picture.length} packets`);
  const values = (list, kind, uri) => {
    const { id } = agreed.find((extension) => extension.kind === kind && extension.uri === uri);
    return list.map(({ extensions }) => extensions.get(id)).filter(Boolean);
  };

  for (const [list, kind] of [[sound, "audio"], [picture, "video"]]) {
    const { mid } = agreed.find((extension) => extension.kind === kind);
    const mids = values(list, kind, MID).map(String);
    assert.ok(mids.length > 0 && mids.every((value) => value === mid), `${kind}: ${mids.slice(0, 3)} is not ${mid}`);
    assert.equal(values(list, kind, ABS_SEND_TIME).length, list.length, `${kind}: each packet tells when it was sent`);
    assert.equal(values(list, kind, TRANSPORT_CC).length, list.length, `${kind}: each packet has its transport-wide number`);
  }
  const all = packets.filter(({ ssrc }) => [audio.ssrc, video.ssrc, video.rtxSsrc].includes(ssrc));
  const { id } = agreed.find((extension) => extension.uri === TRANSPORT_CC);
  const numbers = all.map(({ extensions }) => extensions.get(id)?.readUInt16BE()).filter((number) => number !== undefined);
  // On loopback a train of packets is captured as one, of which the first header alone is read.
  const steps = numbers.slice(1).map((number, i) => (number - numbers[i]) & 0xffff);
  assert.ok(steps.every((step) => step >= 1 && step <= 64), `sound and picture share one sequence: ${steps}`);
  const levels = values(sound, "audio", AUDIO_LEVEL).map(([level]) => level & 0x7f);
  assert.ok(levels.length > 0.9 * sound.length && new Set(levels).size > 1, "the loudness is the publisher's");
  t.diagnostic(`${sound.length} audio and ${picture.length} video packets; ${new Set(levels).size} loudness values`);
  await leave(viewer, publisher);
});

test("redundant audio passes to Chromium and is unwrapped for Firefox", async (t) => {
  const publisher = await publish(publishers, "red", { codec: "VP8", red: true });
  for (const browser of [chromium, firefox]) {
    const viewer = await watch(browser, "red");
    await untilPlaying(viewer);
    const seen = await watchFor(4, publisher, viewer);
    const packets = await rtpPackets(node.captures[0].file);
    // The browsers' statistics name the codec within.
    const names = ({ audio, payloads }) => {
      const types = new Set(packets.filter(({ ssrc }) => ssrc === audio.ssrc).map(({ payloadType }) => payloadType));
      return [...types].map((type) => payloads[type]);
    };
    const [sent, received] = [names(seen.sent), names(seen.seen)];
    t.diagnostic(`${browser.name}: leaves as ${sent}, arrives as ${received}; ${seen.samples} samples`);
    assert.deepEqual(sent, ["red"]);
    assert.deepEqual(received, browser.name === "Chromium" ? ["red"] : ["opus"]);
    assert.ok(seen.samples > 0.8 * 4 * 44_000, `${seen.samples} samples of sound`);
    assert.ok(seen.energy > 0, "the sound is not silence");
    await leave(viewer);
  }
  await leave(publisher);
});

for (const [browserName, codec] of [["Chromium", "VP8"], ["Chromium", "H264"], ["Firefox", "VP8"]]) {
  test(`three layers of ${codec} from ${browserName}: a viewer sees the top one`, async (t) => {
    const room = `layers-${browserName}-${codec}`;
    const browser = browserName === "Firefox" ? firefox : publishers;
    const publisher = await publish(browser, room, { codec, simulcast: true });
    const viewer = await watch(chromium, room);
    await untilPlaying(viewer);
    const top = async () => (await viewer.stats()).video.frameWidth === 1280;
    await until("the top layer's width", top, 30).catch(async (error) => {
      const [sent, seen] = [await publisher.stats(), await viewer.stats()];
      assert.fail(`${error.message}: sees ${seen.video.frameWidth}, estimate ${sent.estimate}, sent ${JSON.stringify(sent.layers)}`);
    });
    const seen = await watchFor(4, publisher, viewer);
    const { layers } = await publisher.stats();
    t.diagnostic(`${seen.seen.video.frameWidth}x${seen.seen.video.frameHeight}, ${seen.decoded} frames; sent ${JSON.stringify(layers)}`);
    assert.deepEqual(layers.map(({ rid }) => rid).sort(), ["f", "h", "q"], "all three were accepted");
    assert.ok(layers.every(({ packetsSent }) => packetsSent > 0), "all three are sent");
    assert.equal(seen.seen.video.frameHeight, 720);
    assert.ok(seen.decoded > 20, `${seen.decoded} frames were decoded`);
    const { sessions } = await node.sessions();
    const participant = sessions.find(({ id }) => id === room).participants.find(({ kind }) => kind === "publish");
    const shown = participant.tracks.find(({ kind }) => kind === "video").layers;
    assert.deepEqual(shown, [{ rid: "q", forwarded: false }, { rid: "h", forwarded: false }, { rid: "f", forwarded: true }]);
    await leave(viewer, publisher);
  });
}

test("Firefox publishes and Chromium decodes", async (t) => {
  for (const codec of ["VP8", "VP9"]) {
    const publisher = await publish(firefox, `firefox-${codec}`, { codec });
    const viewer = await watch(chromium, `firefox-${codec}`);
    await untilPlaying(viewer);
    const seen = await watchFor(4, publisher, viewer);
    t.diagnostic(`${codec}: ${seen.decoded} of ${seen.encoded} frames, ${seen.samples} samples`);
    assert.equal(seen.seen.video.codec, codec);
    assert.ok(seen.encoded > 10, "the publisher makes frames");
    assert.ok(seen.decoded >= 0.8 * seen.encoded, `${seen.decoded} of ${seen.encoded} frames were decoded`);
    assert.ok(seen.samples > 0.8 * 4 * 44_000, `${seen.samples} samples of sound`);
    assert.ok(seen.energy > 0, "the sound is not silence");
    await leave(viewer, publisher);
  }
});
