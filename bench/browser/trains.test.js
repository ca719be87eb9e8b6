// A viewer far away gets whole trains, cut on their way as a network card cuts them: it opens every packet, and the publisher is told
// of the path as ever. Then the path loses, reorders and doubles packets, both ways.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { launchChromium } from "./browsers.js";
import { pause, sumOf, until, watchFor } from "./expect.js";
import { makeNetwork } from "./network.js";
import { startNode } from "./node.js";

const BITRATE_MAX = 1_500_000;
let network, node, chromium, publisher, viewer;

before(async () => {
  // Both clients are at the far end, so that each packet crosses the network twice, up and down.
  network = await makeNetwork({ trainsnear: "@.10.78.5.1/24", trainsfar: "10.78.5.2/24" }, ["trainsnear-trainsfar delay 10ms"]);
  const { address } = network.ends.trainsnear;
  [node, chromium] = await Promise.all([
    startNode("trains", { address, interfaces: ["trainsnear"] }),
    launchChromium({ netns: network.ends.trainsfar.netns }),
  ]);
  publisher = await chromium.open(`${node.http}/demo`);
  viewer = await chromium.open(`${node.http}/demo`);
  // The page has no secure origin, so it may use no camera.
  const options = { codec: "VP8", noise: true, width: 640, height: 480, bitrateMax: BITRATE_MAX };
  await publisher.publish({ url: `${node.http}/whip/trains`, token: await node.token("trains", "camera"), ...options });
  await viewer.watch({ url: `${node.http}/whep/trains`, token: await node.token("trains", "eye", "--no-publish") });
  await until("frames", async () => (await viewer.stats()).video.framesDecoded > 5);
});

after(async () => {
  await chromium?.close();
  await node?.stop();
  await network?.stop();
});

/** What left since `before`: datagrams, sends that carried them, and bytes of media and of padding. */
async function sends(before = { datagrams: 0, trains: 0, bytes: 0, padding: 0 }) {
  const metrics = await node.metrics();
  const count = (name, scope = "") =>
    ["0", "1"].reduce((sum, worker) => sum + sumOf(metrics, `pop_${name}_total{direction="out",${scope}worker="${worker}"}`), 0);
  return {
    datagrams: count("datagrams") - before.datagrams,
    trains: count("trains") - before.trains,
    bytes: count("rtp_bytes", 'scope="local",') - before.bytes,
    padding: count("rtp_padding_bytes") - before.padding,
  };
}

test("a train that is cut on the wire is opened whole, and the publisher's estimate grows", async (t) => {
  const early = await publisher.stats();
  // The estimate climbs for a while; what counts is the path's last seconds.
  let best = 0;
  for (let second = 0; second < 16 && best < 0.8 * BITRATE_MAX; second += 2) {
    await pause(2);
    best = Math.max(best, (await publisher.stats()).estimate ?? 0);
  }
  const before = await sends();
  const seen = await watchFor(5, publisher, viewer);
  const { datagrams, trains, bytes, padding } = await sends(before);
  t.diagnostic(
    `${datagrams} datagrams in ${trains} sends (${(trains / seen.encoded).toFixed(2)} a frame), ${padding} of ${bytes} bytes are padding; ` +
      `${seen.lost} of ${seen.packets} packets lost, ${seen.nacks} NACKs; ` +
      `${seen.decoded}/${seen.encoded} frames; estimate ${early.estimate} to ${best}`,
  );
  // How many turns a frame comes in is the sender's pacer's affair and the machine's, so no more than this holds every time.
  assert.ok(datagrams >= 1.2 * trains, `media left in trains: ${datagrams} datagrams in ${trains} sends`);
  assert.ok(padding > 0 && padding <= 0.03 * bytes, `${padding} bytes of padding to ${bytes} of media`);
  assert.equal(seen.lost, 0, "packets that did not come or could not be opened");
  assert.equal(seen.nacks, 0);
  assert.ok(seen.decoded >= 0.9 * seen.encoded, `${seen.decoded} of ${seen.encoded} frames were decoded`);
  assert.ok(best >= 0.8 * BITRATE_MAX, `the publisher's estimate stays at ${best}`);
});

test("a path that loses, reorders and doubles packets is played over", async (t) => {
  await network.change("trainsnear-trainsfar loss 2% reorder 2% 15ms duplicate 2%");
  const before = await node.metrics();
  const seen = await watchFor(8, publisher, viewer);
  await network.change("trainsnear-trainsfar clear");
  const after = await node.metrics();
  const grown = (name) => sumOf(after, name) - sumOf(before, name);
  const dropped = (reason) =>
    ["0", "1"].reduce((sum, worker) => sum + grown(`pop_rtp_dropped_packets_total{reason="${reason}",worker="${worker}"}`), 0);
  const wires = (await network.stats()).wires;
  t.diagnostic(
    `${seen.decoded}/${seen.encoded} frames, ${seen.nacks} NACKs, ${grown("pop_retransmitted_packets_total")} sent again; ` +
      `replays refused ${dropped("srtp_replay")}; ${JSON.stringify(wires)}`,
  );
  assert.ok(seen.decoded > 0.85 * seen.encoded, `${seen.decoded} of ${seen.encoded} frames were decoded`);
  assert.ok(grown("pop_retransmitted_packets_total") > 0, "the node sent packets again");
  assert.ok(dropped("srtp_replay") > 0, "what came twice was refused once");
  assert.equal(dropped("srtp_auth"), 0, "nothing that came late or twice was taken for a forgery");
  // Healed, the picture comes again.
  const healed = await watchFor(3, publisher, viewer);
  assert.ok(healed.decoded >= 0.8 * healed.encoded, `${healed.decoded} of ${healed.encoded} frames after it`);
});
