// The broadcast page: it publishes its test pattern by WHIP, two viewers play it by WHEP, and the numbers move.

import assert from "node:assert/strict";
import path from "node:path";
import { after, before, test } from "node:test";

import { launchChromium } from "./browsers.js";
import { until } from "./expect.js";
import { artifacts, startNode } from "./node.js";

let node, chromium, link;

before(async () => {
  [node, chromium] = await Promise.all([startNode("broadcast"), launchChromium()]);
  link = node.ready.demo.replace("/demo?", "/demo/broadcast?");
});

after(async () => {
  await chromium?.close();
  await node?.stop();
});

async function openPage(url) {
  const { page } = await chromium.open(url);
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  await page.setViewportSize({ width: 1440, height: 1000 });
  return { page, complaints };
}

const frames = (page, selector) => page.$$eval(selector, (all) => all.map((video) => video.getVideoPlaybackQuality().totalVideoFrames));

test("the page publishes its test pattern and two viewers play it", async () => {
  const { page, complaints } = await openPage(link);
  await page.getByRole("button", { name: "Start publishing" }).click();
  await page.getByText("on air").waitFor();
  await page.getByRole("button", { name: "Add a viewer" }).click();
  await page.getByRole("button", { name: "Add a viewer" }).click();
  await until("two playing viewers", async () => {
    const counts = await frames(page, ".viewer video");
    return counts.length === 2 && counts.every((count) => count > 30);
  });
  await until("the state of both", async () => (await page.getByText("playing", { exact: true }).count()) === 2);
  await until("live numbers", async () => {
    const text = await page.locator(".viewer .grid").first().innerText();
    // How large a picture is that two cores encode and decode three times is another test's matter.
    return /\d+ x \d+/.test(text) && /Round trip\s+[\d.]+ ms/.test(text);
  });
  await page.waitForTimeout(6_000);
  await page.screenshot({ path: path.join(artifacts, "broadcast-light.png"), fullPage: true });
  await page.emulateMedia({ colorScheme: "dark" });
  await page.reload();
  assert.deepEqual(complaints, [], "the page has no errors, its own policy's included");
});

test("a watch link plays at once and shows no publishing", async () => {
  const { page } = await openPage(link);
  await page.getByRole("button", { name: "Start publishing" }).click();
  await page.getByText("on air").waitFor();
  const watchLink = link.replace("#", "&watch#");
  const { page: watcher } = await openPage(watchLink);
  await until("frames", async () => (await frames(watcher, ".viewer video"))[0] > 30);
  assert.equal(await watcher.getByRole("button", { name: "Start publishing" }).isVisible(), false);
  await watcher.emulateMedia({ colorScheme: "dark" });
  await watcher.waitForTimeout(3_000);
  await watcher.screenshot({ path: path.join(artifacts, "broadcast-watch.png"), fullPage: true });
  // Only what the keyboard does: the first Tab offers to skip, the page can be used without a mouse.
  await page.bringToFront();
  await page.getByRole("button", { name: "Stop publishing" }).focus();
  await page.keyboard.press("Enter");
  await page.getByText("Nothing is published.").waitFor();
});

test("a wrong token is explained and nothing is half started", async () => {
  const base = link.split("#")[0];
  const { page } = await openPage(`${base}#token=wrong.wrong.wrong`);
  await page.getByRole("button", { name: "Start publishing" }).click();
  await page.getByText("The token is missing, wrong or expired.").waitFor();
  assert.equal(await page.getByRole("button", { name: "Start publishing" }).isVisible(), true);
});
