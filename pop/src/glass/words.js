// Figures and events in words.

/** A span of time, short. */
export function since(ms) {
  const seconds = Math.floor(ms / 1000);
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

export const milliseconds = (ms) => `${ms < 100 ? ms.toFixed(1) : Math.round(ms)} ms`;

export const percent = (share) => `${(share * 100).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;

export function bytes(count) {
  if (count < 1e6) return `${(count / 1e3).toFixed(1)} kB`;
  return count < 1e9 ? `${(count / 1e6).toFixed(1)} MB` : `${(count / 1e9).toFixed(2)} GB`;
}

/** Bytes per second as bits. */
export function rate(per_second) {
  if (per_second === undefined) return "–";
  const kbps = (per_second * 8) / 1000;
  return kbps < 1000 ? `${Math.round(kbps)} kbit/s` : `${(kbps / 1000).toFixed(1)} Mbit/s`;
}

/** How bad a loss is. */
export function tone(loss) {
  if (loss < 0.005) return "good";
  return loss < 0.03 ? "warn" : "bad";
}

/** Why a way is taken. */
export function reasons({ reason, way, cost_ms, direct_ms }) {
  if (reason === "failed") return "the way before is gone";
  if (reason === "kept") return "kept: another is a little better, or not for long";
  if (way !== "direct" && direct_ms !== null) return `costs ${milliseconds(direct_ms - cost_ms)} less than direct`;
  return "costs least";
}

/** An event as a sentence, and how bad it is. */
export function describeEvent({ what, pop, node, from, way }, own) {
  const who = pop === own ? `node ${node}` : `node ${node} of ${pop}`;
  switch (what) {
    case "way":
      if (way === "none") return { text: `no way to ${pop} (it was ${from})`, kind: "bad" };
      return { text: `to ${pop} ${way === "direct" ? "directly" : way} (before: ${from})`, kind: way === "direct" ? "" : "warn" };
    case "new":
      return { text: `${who} is here`, kind: "" };
    case "restarted":
      return { text: `${who} has begun anew`, kind: "warn" };
    case "away":
      return { text: `${who} is away`, kind: "bad" };
    case "back":
      return { text: `${who} is back`, kind: "good" };
    case "link_up":
      return { text: `a link with ${who}`, kind: "good" };
    case "link_down":
      return { text: `the link with ${who} has ended`, kind: "bad" };
    default:
      return { text: `${what} ${who}`, kind: "" };
  }
}
