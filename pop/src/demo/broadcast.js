// The broadcast page: one publishes by WHIP, many watch by WHEP, with numbers once a second.
//
//   /demo/broadcast?room=ROOM#token=TOKEN            publish and watch
//   /demo/broadcast?room=ROOM&watch#token=TOKEN      watch only, starting at once

import { claims, pageUrl, readAddress } from "/demo/address.js";
import { Meter, rows } from "/demo/meter.js";
import { startPattern } from "/demo/pattern.js";
import { drawSpark } from "/demo/spark.js";
import { setUpTheme } from "/demo/theme.js";
import { publish, sendableCodecs, watch } from "/demo/whip.js";
import { bits, byId, copy, noPathSentence, sentenceOf, showSentence, showState } from "/demo/words.js";

/** Readings without a new packet after which a connected viewer is said to wait. */
const SILENT_READINGS = 3;

/** Longest wait between two tries of a viewer to come back, in seconds. */
const RETRY_MAX_S = 10;

const address = readAddress();
const page = { ...address, watchOnly: address.query.has("watch") };
const viewers = new Set();
let viewersMade = 0;
let publication = null;

function askForToken() {
  byId("access").hidden = false;
  const form = byId("access-form");
  form.elements.room.value = page.room;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    page.room = form.elements.room.value.trim();
    page.token = form.elements.token.value.trim();
    history.replaceState(null, "", linkTo(page.watchOnly));
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

function linkTo(watchOnly) {
  return pageUrl(location.pathname, page, watchOnly ? ["watch"] : []);
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
  showSentence(card.querySelector(".alert"), "");
  showPublishing(form, true);
  showState(card.querySelector(".state"), "busy", "opening the source");
  try {
    started.source = await openSource(form.elements.source.value, width, height);
    if (publication !== started) return started.source.stop();
    const { stream } = started.source;
    const video = card.querySelector("video");
    video.srcObject = stream;
    const hasVideo = stream.getVideoTracks().length > 0;
    showSentence(card.querySelector(".veil"), hasVideo ? "" : "Sound only.");
    // A screen share ends by the browser's own button too.
    for (const track of stream.getTracks()) track.addEventListener("ended", () => publication === started && stopPublishing());
    showState(card.querySelector(".state"), "busy", "connecting");
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
  showSentence(card.querySelector(".veil"), "Nothing is published.");
  showState(card.querySelector(".state"), sentence ? "bad" : "idle", sentence ? "stopped" : "off");
  showSentence(card.querySelector(".alert"), sentence);
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
  byId("copy-link").addEventListener("click", () => copy(linkTo(true), byId("copied")));
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
    showState(this.card.querySelector(".state"), "busy", "connecting");
    try {
      const session = await watch({ endpoint: endpoint("whep"), token: page.token });
      if (this.removed) return session.stop();
      this.session = session;
      this.video.srcObject = session.stream;
      this.panel = new Panel(this.card, session.pc);
      followConnection(session.pc, this.card, "connected", (sentence) => this.retry(sentence));
      showSentence(this.card.querySelector(".alert"), "");
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
      showState(this.card.querySelector(".state"), "bad", "refused");
      showSentence(this.card.querySelector(".veil"), "Not connected.");
      return showSentence(this.card.querySelector(".alert"), sentence);
    }
    const pauseS = afterS || Math.min(RETRY_MAX_S, 2 ** this.tries++);
    showState(this.card.querySelector(".state"), "bad", `again in ${pauseS} s`);
    showSentence(this.card.querySelector(".alert"), sentence);
    setTimeout(() => this.removed || this.start(), pauseS * 1000);
  }

  show(reading) {
    this.silent = reading.bitrateIn > 0 ? 0 : this.silent + 1;
    if (this.session?.pc.connectionState !== "connected") return;
    const picture = reading.framesTotal > 0;
    if (this.silent >= SILENT_READINGS) {
      showState(this.card.querySelector(".state"), "busy", reading.bytesTotal > 0 ? "the publisher is silent" : "waiting for a publisher");
      showSentence(this.card.querySelector(".veil"), picture ? "" : "Connected. Nobody publishes into this room yet.");
    } else if (reading.bytesTotal > 0) {
      this.tries = 0;
      showState(this.card.querySelector(".state"), "live", "playing");
      showSentence(this.card.querySelector(".veil"), picture ? "" : "Sound only so far.");
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
    drawSpark(this.root, "bitrate", this.meter.bitrates, bits(this.meter.bitrates.at(-1)));
    drawSpark(this.root, "rtt", this.meter.rtts, this.cells.get("Round trip").textContent);
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
}

// ---- what people see

/** Shows the connection's state; `onLost` gets a sentence when it is over. */
function followConnection(pc, card, connected, onLost) {
  const show = () => {
    if (pc.connectionState === "connected") showState(card.querySelector(".state"), "live", connected);
    else if (pc.connectionState === "disconnected") showState(card.querySelector(".state"), "busy", "connection interrupted");
    else if (pc.connectionState === "failed") onLost(noPathSentence());
  };
  pc.addEventListener("connectionstatechange", show);
  show();
}

// Tell the node when the page goes, so that a viewer's place is free at once and not when its checks run out.
addEventListener("pagehide", () => {
  publication?.session?.stop();
  for (const viewer of viewers) viewer.stop();
});

// Last, when every class above is there.
setUpTheme(byId("theme"));
byId("call-link").href = pageUrl("/demo", page);
byId("node").textContent = location.host;
if (page.token) enter();
else askForToken();
