// The page: reads the room and the token from its address, publishes, watches, and shows numbers once a second.
//
//   /demo?room=ROOM#token=TOKEN            publish and watch
//   /demo?room=ROOM&watch#token=TOKEN      watch only, starting at once
//
// The token stays behind the '#', where no server and no log sees it.

import { Meter, bits, rows } from "/demo/meter.js";
import { startPattern } from "/demo/pattern.js";
import { publish, sendableCodecs, watch } from "/demo/whip.js";

/** Readings without a new packet after which a connected viewer is said to wait. */
const SILENT_READINGS = 3;

/** Longest wait between two tries of a viewer to come back, in seconds. */
const RETRY_MAX_S = 10;

const byId = (id) => document.getElementById(id);
const page = readAddress();
const viewers = new Set();
let viewersMade = 0;
let publication = null;

function readAddress() {
  const query = new URLSearchParams(location.search);
  const hash = new URLSearchParams(location.hash.slice(1));
  const token = hash.get("token") ?? query.get("token") ?? "";
  const room = query.get("room") ?? hash.get("room") ?? claims(token).video?.room ?? "demo";
  return { room, token, watchOnly: query.has("watch") };
}

/** The claims that a token carries, unchecked: the page only words its hints by them. */
function claims(token) {
  try {
    const middle = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    return JSON.parse(atob(middle));
  } catch {
    return {};
  }
}

function askForToken() {
  byId("access").hidden = false;
  const form = byId("access-form");
  form.elements.room.value = page.room;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    page.room = form.elements.room.value.trim();
    page.token = form.elements.token.value.trim();
    history.replaceState(null, "", pageUrl(page.watchOnly));
    byId("access").hidden = true;
    enter();
  });
}

function enter() {
  const grants = claims(page.token).video ?? {};
  const mayPublish = grants.canPublish !== false;
  byId("room").textContent = page.room;
  document.title = `${page.room} on pop`;
  byId("publish").hidden = page.watchOnly || !mayPublish;
  byId("watch").hidden = false;
  byId("others").hidden = page.watchOnly;
  document.body.classList.toggle("watch-only", byId("publish").hidden);
  byId("link-warning").hidden = !mayPublish || page.watchOnly;
  byId("whip-url").textContent = endpoint("whip");
  byId("whep-url").textContent = endpoint("whep");
  byId("token").textContent = page.token;
  setUpPublishing();
  setUpWatching();
  setInterval(readAll, 1000);
  if (page.watchOnly) addViewer();
}

function endpoint(kind) {
  return new URL(`/${kind}/${encodeURIComponent(page.room)}`, location.href).href;
}

function pageUrl(watchOnly) {
  const url = new URL(location.pathname, location.href);
  url.searchParams.set("room", page.room);
  if (watchOnly) url.searchParams.set("watch", "");
  url.hash = new URLSearchParams({ token: page.token });
  return url.href.replace("watch=", "watch");
}

// ---- publishing

function setUpPublishing() {
  const form = byId("publish-form");
  for (const name of sendableCodecs()) form.elements.codec.add(new Option(name, name));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (publication) stopPublishing();
    else startPublishing(form);
  });
}

async function startPublishing(form) {
  const card = byId("publish");
  const [width, height, kilobits] = form.elements.picture.value.split("x").map(Number);
  const started = { source: null, session: null, panel: null };
  publication = started;
  showAlert(card, "");
  showPublishing(form, true);
  showState(card, "busy", "opening the source");
  try {
    started.source = await openSource(form.elements.source.value, width, height);
    if (publication !== started) return started.source.stop();
    const { stream } = started.source;
    const video = card.querySelector("video");
    video.srcObject = stream;
    const hasVideo = stream.getVideoTracks().length > 0;
    showVeil(card, hasVideo ? "" : "Sound only.");
    // A screen share ends by the browser's own button too.
    for (const track of stream.getTracks()) track.addEventListener("ended", () => publication === started && stopPublishing());
    showState(card, "busy", "connecting");
    const session = await publish({
      endpoint: endpoint("whip"),
      token: page.token,
      stream,
      codec: form.elements.codec.value,
      bitrateMax: kilobits * 1000,
    });
    if (publication !== started) return session.stop();
    started.session = session;
    started.panel = new Panel(card, session.pc);
    followConnection(session.pc, card, "on air", (sentence) => {
      if (publication === started) stopPublishing(sentence);
    });
  } catch (error) {
    if (publication === started) stopPublishing(sentenceOf(error));
  }
}

async function stopPublishing(sentence = "") {
  const card = byId("publish");
  const { session, source } = publication;
  publication = null;
  card.querySelector("video").srcObject = null;
  source?.stop();
  showPublishing(byId("publish-form"), false);
  showVeil(card, "Nothing is published.");
  showState(card, sentence ? "bad" : "idle", sentence ? "stopped" : "off");
  showAlert(card, sentence);
  await session?.stop();
}

function showPublishing(form, on) {
  for (const field of form.querySelectorAll("input, select")) field.disabled = on;
  const button = form.querySelector("button");
  button.textContent = on ? "Stop publishing" : "Start publishing";
  button.className = on ? "danger" : "primary";
}

/** A stream and what ends it. */
async function openSource(kind, width, height) {
  if (kind === "pattern") return startPattern({ width, height, label: `${page.room} on ${location.host}` });
  if (!navigator.mediaDevices) {
    throw new Error("The browser gives devices only to pages on https or on this machine's own address. Use the test pattern.");
  }
  const size = { width: { ideal: width }, height: { ideal: height }, frameRate: { ideal: 30 } };
  let stream;
  if (kind === "screen") stream = await navigator.mediaDevices.getDisplayMedia({ video: size, audio: true });
  else stream = await navigator.mediaDevices.getUserMedia({ audio: true, video: kind === "camera" && size });
  for (const track of stream.getVideoTracks()) track.contentHint = kind === "screen" ? "detail" : "motion";
  return { stream, stop: () => stream.getTracks().forEach((track) => track.stop()) };
}

// ---- watching

function setUpWatching() {
  byId("add-viewer").addEventListener("click", addViewer);
  byId("copy-link").addEventListener("click", () => copy(pageUrl(true), byId("copied")));
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", () => copy(byId(button.dataset.copy).textContent, button));
  }
}

function addViewer() {
  byId("no-viewers").hidden = true;
  const card = byId("viewer-template").content.firstElementChild.cloneNode(true);
  const name = `Viewer ${++viewersMade}`;
  card.querySelector("h3").textContent = name;
  card.querySelector("video").setAttribute("aria-label", `What ${name} sees`);
  byId("viewers").append(card);
  const viewer = new Viewer(card);
  viewers.add(viewer);
  card.querySelector(".remove").addEventListener("click", () => {
    viewers.delete(viewer);
    viewer.stop();
    card.remove();
    byId("no-viewers").hidden = viewers.size > 0;
    byId("add-viewer").focus();
  });
  viewer.start();
}

/** One WHEP connection and its card. It comes back by itself after a failure until it is removed. */
class Viewer {
  constructor(card) {
    this.card = card;
    this.video = card.querySelector("video");
    this.session = null;
    this.panel = null;
    this.removed = false;
    this.tries = 0;
    this.silent = 0;
    const unmute = card.querySelector(".unmute");
    unmute.addEventListener("click", () => {
      this.video.muted = !this.video.muted;
      unmute.textContent = this.video.muted ? "Sound on" : "Sound off";
    });
  }

  async start() {
    showState(this.card, "busy", "connecting");
    try {
      const session = await watch({ endpoint: endpoint("whep"), token: page.token });
      if (this.removed) return session.stop();
      this.session = session;
      this.video.srcObject = session.stream;
      this.panel = new Panel(this.card, session.pc);
      followConnection(session.pc, this.card, "connected", (sentence) => this.retry(sentence));
      showAlert(this.card, "");
    } catch (error) {
      this.retry(sentenceOf(error), error.retryAfterS, error.status >= 400 && error.status < 500);
    }
  }

  /** Tries again after a pause that doubles; an answer that will not change by itself ends it. */
  retry(sentence, afterS = 0, final = false) {
    if (this.removed) return;
    this.session?.stop();
    this.session = this.panel = null;
    if (final) {
      showState(this.card, "bad", "refused");
      showVeil(this.card, "Not connected.");
      return showAlert(this.card, sentence);
    }
    const pauseS = afterS || Math.min(RETRY_MAX_S, 2 ** this.tries++);
    showState(this.card, "bad", `again in ${pauseS} s`);
    showAlert(this.card, sentence);
    setTimeout(() => this.removed || this.start(), pauseS * 1000);
  }

  show(reading) {
    this.silent = reading.bitrateIn > 0 ? 0 : this.silent + 1;
    if (this.session?.pc.connectionState !== "connected") return;
    const picture = reading.framesTotal > 0;
    if (this.silent >= SILENT_READINGS) {
      showState(this.card, "busy", reading.bytesTotal > 0 ? "the publisher is silent" : "waiting for a publisher");
      showVeil(this.card, picture ? "" : "Connected. Nobody publishes into this room yet.");
    } else if (reading.bytesTotal > 0) {
      this.tries = 0;
      showState(this.card, "live", "playing");
      showVeil(this.card, picture ? "" : "Sound only so far.");
    }
  }

  async stop() {
    this.removed = true;
    this.video.srcObject = null;
    await this.session?.stop();
  }
}

// ---- numbers

async function readAll() {
  const shown = [...viewers].map(async (viewer) => {
    const reading = await viewer.panel?.read();
    if (reading) viewer.show(reading);
  });
  await Promise.all([publication?.panel?.read(), ...shown]);
}

/** The numbers and sparklines of one connection. */
class Panel {
  constructor(card, pc) {
    this.meter = new Meter(pc);
    this.root = card.querySelector(".numbers");
    this.root.replaceChildren(byId("numbers-template").content.cloneNode(true));
    this.cells = new Map();
  }

  async read() {
    const reading = await this.meter.read();
    for (const [name, value, meaning] of rows(reading)) this.cell(name, meaning).textContent = value;
    this.draw("bitrate", this.meter.bitrates, bits(this.meter.bitrates.at(-1)));
    this.draw("rtt", this.meter.rtts, this.cells.get("Round trip").textContent);
    return reading;
  }

  cell(name, meaning) {
    if (!this.cells.has(name)) {
      const row = Object.assign(document.createElement("div"), { title: meaning });
      const value = document.createElement("dd");
      row.append(Object.assign(document.createElement("dt"), { textContent: name }), value);
      this.root.querySelector(".grid").append(row);
      this.cells.set(name, value);
    }
    return this.cells.get(name);
  }

  draw(name, values, now) {
    const top = Math.max(...values, 1e-9) * 1.1;
    const points = values.map((value, i) => `${((i + 60 - values.length) * 120) / 59},${(32 - (32 * value) / top).toFixed(2)}`);
    const first = points[0].split(",")[0];
    this.root.querySelector(`.${name}-line`).setAttribute("points", points.join(" "));
    this.root.querySelector(`.${name}-area`).setAttribute("points", `${first},32 ${points.join(" ")} 120,32`);
    this.root.querySelector(`.${name}-now`).textContent = now;
  }
}

// ---- what people see

/** Shows the connection's state; `onLost` gets a sentence when it is over. */
function followConnection(pc, card, connected, onLost) {
  const show = () => {
    if (pc.connectionState === "connected") showState(card, "live", connected);
    else if (pc.connectionState === "disconnected") showState(card, "busy", "connection interrupted");
    else if (pc.connectionState === "failed") onLost(failureSentence());
  };
  pc.addEventListener("connectionstatechange", show);
  show();
}

function failureSentence() {
  const loopback = /^(localhost|127\.|\[::1\])/.test(location.hostname);
  if (loopback && navigator.userAgent.includes("Firefox")) {
    return (
      "No media path. Firefox uses loopback addresses only when media.peerconnection.ice.loopback is true in about:config " +
      "and the page may use a microphone or camera. Other browsers need neither."
    );
  }
  return "No media path to the node. Is a firewall between you and its UDP media port?";
}

function sentenceOf(error) {
  const known = {
    NotAllowedError: "The browser was not allowed to use that source.",
    NotFoundError: "There is no such device on this machine. Use the test pattern.",
    NotReadableError: "Another program uses that device.",
    OverconstrainedError: "The device cannot do that.",
  }[error.name];
  return known ?? error.message;
}

function showState(card, kind, text) {
  const state = card.querySelector(".state");
  // An equal text is not set again: a screen reader would read it out every second.
  if (state.textContent === text && state.dataset.kind === kind) return;
  state.dataset.kind = kind;
  state.textContent = text;
}

function showAlert(card, sentence) {
  const alert = card.querySelector(".alert");
  alert.textContent = sentence;
  alert.hidden = !sentence;
}

function showVeil(card, sentence) {
  const veil = card.querySelector(".veil");
  veil.textContent = sentence;
  veil.hidden = !sentence;
}

async function copy(text, where) {
  const before = where.dataset.text ?? (where.dataset.text = where.textContent);
  try {
    await navigator.clipboard.writeText(text);
    where.textContent = "Copied";
  } catch {
    // No clipboard outside https and loopback: let people copy by hand.
    prompt("Copy this", text);
  }
  setTimeout(() => (where.textContent = before), 2000);
}

function setUpTheme() {
  const button = byId("theme");
  const system = matchMedia("(prefers-color-scheme: light)").matches ? "light" : "dark";
  const show = (theme) => {
    document.documentElement.dataset.theme = theme;
    button.textContent = theme === "light" ? "Dark theme" : "Light theme";
    button.setAttribute("aria-pressed", String(theme !== system));
  };
  show(sessionStorage.getItem("theme") ?? system);
  button.addEventListener("click", () => {
    const theme = document.documentElement.dataset.theme === "light" ? "dark" : "light";
    sessionStorage.setItem("theme", theme);
    show(theme);
  });
}

// Tell the node when the page goes, so that a viewer's place is free at once and not when its checks run out.
addEventListener("pagehide", () => {
  publication?.session?.stop();
  for (const viewer of viewers) viewer.stop();
});

// Last, when every class above is there.
setUpTheme();
byId("node").textContent = location.host;
if (page.token) enter();
else askForToken();
