// Two people in a call, the node that carries it is killed, and what they saw becomes a picture. `scripts/pop-lab kill-demo` starts this:
//
//   node kill_demo.js --signal URL --nodes NAME=PID=URL,NAME=PID=URL,.. --tokens TOKEN,TOKEN --picture FILE
//
// The sockets of both are at `signal`; the URLs are the nodes' admin addresses. Prints one line of JSON.

import { parseArgs } from "node:util";

import { chromium as playwright } from "playwright-core";

import { launchChromium } from "./browsers.js";
import { pause, until } from "./expect.js";
import { beginFrames, framesOf, longestGap } from "./kill.js";
import { openRoom, serveLiveKitPage } from "./livekit.js";

const CAMERA = { resolution: { width: 640, height: 360, frameRate: 30 } };

/** What of the call the picture shows, in milliseconds from the kill. */
const [BEGIN, END] = [-400, 1_600];

const words = Object.fromEntries(["signal", "nodes", "tokens", "picture"].map((name) => [name, { type: "string" }]));
const { values } = parseArgs({ options: words });
// A browser of their own each: a page behind another shows one frame per second.
const [site, ...browsers] = await Promise.all([serveLiveKitPage(), launchChromium(), launchChromium()]);
try {
  console.log(JSON.stringify(await demonstrate()));
} finally {
  for (const browser of browsers) await browser.close();
  site.close();
}

async function demonstrate() {
  const people = [];
  for (const [i, token] of values.tokens.split(",").entries()) {
    const person = await openRoom(browsers[i], site);
    Object.assign(person, await person.join(values.signal.replace("http", "ws"), token, { policy: true }));
    people.push(Object.assign(person, { camera: await person.camera(true, CAMERA) }));
  }
  const [ann, bob] = people;
  const views = [{ viewer: ann, sid: bob.camera }, { viewer: bob, sid: ann.camera }];
  for (const { viewer, sid } of views) {
    await until("a picture", async () => (await viewer.received())[sid]?.frames > 5, 30);
    await beginFrames(viewer, { pictures: true });
  }
  await pause(3);
  const host = await hostOf(bob.identity);
  for (const view of views) view.told = (await view.viewer.names()).length;
  const killed = Date.now();
  process.kill(Number(host.pid), "SIGKILL");
  await pause(6);
  const lost = ["Reconnecting", "Disconnected", "ParticipantDisconnected", "TrackUnsubscribed", "LocalTrackUnpublished"];
  for (const view of views) {
    const names = (await view.viewer.names()).slice(view.told);
    view.frames = await framesOf(view.viewer, view.sid);
    view.lost = names.filter((name) => lost.includes(name));
    Object.assign(view, longestGap(view.frames, killed));
  }
  for (const person of people) await person.leave();
  await draw(views, host.name, killed);
  const seen = views.map(({ viewer, gap, end, lost }) => ({ viewer: viewer.identity, gap_ms: Math.round(gap), back_after_ms: Math.round(end - killed), lost }));
  return { killed: host.name, seen, picture: values.picture };
}

/** The node that has the transport of `identity`. */
async function hostOf(identity) {
  for (const words of values.nodes.split(",")) {
    const [name, pid, admin] = words.split("=");
    const { sessions } = await (await fetch(`${admin}/api/v1/sessions`)).json();
    const isHere = (person) => person.identity === identity && person.local !== false;
    if (sessions.some(({ participants }) => participants.some(isHere))) return { name, pid };
  }
  throw new Error(`no node has ${identity}`);
}

/** For each view a strip of frames and, below, a mark for each frame that was shown. */
async function draw(views, host, killed) {
  const [left, columns, thumb, top, rowHeight] = [40, 13, { width: 80, height: 45 }, 62, 130];
  const plot = columns * thumb.width;
  const [width, bottom] = [plot + 2 * left, top + views.length * rowHeight];
  const x = (at) => left + Math.min(Math.max((at - killed - BEGIN) / (END - BEGIN), 0), 1) * plot;
  const text = (at, y, words, { size = 14, fill = "#222", anchor = "start" } = {}) =>
    `<text x="${at}" y="${y}" font-family="DejaVu Sans, sans-serif" font-size="${size}" fill="${fill}" text-anchor="${anchor}">${words}</text>`;
  const box = (at, y, w, h, fill) => `<rect x="${at}" y="${y}" width="${w}" height="${h}" fill="${fill}"/>`;
  const parts = [text(left, 20, "Two people in a call, and the node that carries their media dies. Blue: a new frame is on the screen. Red: the picture stands still.")];
  for (const [row, { viewer, frames, gap, begin, end }] of views.entries()) {
    const y = top + row * rowHeight;
    parts.push(text(left, y, `${viewer.identity}'s screen`));
    for (let column = 0; column < columns; column++) {
      const time = killed + BEGIN + ((column + 0.5) / columns) * (END - BEGIN);
      const frame = frames.findLast(({ at }) => at <= time) ?? frames[0];
      const opacity = time > begin && time < end ? 0.35 : 1;
      parts.push(`<image x="${left + column * thumb.width}" y="${y + 8}" width="${thumb.width - 1}" height="${thumb.height}" href="${frame.picture}" opacity="${opacity}"/>`);
    }
    parts.push(box(x(begin), y + 58, x(end) - x(begin), 30, "#f3c6c0"));
    for (const { at } of frames) if (at > killed + BEGIN && at < killed + END) parts.push(box(x(at), y + 60, 2, 26, "#1d6fb8"));
    parts.push(text((x(begin) + x(end)) / 2, y + 78, `${Math.round(gap)} ms`, { anchor: "middle", fill: "#a02c1e" }));
  }
  parts.push(box(x(killed) - 1, 32, 2, bottom - 32 - 36, "#c0392b"), text(x(killed) + 6, 42, `kill -9 of node ${host}`, { fill: "#c0392b" }));
  for (let ms = BEGIN; ms <= END; ms += 200) {
    parts.push(box(x(killed + ms), bottom - 36, 1, 6, "#222"), text(x(killed + ms), bottom - 17, `${ms}`, { size: 12, anchor: "middle" }));
  }
  parts.push(box(left, bottom - 36, plot, 1, "#222"), text(width / 2, bottom - 1, "milliseconds after the kill", { size: 12, anchor: "middle" }));
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${bottom + 6}" style="background:#fff">${parts.join("")}</svg>`;
  const browser = await playwright.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"] });
  const page = await browser.newPage({ viewport: { width, height: bottom + 6 } });
  await page.setContent(`<body style="margin:0">${svg}</body>`);
  await page.screenshot({ path: values.picture });
  await browser.close();
}
