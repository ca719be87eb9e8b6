// A lab's demo page: its button kills the node that carries the call, and the call goes on at another one.

import assert from "node:assert/strict";
import path from "node:path";
import { after, before, test } from "node:test";

import { launchChromium } from "./browsers.js";
import { until } from "./expect.js";
import { artifacts } from "./node.js";
import { startPop } from "./nodes.js";

let pop, chromium;

before(async () => {
  [pop, chromium] = await Promise.all([startPop("lab", ["a", "b", "c"], { second: 77, split: true, extra: "[demo]\ncrash = true" }), launchChromium()]);
});

after(async () => {
  await chromium?.close();
  await pop?.stop();
});

async function open(at) {
  const { http } = pop.nodes[at];
  const words = `room=lab&auto&pattern&silent&size=360&name=at-${at}`;
  return (await chromium.open(`${http}/demo?${words}#token=${await pop.nodes[at].token("lab", `at-${at}`)}`)).page;
}

/** Frames of somebody else that a page has shown. */
const shown = (page) =>
  page.evaluate(() => [...document.querySelectorAll(".tile video")].map((video) => video.getVideoPlaybackQuality().totalVideoFrames).at(-1) ?? 0);
const banner = (page) => page.evaluate(() => document.querySelector("#banner").textContent);
const click = (page) => page.evaluate(() => document.querySelector("#crash").click());
const asks = (at, token, sid) => fetch(`${pop.nodes[at].http}/demo/crash?reconnect=1&sid=${sid}`, { method: "POST", headers: { Authorization: `Bearer ${token}` } });

test("a lab's page kills the node of its call, says what was seen of it, and goes on", async (t) => {
  const pages = { a: await open("a"), b: await open("b") };
  for (const page of Object.values(pages)) await until("both see each other", async () => (await shown(page)) > 30, 40);
  const people = await pop.people("c", "lab");
  const host = people["at-a"].node;
  assert.notEqual(host, "a", "its socket is at another node than its media");

  // Who is not in the call kills nobody, and neither does who is with another's token.
  const strangers = [await asks("b", await pop.nodes.b.token("lab", "eve"), people["at-a"].id), await asks("b", await pop.nodes.b.token("other", "at-a"), people["at-a"].id), await asks("b", "of news", people["at-a"].id)];
  assert.deepEqual(strangers.map(({ status }) => status), [404, 404, 401]);
  assert.deepEqual(await (await fetch(`${pop.nodes.b.http}/demo/crash`)).json(), { lab: true }, "it lives");

  await click(pages.a);
  await until(`${host} is dead`, () => pop.nodes[host].hasEnded, 10);
  const said = /^The node (\w) is dead\. The picture stood still for (\d+) ms\. This call is at (\w) now\.$/;
  const [, dead, gap, now] = await until("the page says so", async () => said.exec(await banner(pages.a)), 30);
  t.diagnostic(`the picture stood still for ${gap} ms`);
  assert.equal(dead, host);
  assert.notEqual(now, host);
  const before = await shown(pages.a);
  await until("the picture goes on", async () => (await shown(pages.a)) > before + 30, 20);
  await pages.a.screenshot({ path: path.join(artifacts, "lab-crash.png") });
  assert.equal([...Object.values(pop.nodes)].filter((node) => node.hasEnded).length, 1, "one node died, not the next one, too");
  for (const page of Object.values(pages)) await page.close();
  await pop.nodes[host].start();
  await pop.untilWhole();
});
