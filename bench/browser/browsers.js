// Chromium through playwright-core and Firefox through puppeteer-core, both as Debian ships them, with the same few calls.

import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { once } from "node:events";
import { tmpdir } from "node:os";
import path from "node:path";

import { chromium } from "playwright-core";
import puppeteer from "puppeteer-core";

const client = await readFile(new URL("./client.js", import.meta.url), "utf8");

const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
const FIREFOX = process.env.FIREFOX ?? "/usr/bin/firefox-esr";

// The background flags keep Chromium from asking its maker's hosts, which a closed network refuses many times a second.
// The loopback flag and Firefox's preference let ICE use 127.0.0.1; Firefox does so only for pages that have a permission for
// a device, others get the default route's address alone.
const CHROMIUM_FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--use-fake-ui-for-media-stream",
  "--use-fake-device-for-media-stream",
  "--autoplay-policy=no-user-gesture-required",
  "--allow-loopback-in-peer-connection",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--no-first-run",
];
const FIREFOX_PREFERENCES = {
  "media.navigator.streams.fake": true,
  "media.navigator.permission.disabled": true,
  "media.peerconnection.ice.loopback": true,
  "permissions.default.microphone": 1,
  "permissions.default.camera": 1,
  "media.peerconnection.ice.obfuscate_host_addresses": false,
  "media.navigator.mediadatadecoder_h264_enabled": true,
  "media.autoplay.default": 0,
  "media.autoplay.blocking_policy": 0,
  "network.captive-portal-service.enabled": false,
  "network.connectivity-service.enabled": false,
  "app.normandy.enabled": false,
};

/** A page on an origin of its own, so that every call to the node is a cross-origin one. */
export async function servePage() {
  const server = createServer((_, response) => {
    response.setHeader("Content-Type", "text/html");
    response.end("<!doctype html><title>pop e2e</title>");
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return { url: `http://127.0.0.1:${server.address().port}/`, close: () => server.close() };
}

/** Chromium, inside the network namespace `netns` when given. */
export async function launchChromium({ netns } = {}) {
  const folder = await mkdtemp(path.join(tmpdir(), "pop-chromium-"));
  let executablePath = CHROMIUM;
  if (netns) {
    executablePath = path.join(folder, "chromium");
    await writeFile(executablePath, `#!/bin/sh\nexec ip netns exec ${netns} ${CHROMIUM} "$@"\n`, { mode: 0o755 });
  }
  const profile = path.join(folder, "profile");
  const context = await chromium.launchPersistentContext(profile, { executablePath, args: CHROMIUM_FLAGS });
  return {
    name: "Chromium",
    open: async (url) => openClient(await context.newPage(), url),
    /** All its processes at once, with no chance to say goodbye. */
    async kill() {
      for (const pid of await processesOf(profile)) killIfAlive(pid);
      await context.close().catch(() => {});
      await rm(folder, { recursive: true, force: true, maxRetries: 10 });
    },
    async close() {
      await context.close();
      await rm(folder, { recursive: true, force: true, maxRetries: 10 });
    },
  };
}

export async function launchFirefox() {
  const folder = await mkdtemp(path.join(tmpdir(), "pop-firefox-"));
  const browser = await puppeteer.launch({
    browser: "firefox",
    executablePath: FIREFOX,
    headless: true,
    extraPrefsFirefox: FIREFOX_PREFERENCES,
    env: { ...process.env, MOZ_GMP_PATH: await claimH264(folder) },
  });
  return {
    name: "Firefox",
    open: async (url) => openClient(await browser.newPage(), url),
    async close() {
      await browser.close();
      await rm(folder, { recursive: true, force: true, maxRetries: 10 });
    },
  };
}

/** Firefox offers H.264 once a plugin claims it; everybody's Firefox downloads Cisco's, which a closed network does not have.
 * This one claims and does nothing: with the preference above the system's libavcodec decodes. */
async function claimH264(folder) {
  const plugin = path.join(folder, "gmp-claim", "1.0");
  await mkdir(plugin, { recursive: true });
  const claim = "Name: claim\nDescription: H.264 by libavcodec\nVersion: 1.0\nAPIs: encode-video[h264], decode-video[h264]\n";
  await writeFile(path.join(plugin, "claim.info"), claim);
  await writeFile(path.join(plugin, "libclaim.so"), "");
  return plugin;
}

async function openClient(page, url) {
  await page.goto(url);
  await page.evaluate(client);
  return {
    page,
    publish: (options) => page.evaluate((o) => globalThis.popClient.publish(o), options),
    watch: (options) => page.evaluate((o) => globalThis.popClient.watch(o), options),
    anew: () => page.evaluate(() => globalThis.popClient.anew()),
    follow: () => page.evaluate(() => globalThis.popClient.follow()),
    decoded: () => page.evaluate(() => globalThis.popClient.decoded()),
    trickle: () => page.evaluate(() => globalThis.popClient.trickle()),
    restart: () => page.evaluate(() => globalThis.popClient.restart()),
    stats: () => page.evaluate(() => globalThis.popClient.stats()),
    stop: () => page.evaluate(() => globalThis.popClient.stop()),
    extensions: () => page.evaluate(() => globalThis.popClient.extensions()),
    decodes: (codec) => page.evaluate((c) => globalThis.popClient.decodes(c), codec),
  };
}

/** The processes that were started with this profile, and all that they started. */
async function processesOf(profile) {
  const parents = new Map();
  const found = new Set();
  for (const name of await readdir("/proc")) {
    const pid = Number(name);
    if (!pid) continue;
    // A process may end while it is looked at.
    const [words, stat] = await Promise.all(["cmdline", "stat"].map((f) => readFile(`/proc/${pid}/${f}`, "utf8").catch(() => "")));
    if (words.split("\0").includes(`--user-data-dir=${profile}`)) found.add(pid);
    parents.set(pid, Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]));
  }
  for (let before = 0; before < found.size; ) {
    before = found.size;
    for (const [pid, parent] of parents) if (found.has(parent)) found.add(pid);
  }
  return found;
}

function killIfAlive(pid) {
  try {
    process.kill(pid, "SIGKILL");
  } catch (error) {
    if (error.code !== "ESRCH") throw error;
  }
}
