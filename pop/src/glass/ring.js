// The PoPs in a circle, this one at the top, with the paths between them and the ways that are taken from here.

import { tone } from "/glass/words.js";

/** More are in the tables alone. */
const POPS_MAX = 16;
/** With more PoPs than these, only paths from here are labelled. */
const LABELLED_MAX = 8;
const DISC = 34;

const SVG = "http://www.w3.org/2000/svg";

function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** A name that fits. */
const short = (name, length) => (name.length > length ? `${name.slice(0, length - 1)}…` : name);

/** Which PoP's paths are looked at; kept while the picture is drawn anew. */
let looked_at;

/** `people`: how many are known in each PoP. */
export function drawRing(place, { pop: here, overlay, version, nodes, draining }, people) {
  const others = overlay.pops;
  const shown = [{ pop: here, state: "up", releases: [version], load: undefined, draining, nodes: nodes.length + 1 }, ...others].slice(0, POPS_MAX);
  const width = Math.max(300, Math.min(760, place.clientWidth || 600));
  const is_narrow = width < 480;
  const disc = is_narrow ? 27 : DISC;
  const height = Math.round(width * (is_narrow ? 1.02 : 0.78));
  const rx = width / 2 - disc - (is_narrow ? 14 : 58);
  const angles = shown.map((_, i) => (2 * Math.PI * i) / shown.length - Math.PI / 2);
  // The lowest of an odd number are not at the circle's lowest point.
  const lowest = Math.max(...angles.map(Math.sin));
  const [top, bottom] = [disc + 10, height - disc - 34];
  const at = new Map(
    shown.map(({ pop }, i) => {
      const y = lowest > -1 ? top + ((bottom - top) * (Math.sin(angles[i]) + 1)) / (lowest + 1) : height / 2;
      return [pop, { x: width / 2 + rx * Math.cos(angles[i]), y }];
    }),
  );
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "PoPs and the paths between them; the tables beside and below say the same" });

  const under = draw("g", {});
  for (const route of overlay.routes) {
    const via = route.way.startsWith("via ") ? route.way.slice(4) : undefined;
    const stops = [here, ...(via === undefined ? [] : [via]), route.to].map((name) => at.get(name));
    if (stops.some((stop) => stop === undefined)) continue;
    const line = draw("polyline", { class: "way", points: stops.map(({ x, y }) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ") });
    line.append(draw("title", {}, `from ${here} to ${route.to}: ${route.way}`));
    under.append(line);
  }
  svg.append(under);

  const paths = new Map(overlay.paths.map((path) => [JSON.stringify([path.from, path.to]), path]));
  const pairs = shown.flatMap((a, i) => shown.slice(i + 1).map((b) => [a.pop, b.pop]));
  const lines = draw("g", {});
  const labels = draw("g", {});
  pairs.forEach(([a, b]) => {
    const seen = [paths.get(JSON.stringify([a, b])), paths.get(JSON.stringify([b, a]))].filter((path) => path !== undefined);
    const [from, to] = [at.get(a), at.get(b)];
    // In a ring of an even number the lines through the middle meet there.
    const is_opposite = shown.length > 2 && Math.abs(from.x + to.x - width) < 8 && Math.abs(from.y + to.y - top - bottom) < 8;
    const share = is_opposite ? 0.34 : 0.5;
    const loss = Math.max(0, ...seen.flatMap((path) => [path.loss_out, path.loss_in]));
    const rtt = seen.length === 0 ? undefined : Math.max(...seen.map((path) => path.rtt_ms));
    const group = draw("g", { class: seen.length === 0 ? "cut" : tone(loss), "data-pops": JSON.stringify([a, b]) });
    const line = draw("line", { class: "path", x1: from.x, y1: from.y, x2: to.x, y2: to.y });
    const words = seen.map((path) => `${path.from} measures ${path.rtt_ms.toFixed(1)} ms ± ${path.jitter_ms.toFixed(1)}, loses ${(path.loss_out * 100).toFixed(1)} % to ${path.to} and ${(path.loss_in * 100).toFixed(1)} % from it`);
    line.append(draw("title", {}, words.length > 0 ? words.join("\n") : `${a} and ${b}: no path`));
    group.append(line);
    lines.append(group);
    if (rtt !== undefined && (shown.length <= LABELLED_MAX || a === here || b === here)) {
      const label = draw("g", { "data-pops": JSON.stringify([a, b]) });
      const [x, y] = [from.x + (to.x - from.x) * share, from.y + (to.y - from.y) * share];
      const is_lossy = tone(loss) !== "good";
      label.append(draw("text", { class: "rtt", x, y: is_lossy ? y - 4 : y + 4 }, `${rtt < 10 ? rtt.toFixed(1) : Math.round(rtt)}`));
      if (is_lossy) label.append(draw("text", { class: `rtt ${tone(loss)}`, x, y: y + 14 }, `${(loss * 100).toFixed(1)} %`));
      labels.append(label);
    }
  });
  svg.append(lines, labels);

  for (const pop of shown) {
    const { x, y } = at.get(pop.pop);
    const is_here = pop.pop === here;
    const group = draw("g", { class: `pop${is_here ? " here" : ""}${pop.state === "up" ? "" : " away"}`, tabindex: 0 });
    group.append(draw("circle", { class: "disc", cx: x, cy: y, r: disc }));
    if (pop.load > 0) {
      const share = Math.min(0.999, pop.load / 1000);
      const end = 2 * Math.PI * share - Math.PI / 2;
      const r = disc - 5;
      const arc = `M ${x} ${y - r} A ${r} ${r} 0 ${share > 0.5 ? 1 : 0} 1 ${x + r * Math.cos(end)} ${y + r * Math.sin(end)}`;
      group.append(draw("path", { class: "load", d: arc }));
    }
    group.append(draw("text", { x, y: y + 1 }, short(pop.pop, is_narrow ? 6 : 8)));
    const count = people.get(pop.pop) ?? 0;
    const is_told = is_here || pop.links > 0;
    const crowd = count === 1 ? "1 person" : count > 0 ? `${count} people` : is_told ? "nobody" : "no link";
    group.append(draw("text", { class: "small", x, y: y + 15 }, crowd));
    const [state, kind] = pop.state !== "up" ? ["away", "bad"] : pop.draining ? ["draining", "warn"] : ["up", "good"];
    group.append(draw("circle", { class: `state ${kind}`, cx: x + disc * 0.72, cy: y - disc * 0.72, r: 6 }));
    const release = pop.releases.join("+");
    const under = is_here ? "this node" : state === "up" ? (is_told ? `load ${(pop.load / 10).toFixed(1)} %` : "") : state;
    const below = y + disc + 15;
    group.append(draw("text", { class: `small below ${kind === "good" ? "" : kind}`, x, y: below }, under));
    if (release !== "") group.append(draw("text", { class: "small below", x, y: below + 13 }, short(release, 14)));
    group.append(draw("title", {}, `${pop.pop}: ${state}${release === "" ? "" : `, release ${release}`}`));
    const look = (name) => () => {
      looked_at = name;
      dim(svg);
    };
    group.addEventListener("pointerenter", look(pop.pop));
    group.addEventListener("pointerleave", look(undefined));
    group.addEventListener("focus", look(pop.pop));
    group.addEventListener("blur", look(undefined));
    svg.append(group);
  }
  const was_focused = place.contains(document.activeElement);
  dim(svg);
  place.replaceChildren(svg);
  if (was_focused && looked_at !== undefined) [...svg.querySelectorAll(".pop")][shown.findIndex(({ pop }) => pop === looked_at)]?.focus();
  if (others.length + 1 > shown.length) {
    const note = document.createElement("p");
    note.className = "note";
    note.textContent = `and ${others.length + 1 - shown.length} more PoPs, in the table alone`;
    place.append(note);
  }
}

/** Paths that do not end at the PoP that is looked at become faint. */
function dim(svg) {
  for (const group of svg.querySelectorAll("[data-pops]")) {
    group.classList.toggle("faint", looked_at !== undefined && !JSON.parse(group.dataset.pops).includes(looked_at));
  }
}
