// How long people see nothing when the node of their media dies, by client and by distance. `scripts/test --long gaps` starts this:
//
//   node bench/browser/gaps.js --kills 5 --rtt 0,10,50,100,150 --json FILE
//
// Bob publishes at node b, which has no distance. The others are at node a behind the service address, which moves to c with a's death; a and c are so
// far away from them. Each kill has a call of its own. Times count from the kill: when a client notices it, when it asks to come back, when the answer
// is there, and when the first picture comes after the longest time without one. Prints a line for each kill and writes a table.

import { execFileSync } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { parseArgs } from "node:util";

import { serveAddress } from "./address.js";
import { launchChromium, launchFirefox } from "./browsers.js";
import { pause, until } from "./expect.js";
import { beginFrames, framesOf, longestGap } from "./kill.js";
import { openRoom, serveLiveKitPage } from "./livekit.js";
import { startPop } from "./nodes.js";

const { values } = parseArgs({
  options: { kills: { type: "string", default: "5" }, rtt: { type: "string", default: "0,10,50,100,150" }, json: { type: "string" } },
});
const KILLS = Number(values.kills);
const RTTS_MS = values.rtt.split(",").map(Number);

/** How long the call is watched after a kill. Firefox begins anew. */
const WATCHED_S = 5;

const [pop, site, firefox, ...chromiums] = await Promise.all([
  startPop("gaps", ["a", "b", "c"], { second: 74 }),
  serveLiveKitPage(),
  launchFirefox(),
  // A browser of their own each: a page behind another shows one frame per second.
  launchChromium(),
  launchChromium(),
  launchChromium(),
]);
const CLIENTS = [
  { kind: "Chromium, SDK defaults", browser: chromiums[0], options: {} },
  { kind: "Chromium, first retry 0", browser: chromiums[1], options: { policy: true } },
  { kind: "Firefox, SDK defaults", browser: firefox, options: {} },
];
const rows = [];
try {
  for (const rtt of RTTS_MS) {
    for (const end of ["a", "c"]) await pop.network.change(`people-${end} delay ${rtt / 2}ms`);
    const seen = [];
    for (let kill = 0; kill < KILLS; kill++) seen.push(...(await killOnce(rtt, `gaps-${rtt}-${kill}`)));
    for (const { kind } of CLIENTS) rows.push({ rtt_ms: rtt, client: kind, ...summary(seen.filter((one) => one.kind === kind)) });
  }
  for (const row of rows) console.log(JSON.stringify(row));
  if (values.json) await writeFile(values.json, `${JSON.stringify(result(), null, 2)}\n`);
} finally {
  for (const browser of [firefox, ...chromiums]) await browser.close();
  site.close();
  await pop.stop();
}

async function come(browser, url, room, identity, options) {
  const person = await openRoom(browser, site);
  return Object.assign(person, await person.join(url, await pop.nodes.b.token(room, identity), options));
}

async function killOnce(rtt, room) {
  const service = await serveAddress(pop, "a");
  const bob = await come(chromiums[2], pop.nodes.b.http.replace("http", "ws"), room, "bob", {});
  const sid = await bob.camera(true, { resolution: { width: 320, height: 180, frameRate: 30 } });
  const people = [];
  for (const [i, client] of CLIENTS.entries()) people.push(Object.assign(await come(client.browser, service.url, room, `viewer-${i}`, client.options), client));
  for (const person of people) {
    await until(`${person.kind} sees bob`, async () => (await person.received())[sid]?.frames > 15, 30);
    await beginFrames(person);
  }
  await until("c keeps the room", async () => Object.keys(await pop.people("c", room)).length === people.length + 1);
  await pause(1);
  service.to = "c";
  const killed = Date.now();
  await pop.nodes.a.kill();
  service.cut();
  await pause(WATCHED_S);
  const seen = [];
  for (const person of people) {
    const { gap, end } = longestGap(await framesOf(person, sid), killed - 100);
    // The lines of its log, which it writes as it goes; when it begins anew the last is not among them.
    const after = async (words) => Math.round((await person.logged(words, killed)) - killed) || null;
    const [heard, asked, signalled] = [await after("signal disconnected"), await after("resuming signal connection"), await after("triggering ICE restart")];
    // What the SDK says when it begins anew; when it resumes it is `SignalReconnecting`.
    const anew = (await person.names()).includes("Reconnecting");
    const one = { kind: person.kind, anew, heard, asked, signalled, back: Math.round(end - killed), gap: Math.round(gap) };
    seen.push(one);
    console.log(JSON.stringify({ rtt, ...one }));
  }
  for (const person of [bob, ...people]) {
    await person.leave();
    await person.page.close();
  }
  service.close();
  await pop.nodes.a.start();
  await pop.untilWhole();
  return seen;
}

function summary(seen) {
  const sorted = (key) => seen.map((one) => one[key] ?? Infinity).sort((a, b) => a - b);
  const middle = (key) => sorted(key)[Math.floor((seen.length - 1) / 2)];
  return {
    kills: seen.length,
    anew: seen.filter(({ anew }) => anew).length,
    gap_ms: { p50: middle("gap"), max: sorted("gap").at(-1) },
    heard_after_ms: middle("heard"),
    asked_after_ms: middle("asked"),
    signalled_after_ms: middle("signalled"),
    back_after_ms: middle("back"),
  };
}

function result() {
  const git = (...words) => execFileSync("git", words, { encoding: "utf8" }).trim();
  const commit = `${git("rev-parse", "--short=12", "HEAD")}${git("status", "--porcelain", "--untracked-files=no") ? "-dirty" : ""}`;
  const command = `node bench/browser/gaps.js --kills ${values.kills} --rtt ${values.rtt}`;
  return { case: "gaps", command, commit, measured: new Date().toISOString(), config: { kills: KILLS, rtt_ms: RTTS_MS }, detail: { rows } };
}
