// The side panel: chat, numbers, devices. One of them is open, or none.

import { drawSpark, push } from "/demo/spark.js";
import { bits, byId, element, milliseconds } from "/demo/words.js";
import { layerName } from "/demo/tiles.js";

/** The panel with its tabs and the toolbar's buttons that open them. */
export class Drawer {
  constructor() {
    this.panel = byId("panel");
    this.tabs = [...this.panel.querySelectorAll("[data-tab]")];
    this.openers = [...document.querySelectorAll("[data-opens]")];
    this.open = null;
    this.history = { up: [], down: [], rtt: [] };
    for (const tab of this.tabs) tab.addEventListener("click", () => this.show(tab.dataset.tab));
    for (const opener of this.openers) opener.addEventListener("click", () => this.toggle(opener.dataset.opens));
    byId("panel-close").addEventListener("click", () => this.close());
    this.panel.addEventListener("keydown", (event) => this.onKey(event));
  }

  onKey(event) {
    if (event.key === "Escape") return this.close();
    const at = this.tabs.indexOf(event.target);
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (at < 0 || !step) return;
    const next = this.tabs[(at + step + this.tabs.length) % this.tabs.length];
    this.show(next.dataset.tab);
    next.focus();
  }

  toggle(name) {
    if (this.open === name) return this.close();
    this.show(name);
    this.panel.querySelector(name === "chat" ? "#chat-form input" : `[data-tab="${name}"]`).focus();
  }

  show(name) {
    this.open = name;
    this.panel.hidden = !name;
    document.body.classList.toggle("with-panel", Boolean(name));
    for (const tab of this.tabs) {
      const isOpen = tab.dataset.tab === name;
      tab.setAttribute("aria-selected", String(isOpen));
      tab.tabIndex = isOpen ? 0 : -1;
      byId(tab.dataset.tab).hidden = !isOpen;
    }
    for (const opener of this.openers) opener.setAttribute("aria-expanded", String(opener.dataset.opens === name));
    if (name === "chat") this.clearUnread();
  }

  close() {
    const opener = this.openers.find((button) => button.dataset.opens === this.open);
    this.show(null);
    opener?.focus();
  }

  countUnread() {
    if (this.open === "chat") return;
    const unread = byId("unread");
    unread.textContent = Number(unread.textContent) + 1;
    unread.hidden = false;
  }

  clearUnread() {
    byId("unread").textContent = "";
    byId("unread").hidden = true;
  }

  /** Shows a reading of stats.js; the curves go on while nobody looks. */
  showReading(room, reading) {
    const { bitrateUp, bitrateDown, rttMs } = reading.connection;
    push(this.history.up, bitrateUp ?? 0);
    push(this.history.down, bitrateDown ?? 0);
    push(this.history.rtt, rttMs ?? 0);
    if (this.open !== "stats") return;
    const sparks = byId("sparks");
    drawSpark(sparks, "up", this.history.up, bits(bitrateUp));
    drawSpark(sparks, "down", this.history.down, bits(bitrateDown));
    drawSpark(sparks, "rtt", this.history.rtt, milliseconds(rttMs));
    byId("connection").replaceChildren(...rowsOf(room, reading.connection).map(row));
    byId("tracks").replaceChildren(table("Sent", sent(room, reading)), table("Received", received(room, reading)));
  }
}

function rowsOf(room, connection) {
  return [
    ["Quality", room.localParticipant.connectionQuality, "What the node makes of this connection's loss and round trip"],
    ["Jitter", milliseconds(connection.jitterMs), "Worst variation of the packets' travel time, of all that is received"],
    ["Lost down", percent(connection.lossDown), "Share of packets that did not arrive in the last second"],
    ["Lost up", percent(connection.lossUp), "Share that the node missed, as it last reported; the worst stream"],
    ["Estimate up", bits(connection.estimate), "What the browser believes the path carries"],
    ["Path", connection.path ?? "none yet", "The node's end of the path that media takes"],
    ["From", connection.from ?? "none yet", "This end"],
    ["Cipher", connection.cipher?.replace(/^SRTP_/, "").replaceAll("_", " ") ?? "unknown", "How media is encrypted between the browser and the node"],
  ];
}

function row([name, value, meaning]) {
  return element("div", { title: meaning }, element("dt", { textContent: name }), element("dd", { textContent: value }));
}

function sent(room, reading) {
  return [...room.localParticipant.trackPublications.values()].map((publication) => ["you", publication, publication.track && reading.of(publication.track)]);
}

function received(room, reading) {
  return [...room.remoteParticipants.values()].flatMap((participant) =>
    [...participant.trackPublications.values()].map((publication) => {
      return [participant.name || participant.identity, publication, publication.track && reading.of(publication.track)];
    }),
  );
}

const COLUMNS = ["Who", "What", "Codec", "Picture", "fps", "Rate", "Lost", "Jitter"];

function table(caption, tracks) {
  const cells = (tag, texts) => element("tr", {}, ...texts.map((textContent) => element(tag, { textContent })));
  const body = tracks.map(([who, publication, numbers]) => cells("td", wordsOf(who, publication, numbers)));
  if (body.length === 0) body.push(cells("td", ["nothing"]));
  return element("table", {}, element("caption", { textContent: caption }), element("thead", {}, cells("th", COLUMNS)), element("tbody", {}, ...body));
}

function wordsOf(who, publication, numbers) {
  const what = publication.isMuted ? `${publication.source}, muted` : publication.source;
  if (!numbers) return [who, what, publication.mimeType?.split("/")[1] ?? "", "", "", "", "", ""];
  const isVideo = Boolean(numbers.width);
  const layer = numbers.isOut ? numbers.layers.join(" ") : layerName(publication, numbers.width, numbers.height);
  return [
    who,
    what,
    [numbers.codec, numbers.scalability].filter(Boolean).join(" "),
    isVideo ? `${numbers.width}x${numbers.height} ${layer}`.trim() : "",
    isVideo ? Math.round(numbers.framesPerSecond) : "",
    bits(numbers.bitrate),
    numbers.lost ?? "",
    numbers.jitterMs === undefined ? "" : milliseconds(numbers.jitterMs),
  ];
}

function percent(ratio) {
  return ratio === undefined ? "unknown" : `${(ratio * 100).toFixed(1)} %`;
}
