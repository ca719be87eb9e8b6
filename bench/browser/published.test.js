// Clients that others have published, as they come from npm: Eyevinn's WHIP client publishes, their WebRTC player watches.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

import { launchChromium, servePage } from "./browsers.js";
import { pause, until } from "./expect.js";
import { startNode } from "./node.js";

const WINDOW_S = 4;
const ENTRY = `
  import { WHIPClient } from "@eyevinn/whip-web-client";
  import { WebRTCPlayer } from "@eyevinn/webrtc-player";
  // Their statistics are the browser's: every PeerConnection that they make is kept.
  globalThis.peers = [];
  globalThis.RTCPeerConnection = class extends RTCPeerConnection {
    constructor(...options) {
      super(...options);
      globalThis.peers.push(this);
    }
  };
  globalThis.published = { WHIPClient, WebRTCPlayer };
`;

let node, site, browser, bundle;

before(async () => {
  const resolveDir = fileURLToPath(new URL(".", import.meta.url));
  const built = build({ stdin: { contents: ENTRY, resolveDir }, bundle: true, write: false, format: "iife", platform: "browser" });
  [node, site, browser, bundle] = await Promise.all([
    startNode("published"),
    servePage(),
    launchChromium(),
    built.then((result) => result.outputFiles[0].text),
  ]);
});

after(async () => {
  await browser?.close();
  site?.close();
  await node?.stop();
});

async function openPage() {
  const { page } = await browser.open(site.url);
  await page.evaluate(bundle);
  return page;
}

/** Counters of the page's one PeerConnection. */
function look(page, type) {
  return page.evaluate(async (wanted) => {
    const all = [...((await globalThis.peers[0]?.getStats()) ?? new Map()).values()].filter((s) => s.type === wanted);
    return { video: { ...all.find((s) => s.kind === "video") }, audio: { ...all.find((s) => s.kind === "audio") } };
  }, type);
}

test("Eyevinn's WHIP client publishes to Eyevinn's WebRTC player", async (t) => {
  const publisher = await openPage();
  await publisher.evaluate(
    async ({ endpoint, authkey }) => {
      const client = new globalThis.published.WHIPClient({ endpoint, opts: { authkey, iceServers: [] } });
      await client.setIceServersFromEndpoint();
      await client.ingest(await navigator.mediaDevices.getUserMedia({ audio: true, video: { width: 640, height: 480 } }));
      globalThis.client = client;
    },
    { endpoint: `${node.http}/whip/published`, authkey: await node.token("published", "camera") },
  );
  await until("frames are encoded", async () => (await look(publisher, "outbound-rtp")).video.framesEncoded > 10);

  const viewer = await openPage();
  await viewer.evaluate(
    async ({ url, token }) => {
      const video = Object.assign(document.createElement("video"), { autoplay: true, playsInline: true });
      document.body.append(video);
      const player = new globalThis.published.WebRTCPlayer({ video, type: "whep", iceServers: [] });
      await player.load(new URL(url), `Bearer ${token}`);
      globalThis.player = player;
    },
    { url: `${node.http}/whep/published`, token: await node.token("published", "eye", "--no-publish") },
  );
  let last;
  const playing = async () => {
    last = await look(viewer, "inbound-rtp");
    return last.video.framesDecoded > 5 && last.audio.totalAudioEnergy > 0;
  };
  await until("frames and sound", playing, 25).catch((error) => assert.fail(`${error.message}; last seen ${JSON.stringify(last)}`));
  const before = [await look(publisher, "outbound-rtp"), await look(viewer, "inbound-rtp")];
  await pause(WINDOW_S);
  const after = [await look(publisher, "outbound-rtp"), await look(viewer, "inbound-rtp")];
  const encoded = after[0].video.framesEncoded - before[0].video.framesEncoded;
  const decoded = after[1].video.framesDecoded - before[1].video.framesDecoded;
  const shown = await viewer.evaluate(() => document.querySelector("video").getVideoPlaybackQuality().totalVideoFrames);
  t.diagnostic(`${decoded} of ${encoded} frames in ${WINDOW_S} s, ${shown} in the player's element`);
  assert.ok(encoded > 10 && decoded >= 0.8 * encoded, `${decoded} of ${encoded} frames were decoded`);
  assert.ok(shown > 10, "the player shows them");

  // Both end what they have made.
  await viewer.evaluate(() => globalThis.player.unload());
  await publisher.evaluate(() => globalThis.client.destroy());
  await until("an empty node", async () => !JSON.stringify(await node.sessions()).includes("published"), 10);
});
