// The page at /probe: it asks this node for the other PoPs, measures each in turn and ranks them.

import { describe, httpRound, iceRound, summary } from "/probe/measure.js";

const ROUNDS = 6;

const $ = (id) => document.getElementById(id);
// Browsers tell whole milliseconds or little better: one digit after the point is all that means something.
const ms = (value) => (value === undefined ? "" : value.toFixed(1));

/** What is known of each PoP, this node first. */
let pops = [];

function newPop(base) {
  return { base, description: null, fault: null, ice: [], iceLost: 0, http: [] };
}

const ranked = () => {
  const key = (pop) => summary(pop.ice)?.min ?? 1e6 + (summary(pop.http)?.min ?? 1e6);
  return [...pops].sort((a, b) => key(a) - key(b));
};

function report() {
  const round = (s) => s && Object.fromEntries(Object.entries(s).map(([name, value]) => [`${name}_ms`, Number(value.toFixed(3))]));
  return ranked().map((pop, i) => ({
    rank: i + 1,
    url: pop.base,
    name: pop.description?.name ?? null,
    region: pop.description?.region ?? null,
    version: pop.description?.version ?? null,
    ice: round(summary(pop.ice)),
    ice_lost: pop.iceLost,
    http: round(summary(pop.http)),
    error: pop.fault,
  }));
}

function show() {
  const rows = ranked().map((pop, i) => {
    const row = document.createElement("tr");
    const cell = (value, className) => {
      const made = row.insertCell();
      made.textContent = value;
      if (className) made.className = className;
      return made;
    };
    const [ice, http] = [summary(pop.ice), summary(pop.http)];
    row.dataset.best = String(i === 0 && Boolean(ice ?? http));
    cell(String(i + 1));
    const name = cell("");
    const label = document.createElement("span");
    label.className = "name";
    label.textContent = pop.description?.name ?? new URL(pop.base).host;
    const where = document.createElement("span");
    where.className = "where";
    where.textContent = [pop.description?.region, new URL(pop.base).host].filter(Boolean).join(", ");
    name.append(label, where);
    if (pop.fault && !ice && !http) {
      cell(pop.fault, "fault").colSpan = 7;
      return row;
    }
    const tried = pop.ice.length + pop.iceLost;
    for (const value of [ice?.min, ice?.avg, ice?.jitter]) cell(ms(value));
    cell(tried === 0 ? "" : `${pop.iceLost}/${tried}`);
    for (const value of [http?.min, http?.avg, http?.jitter]) cell(ms(value));
    return row;
  });
  $("rows").replaceChildren(...rows);
}

function conclude() {
  const [first, second] = ranked();
  const way = (pop) => (summary(pop.ice) ? ["UDP", summary(pop.ice)] : ["HTTP", summary(pop.http)]);
  const [kind, numbers] = way(first);
  if (!numbers) {
    $("best").textContent = "No PoP answered";
    $("why").textContent = "Neither UDP nor HTTP got through. A firewall or an extension may be in the way.";
    return;
  }
  $("best").textContent = first.description.name;
  const next = second && way(second)[1];
  const ahead = next ? `, ${ms(Math.max(next.min - numbers.min, 0))} ms ahead of ${second.description.name}` : "";
  $("why").textContent = `${ms(numbers.min)} ms by ${kind}${ahead}.`;
}

async function measureRound(pop) {
  if (pop.description.ice) {
    // A browser without WebRTC, or with it forbidden, still has HTTP.
    const rtt = await iceRound(pop.description.ice).catch((error) => {
      pop.fault = String(error.message ?? error);
      return null;
    });
    if (rtt === null) pop.iceLost += 1;
    else pop.ice.push(rtt);
  }
  if (pop.description.http) {
    await httpRound(pop.description.http).then(
      (rtt) => pop.http.push(rtt),
      (error) => (pop.fault = String(error.message ?? error)),
    );
  }
}

async function measure() {
  $("again").disabled = $("copy").disabled = true;
  $("progress").classList.remove("done");
  $("best").textContent = "Measuring";
  const here = newPop(location.origin);
  pops = [here];
  const learn = (pop) =>
    describe(pop.base).then(
      (description) => (pop.description = description),
      (error) => (pop.fault = `It cannot be asked: ${error.message ?? error}`),
    );
  await learn(here);
  const others = new Set((here.description?.pops ?? []).flatMap((pop) => (URL.canParse(pop) ? [new URL(pop).origin] : [])));
  others.delete(location.origin);
  pops.push(...[...others].map(newPop));
  show();
  await Promise.all(pops.slice(1).map(learn));
  const asked = pops.filter((pop) => pop.description);
  // The first request opens the connection; it is not counted.
  await Promise.all(asked.map((pop) => pop.description.http && httpRound(pop.description.http).catch(() => {})));
  // One at a time and in turn: measurements do not disturb each other, and a moment of load meets all.
  for (let round = 0; round < ROUNDS; round++) {
    for (const [i, pop] of asked.entries()) {
      $("why").textContent = `Round ${round + 1} of ${ROUNDS}: ${pop.description.name}`;
      await measureRound(pop);
      $("progress").value = (round * asked.length + i + 1) / (ROUNDS * asked.length);
      show();
    }
  }
  $("progress").classList.add("done");
  conclude();
  document.body.dataset.done = "true";
  $("again").disabled = $("copy").disabled = false;
}

$("again").addEventListener("click", () => {
  delete document.body.dataset.done;
  measure();
});
$("copy").addEventListener("click", async () => {
  const json = JSON.stringify(report(), null, 2);
  try {
    await navigator.clipboard.writeText(json);
    $("copied").textContent = "Copied";
  } catch {
    // Without a secure origin there is no clipboard: the text is shown instead, selected.
    const area = document.createElement("textarea");
    area.value = json;
    area.rows = 12;
    area.readOnly = true;
    area.className = "json";
    area.setAttribute("aria-label", "The measurement as JSON");
    document.querySelector("textarea.json")?.remove();
    $("copy").closest("section").append(area);
    area.select();
    $("copied").textContent = "Press Ctrl+C to copy";
  }
});

// For those who drive the page: the same as the button copies.
globalThis.popProbe = { report };

measure();
