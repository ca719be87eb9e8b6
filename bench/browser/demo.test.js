// The call page as people use it: one link opened in two Chromium tabs and in Firefox. Everything is done by clicks and keys and
// judged by what is seen on the page and by what the browsers count. Pictures of it stay in target/e2e.

import assert from "node:assert/strict";
import path from "node:path";
import { after, before, test } from "node:test";

import { launchChromium, launchFirefox } from "./browsers.js";
import { pause, until } from "./expect.js";
import { artifacts, startNode } from "./node.js";

let node, chromium, firefox;

before(async () => {
  [node, chromium, firefox] = await Promise.all([startNode("demo"), launchChromium(), launchFirefox()]);
});

after(async () => {
  await Promise.all([chromium?.close(), firefox?.close()]);
  await node?.stop();
});

/** The node's link with options in its query. */
const link = (options) => node.ready.demo.replace("room=demo", `room=demo&${options}`);

/** A person at the page: the same few actions in both browsers, by what the page shows. */
class Person {
  constructor(page, complaints) {
    this.page = page;
    this.complaints = complaints;
  }

  static async open(browser, url) {
    const { page } = await browser.open(url);
    const complaints = [];
    page.on("pageerror", (error) => complaints.push(String(error)));
    page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
    const size = { width: 1280, height: 800 };
    await (page.setViewportSize ?? page.setViewport).call(page, size);
    return new Person(page, complaints);
  }

  /** In the lobby: a name, and join. */
  async join(name) {
    await until(`${name}'s lobby`, () => this.look(() => !document.querySelector("#lobby").hidden && document.querySelector("#lobby video").videoWidth > 0));
    await this.look((name) => (document.querySelector("#lobby-form [name=name]").value = name), name);
    await this.click("#lobby-form button");
    await until(`${name} is in`, () => this.look(() => document.body.dataset.view === "call"));
  }

  look(what, argument) {
    return this.page.evaluate(what, argument);
  }

  /** A tab in the background draws seldom, and a click waits for what is drawn. */
  async click(selector) {
    await this.page.bringToFront();
    await this.page.click(selector);
  }

  async key(key) {
    await this.page.bringToFront();
    await this.page.keyboard.press(key);
  }

  /** What the tile of somebody shows. */
  tile(name) {
    return this.look((name) => {
      const tile = [...document.querySelectorAll(".tile")].find((tile) => tile.querySelector(".name").textContent === name);
      if (!tile) return null;
      const video = tile.querySelector("video");
      return {
        classes: [...tile.classList],
        badge: tile.querySelector(".badge").hidden ? "" : tile.querySelector(".badge").textContent,
        layer: tile.dataset.layer,
        width: Number(tile.dataset.width),
        shown: video.videoWidth,
        frames: Number(tile.dataset.frames ?? 0),
        label: tile.getAttribute("aria-label"),
      };
    }, name);
  }

  async sees(name, seconds = 40) {
    return until(`frames of ${name}`, async () => ((await this.tile(name))?.frames ?? 0) > 20 && this.tile(name), seconds);
  }

  async chooseQuality(name, value) {
    await this.look(
      ([name, value]) => {
        const tile = [...document.querySelectorAll(".tile")].find((tile) => tile.querySelector(".name").textContent === name);
        const select = tile.querySelector("select");
        select.value = value;
        select.dispatchEvent(new Event("change"));
      },
      [name, value],
    );
  }

  async says(text) {
    if (await this.look(() => document.querySelector("#chat").hidden || document.querySelector("#panel").hidden)) await this.click('[data-opens="chat"]');
    await this.page.bringToFront();
    await this.page.focus("#chat-form input");
    await this.page.keyboard.type(text);
    await this.key("Enter");
  }

  reads(text) {
    return until(`the message ${text}`, () => this.look((text) => document.querySelector("#messages").textContent.includes(text), text));
  }

  async picture(name) {
    await this.page.bringToFront();
    await pause(1);
    await this.page.screenshot({ path: path.join(artifacts, `call-${name}.png`) });
  }

  leave() {
    return this.click("#leave");
  }
}

/** Three people of the same link: two tabs of Chromium, one Firefox. */
async function threePeople() {
  const ann = await Person.open(chromium, link("pattern&size=360"));
  await ann.join("Ann");
  const bob = await Person.open(chromium, link("pattern&size=180"));
  await bob.join("Bob");
  const eve = await Person.open(firefox, link("size=360"));
  await eve.join("Eve");
  return { ann, bob, eve };
}

test("one link, two tabs and another browser: a call", async () => {
  const { ann, bob, eve } = await threePeople();
  const everybody = [
    [ann, ["Ann (you)", "Bob", "Eve"]],
    [bob, ["Ann", "Bob (you)", "Eve"]],
    [eve, ["Ann", "Bob", "Eve (you)"]],
  ];
  for (const [person, names] of everybody) for (const name of names) await person.sees(name);

  // Who speaks is framed: all but Ann fall silent.
  await bob.click("#mic");
  await eve.click("#mic");
  await until("Ann's frame", async () => (await bob.tile("Ann")).classes.includes("loudest") && (await eve.tile("Ann")).classes.includes("speaking"));
  assert.ok(!(await bob.tile("Eve")).classes.includes("speaking"), "who is muted is not framed");

  // Muting is seen by everybody, and said to screen readers.
  await until("Bob's mute at Ann's", async () => (await ann.tile("Bob")).label === "Bob, muted");
  await until("Eve's mute at Ann's", async () => (await ann.tile("Eve")).classes.includes("silent"));
  await bob.key("m");
  await until("Bob is heard again", async () => !(await ann.tile("Bob")).classes.includes("silent"));
  await bob.key("v");
  await until("Bob without a picture", async () => (await eve.tile("Bob")).classes.includes("unseen"));
  await bob.key("v");
  await until("Bob's picture again", async () => !(await eve.tile("Bob")).classes.includes("unseen"));

  // The chooser changes the layer that is decoded.
  for (const [value, layer, width] of [["0", "q", 320], ["2", "h", 640], ["0", "q", 320]]) {
    await bob.chooseQuality("Ann", value);
    await until(`layer ${layer}`, async () => {
      const tile = await bob.tile("Ann");
      return tile.width === width && tile.shown === width && tile.layer === layer && tile.badge.startsWith(`${width}x`);
    }, 40);
  }
  await ann.picture("light");

  // Chat goes both ways and between browsers, as text.
  await ann.says("Hello <b>all</b>");
  await Promise.all([bob.reads("Hello <b>all</b>"), eve.reads("Hello <b>all</b>")]);
  assert.equal(await bob.look(() => document.querySelector("#unread").textContent), "1");
  await eve.says("Bonjour");
  await Promise.all([ann.reads("Bonjour"), bob.reads("Bonjour")]);
  await ann.picture("chat");

  // The numbers are there, and true in the rough.
  await bob.key("n");
  await until("numbers", () => bob.look(() => /Received/.test(document.querySelector("#tracks").textContent) && /[1-9]\d* kb\/s|Mb\/s/.test(document.querySelector("#sparks .down-now").textContent)));
  await bob.page.emulateMedia({ colorScheme: "dark" });
  await bob.picture("numbers-dark");

  // A screen is a tile of its own.
  await ann.click("#screen");
  const screen = await bob.sees("Ann: screen");
  assert.ok(screen.classes.includes("screen"));
  await eve.sees("Ann: screen");
  await bob.picture("screen");
  await ann.click("#screen");
  await until("the screen is gone", async () => (await bob.tile("Ann: screen")) === null);

  // On a phone the same page.
  await bob.page.setViewportSize({ width: 390, height: 844 });
  await bob.key("Escape");
  await bob.picture("phone");
  const overflow = await bob.look(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(overflow <= 0, `nothing hangs over the edge of a phone: ${overflow} px`);

  // Who leaves is gone at once, on both sides.
  await ann.leave();
  await until("Ann is gone", async () => (await bob.tile("Ann")) === null && (await eve.tile("Ann")) === null);
  assert.equal(await ann.look(() => document.querySelector("#over-reason").textContent), "You left.");
  await Promise.all([bob.leave(), eve.leave()]);
  for (const person of [ann, bob, eve]) assert.deepEqual(person.complaints, [], "the page has no errors, its own policy's included");
});
