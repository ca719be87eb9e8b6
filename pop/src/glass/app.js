// What this node says of itself, of the other nodes and of the other PoPs, asked again every two seconds. Names come from other PoPs: all
// text is set as text, and the page's policy lets nothing else be done with it.

import { drawRing } from "/glass/ring.js";
import { describeEvent, reasons, since, rate, bytes, milliseconds, percent, tone } from "/glass/words.js";

const PAUSE_MS = 2000;
const TIMEOUT_MS = 5000;
/** Rows of a table that may be long; the API has the rest. */
const ROWS_MAX = 100;
/** PoPs in the matrix of all paths. */
const MATRIX_MAX = 24;

const $ = (id) => document.getElementById(id);

/** An element with text or children; `class` and `title` and others as attributes. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined && value !== "") element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== undefined && child !== null && child !== ""));
  return element;
}

const chip = (text, kind = "") => make("span", { class: `chip ${kind}` }, text);
const soft = (text) => make("span", { class: "soft" }, text);

/** A table: columns are `[title, kind]`, a row is a list of cells, each text, an element, or a list of both. */
function table(columns, rows, { cards = true, more = 0 } = {}) {
  const head = make("thead", {}, make("tr", {}, ...columns.map(([title, kind]) => make("th", { class: kind === "figure" ? "figure" : "", scope: "col" }, title))));
  const body = make("tbody");
  for (const cells of rows) {
    const row = make("tr");
    cells.forEach((cell, i) => row.append(make("td", { class: columns[i][1] ?? "", "data-title": columns[i][0] }, ...[cell ?? "–"].flat())));
    body.append(row);
  }
  const made = [make("div", { class: "scroll" }, make("table", { class: cards ? "cards" : "" }, head, body))];
  if (more > 0) made.push(make("p", { class: "note" }, `and ${more} more: /api/v1/status and /api/v1/sessions have all`));
  return made;
}

/** Sections that there is nothing to say of are not there. */
function show(id, is_there) {
  $(id).hidden = !is_there;
}

// The last answer, and the counters of the one before, for rates.
let last;
let before = { at: 0, counters: new Map() };

const countersOf = ({ status }) => {
  const of = (kind, id, it, names) => names.map((name) => [`${kind} ${id} ${name}`, it[name]]);
  const links = status.links.flatMap((link) => of("link", link.id, link, ["bytes_in", "bytes_out"]));
  return new Map([...links, ...status.workers.flatMap((it) => of("worker", it.worker, it, ["rtp_packets_in", "rtp_packets_out"]))]);
};

/** Of a counter: per second since the answer before; undefined when that is not known. */
function perSecond(key, value) {
  const old = before.counters.get(key);
  const seconds = (last.at - before.at) / 1000;
  return old === undefined || value < old || seconds <= 0 ? undefined : (value - old) / seconds;
}

function showHead(status) {
  const name = `${status.node}.${status.pop}`;
  document.title = `${name}: pop looking glass`;
  $("name").textContent = name;
  const states = [];
  if (status.draining) states.push(chip("draining", "warn"));
  else if (status.gray) states.push(chip("gray: media does not come back", "bad"));
  else if (status.ready) states.push(chip("ready", "good"));
  else states.push(chip("not ready", "bad"));
  $("states").replaceChildren(...states);
  const fact = (title, text) => make("div", {}, make("dt", {}, title), make("dd", {}, text));
  $("facts").replaceChildren(
    fact("PoP", status.pop),
    fact("Release", status.version),
    fact("Up", since(status.uptime_ms)),
    fact("Sessions", `${status.sessions}`),
    fact("People here", `${status.participants}`),
    fact("In other PoPs", `${status.overlay.participants ?? 0}`),
  );
}

function showMesh(status, sessions) {
  const { overlay } = status;
  show("mesh", overlay.pops.length > 0);
  show("ways", overlay.pops.length > 0);
  if (overlay.pops.length === 0) return;
  const up = overlay.pops.filter(({ state }) => state === "up").length;
  $("mesh-note").textContent = `this one and ${overlay.pops.length} others, ${up} of them up; ${overlay.changes} changes of ways since the start`;
  drawRing($("ring"), status, peopleByPop(status, sessions));
  const routes = new Map(overlay.routes.map((route) => [route.to, route]));
  const row = (pop) => {
    const route = routes.get(pop.pop);
    const state = pop.state !== "up" ? chip("away", "bad") : pop.draining ? chip("draining", "warn") : chip("up", "good");
    if (!route) return [pop.pop, state, make("span", { class: "bad" }, "none"), undefined, undefined, undefined];
    return [
      pop.pop,
      state,
      [
        make("span", { class: route.way === "direct" ? "" : "warn" }, route.way),
        soft(route.backup ? `else ${route.backup}` : "no other"),
        route.in_use && route.in_use !== route.way ? soft(`now ${route.in_use}`) : "",
      ],
      milliseconds(route.cost_ms),
      route.direct_ms === null ? make("span", { class: "bad" }, "none") : milliseconds(route.direct_ms),
      [reasons(route), soft(`for ${since(route.age_ms)}`)],
    ];
  };
  $("ways-table").replaceChildren(
    ...table(
      [["PoP", "name"], ["State"], ["Way"], ["Cost", "figure"], ["Direct", "figure"], ["Why"]],
      overlay.pops.slice(0, ROWS_MAX).map(row),
      { more: overlay.pops.length - ROWS_MAX },
    ),
  );
}

/** The PoP of a person who is not in this one, by the name or the id of the node. */
function popOf(person, status) {
  if (person.local) return status.pop;
  const node = person.node ?? "";
  if (status.nodes.some((other) => other.node === node)) return status.pop;
  return status.links.find((link) => link.id === node || `${link.node}.${link.pop}` === node)?.pop;
}

function peopleByPop(status, sessions) {
  const count = new Map();
  for (const { participants } of sessions) {
    for (const person of participants) {
      const pop = popOf(person, status);
      if (pop !== undefined) count.set(pop, (count.get(pop) ?? 0) + 1);
    }
  }
  return count;
}

function showRooms(status, sessions) {
  const spans = status.overlay.sessions ?? 0;
  $("rooms-note").textContent = spans > 0 ? `${sessions.length}, ${spans} of them across PoPs` : `${sessions.length}`;
  if (sessions.length === 0) {
    $("rooms-table").replaceChildren(make("p", { class: "empty" }, "Nobody is here."));
    return;
  }
  const busiest = [...sessions].sort((a, b) => b.participants.length - a.participants.length);
  const row = ({ id, participants }) => {
    const places = new Map();
    let away = 0;
    let [tracks, cross] = [0, 0];
    for (const person of participants) {
      const place = person.local ? `${status.node} (here)` : (person.node ?? "?");
      places.set(place, [...(places.get(place) ?? []), person.name || person.identity]);
      if (person.state === "away") away++;
      tracks += person.tracks.length;
      cross += person.tracks.filter((track) => track.links?.length > 0).length;
    }
    const names = (people) => people.slice(0, 4).join(", ") + (people.length > 4 ? ` and ${people.length - 4} more` : "");
    const who = [...places].sort().map(([place, people]) => make("div", {}, make("b", {}, place), ` ${names(people)}`));
    return [id, [`${participants.length}`, away > 0 ? make("span", { class: "bad" }, ` (${away} away)`) : ""], who, `${tracks}`, `${cross}`];
  };
  $("rooms-table").replaceChildren(
    ...table(
      [["Room", "name"], ["People", "figure"], ["Where"], ["Tracks", "figure"], ["Over links", "figure"]],
      busiest.slice(0, ROWS_MAX).map(row),
      { more: busiest.length - ROWS_MAX },
    ),
  );
}

function showLinks(status) {
  show("links", status.links.length > 0);
  const own = status.pop;
  const row = (link) => {
    const per = (what) => perSecond(`link ${link.id} ${what}`, link[what]);
    const keys = link.api_keys;
    const lost = link.lost / Math.max(1, link.lost + link.datagrams_in);
    const keyText = keys.slice(0, 4).join(", ") + (keys.length > 4 ? ` and ${keys.length - 4} more` : "");
    return [
      [link.pop === own ? link.node : `${link.node}.${link.pop}`, soft(`${link.state} for ${since(link.age_ms)}${link.way ? `, ${link.way}` : ""}`)],
      link.rtt_ms === null ? undefined : [milliseconds(link.rtt_ms), soft(`± ${milliseconds(link.jitter_ms)}`)],
      [
        `${rate(per("bytes_in"))} / ${rate(per("bytes_out"))}`,
        soft(`${bytes(link.bytes_in)} / ${bytes(link.bytes_out)}`),
        link.transit_bytes_in + link.transit_bytes_out > 0 ? soft(`for others ${bytes(link.transit_bytes_in)} / ${bytes(link.transit_bytes_out)}`) : "",
      ],
      `${link.tracks_in} / ${link.tracks_out}`,
      [make("span", { class: tone(lost) }, percent(lost)), soft(`${link.lost} lost`)],
      [`${link.repaired}`, soft(link.dropped > 0 ? `${link.dropped} refused` : "none refused")],
      link.limit_kbps === null ? "none" : [make("span", { class: "warn" }, `${link.limit_kbps} kbit/s`), soft(`${link.congested} not sent`)],
      keys.length === 0 ? make("span", { class: "soft" }, link.pop === own ? "own PoP" : "none: shares no session") : keyText,
    ];
  };
  const columns = [["Node", "name"], ["Round trip", "figure"], ["Traffic", "figure"], ["Tracks", "figure"], ["Lost", "figure"], ["Repaired", "figure"]];
  $("links-table").replaceChildren(
    ...table([...columns, ["Limit", "figure"], ["API keys"]], status.links.slice(0, ROWS_MAX).map(row), { more: status.links.length - ROWS_MAX }),
  );
}

function showNodes(status) {
  show("nodes", status.nodes.length > 0 || status.vips.length > 0);
  const row = (node) => [
    node.node,
    node.state !== "up" ? chip("away", "bad") : node.draining ? chip("draining", "warn") : chip("up", "good"),
    `${node.participants}`,
    `${node.capacity}`,
    `${(node.load / 10).toFixed(1)} %`,
    `${node.incarnation.start}`,
    node.mesh ?? "none",
  ];
  const columns = [["Node", "name"], ["State"], ["People", "figure"], ["Place for", "figure"], ["Load", "figure"], ["Start", "figure"], ["Control links at"]];
  $("nodes-table").replaceChildren(...(status.nodes.length > 0 ? table(columns, status.nodes.map(row)) : []));
  const vip = ({ address, holder, held }) => [address, holder ?? make("span", { class: "bad" }, "nobody"), held ? "yes" : "no"];
  $("vips-table").replaceChildren(...(status.vips.length > 0 ? table([["Service address", "name"], ["Is at"], ["Here"]], status.vips.map(vip)) : []));
}

function showMatrix({ overlay, pop }) {
  const names = [...new Set([pop, ...overlay.pops.map((other) => other.pop), ...overlay.paths.flatMap(({ from, to }) => [from, to])])];
  show("matrix", overlay.paths.length > 0);
  if (overlay.paths.length === 0) return;
  const shown = [names[0], ...names.slice(1).sort()].slice(0, MATRIX_MAX);
  const paths = new Map(overlay.paths.map((path) => [JSON.stringify([path.from, path.to]), path]));
  // Who cannot be heard tells nothing: that says nothing of its paths.
  const heard = new Set(overlay.paths.map(({ from }) => from));
  const cell = (from, to) => {
    if (from === to) return "·";
    const path = paths.get(JSON.stringify([from, to]));
    if (!path && !heard.has(from)) return make("span", { class: "soft" }, "?");
    if (!path) return make("span", { class: "bad" }, "none");
    return [milliseconds(path.rtt_ms), " ", make("span", { class: tone(path.loss_out) }, percent(path.loss_out))];
  };
  const columns = [["From", "name"], ...shown.map((to) => [`to ${to}`, ""])];
  const rows = shown.map((from) => [from, ...shown.map((to) => cell(from, to))]);
  $("matrix-table").replaceChildren(...table(columns, rows, { cards: false, more: names.length - shown.length }));
}

function showEvents({ overlay, pop }) {
  const events = [...(overlay.events ?? [])].reverse();
  const line = (event) => {
    const at = new Date(event.at_ms);
    const { text, kind } = describeEvent(event, pop);
    return make("li", {}, make("time", { datetime: at.toISOString(), title: at.toString() }, at.toLocaleTimeString([], { hour12: false })), make("span", { class: kind }, text));
  };
  $("events-list").replaceChildren(...(events.length > 0 ? events.map(line) : [make("li", { class: "empty" }, "Nothing has happened yet.")]));
}

function showWorkers(status) {
  const row = (worker) => {
    const per = (what) => {
      const value = perSecond(`worker ${worker.worker} ${what}`, worker[what]);
      return value === undefined ? "–" : `${Math.round(value)}`;
    };
    return [
      `${worker.worker}`,
      worker.gray ? chip("gray", "bad") : worker.backend,
      worker.core === null ? "any" : `${worker.core}`,
      `${worker.transports}`,
      `${per("rtp_packets_in")} / ${per("rtp_packets_out")}`,
      `${worker.dropped_packets}`,
    ];
  };
  const columns = [["Worker", "name"], ["By"], ["Core", "figure"], ["Clients", "figure"], ["RTP packets/s in / out", "figure"], ["Dropped", "figure"]];
  $("workers-table").replaceChildren(...table(columns, status.workers.map(row)));
}

let answered_at;

function render() {
  if (!last) return;
  const { status, sessions } = last;
  showHead(status);
  const is_alone = status.nodes.length === 0 && status.links.length === 0 && status.overlay.pops.length === 0;
  show("alone", is_alone);
  showMesh(status, sessions);
  showRooms(status, sessions);
  showLinks(status);
  showNodes(status);
  showMatrix(status);
  showEvents(status);
  showWorkers(status);
}

async function ask(route) {
  const answer = await fetch(route, { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
  if (!answer.ok) throw new Error(`it answers ${answer.status}`);
  return answer.json();
}

async function turn() {
  try {
    const [status, { sessions }] = await Promise.all([ask("/api/v1/status"), ask("/api/v1/sessions")]);
    if (last) before = { at: last.at, counters: countersOf(last) };
    last = { status, sessions, at: performance.now() };
    answered_at = new Date();
    render();
    document.body.classList.remove("silent");
    $("silence").hidden = true;
    $("pulse").textContent = `at ${answered_at.toLocaleTimeString([], { hour12: false })}`;
    document.body.dataset.turn = `${Number(document.body.dataset.turn ?? 0) + 1}`;
  } catch (error) {
    // A page that cannot show what came is no better than one to which nothing came, and says which it is.
    const why = error instanceof TypeError && error.message.includes("fetch") ? "no connection" : error.name === "TimeoutError" ? `nothing for ${TIMEOUT_MS / 1000} s` : error.message;
    document.body.classList.add("silent");
    $("pulse").textContent = "no answer";
    const when = answered_at ? ` What is below is from ${answered_at.toLocaleTimeString([], { hour12: false })}.` : "";
    $("silence").textContent = `The node does not answer (${why}); it is asked again every ${PAUSE_MS / 1000} s.${when}`;
    $("silence").hidden = false;
  }
}

function setUpTheme() {
  const light = matchMedia("(prefers-color-scheme: light)");
  const is_light = () => (sessionStorage.getItem("theme") ?? (light.matches ? "light" : "dark")) === "light";
  const apply = () => {
    const theme = sessionStorage.getItem("theme");
    if (theme) document.documentElement.dataset.theme = theme;
    $("theme").textContent = is_light() ? "Dark theme" : "Light theme";
  };
  $("theme").addEventListener("click", () => {
    sessionStorage.setItem("theme", is_light() ? "dark" : "light");
    apply();
  });
  light.addEventListener("change", apply);
  apply();
}

setUpTheme();
addEventListener("resize", render);
for (;;) {
  // Who looks elsewhere asks for nothing.
  if (!document.hidden) await turn();
  await new Promise((done) => setTimeout(done, document.hidden ? 500 : PAUSE_MS));
}
