// Round trips to one PoP, by ICE checks and by HTTP. No signalling: what an answer would say is in the PoP's pop.json.

/** How long one throw-away connection may take; FACTS: done within half a second. */
const ICE_ROUND_MS = 1_500;
/** After the first check is answered, what else comes within this belongs to the same round. */
const ICE_SETTLE_MS = 250;
const HTTP_TIMEOUT_MS = 5_000;
/** What a PoP may answer: a page must not take what a stranger sends without end. */
const DESCRIPTION_LENGTH_MAX = 65_536;

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const text = (value, length) => (typeof value === "string" ? value.slice(0, length) : "");

/** Reads `base`/.well-known/pop.json and keeps what has the right form. */
export async function describe(base) {
  const answer = await fetch(new URL("/.well-known/pop.json", base), {
    cache: "no-store",
    credentials: "omit",
    signal: AbortSignal.timeout(HTTP_TIMEOUT_MS),
  });
  if (!answer.ok) throw new Error(`pop.json: HTTP ${answer.status}`);
  const body = await answer.text();
  if (body.length > DESCRIPTION_LENGTH_MAX) throw new Error("pop.json is too long");
  const read = JSON.parse(body) ?? {};
  const isCandidate = (c) => /^[0-9a-fA-F:.]{2,45}$/.test(c?.address) && Number.isInteger(c.port) && c.port > 0 && c.port < 65_536;
  const isIceText = (value, min) => typeof value === "string" && value.length >= min && /^[A-Za-z0-9+/]{1,256}$/.test(value);
  const candidates = Array.isArray(read.ice?.candidates) ? read.ice.candidates.filter(isCandidate).slice(0, 16) : [];
  const usable = isIceText(read.ice?.ufrag, 4) && isIceText(read.ice?.pwd, 22) && candidates.length > 0;
  return {
    name: text(read.name, 63) || new URL(base).host,
    region: text(read.region, 63),
    version: text(read.version, 63),
    ice: usable ? { ufrag: read.ice.ufrag, pwd: read.ice.pwd, candidates } : null,
    http: typeof read.http === "string" ? new URL(read.http, base).href : null,
    pops: Array.isArray(read.pops) ? read.pops.filter((pop) => typeof pop === "string").slice(0, 64) : [],
  };
}

/** The answer that the PoP would give to any offer of a data channel. `setup:active` lets the browser wait for a handshake that never
 * comes; the fingerprint is nobody's. */
function answerFor(ice) {
  const lines = [
    "v=0",
    "o=- 1 1 IN IP4 127.0.0.1",
    "s=-",
    "t=0 0",
    "a=ice-lite",
    "a=group:BUNDLE 0",
    "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
    "c=IN IP4 0.0.0.0",
    "a=mid:0",
    `a=ice-ufrag:${ice.ufrag}`,
    `a=ice-pwd:${ice.pwd}`,
    `a=fingerprint:sha-256 ${Array(32).fill("00").join(":")}`,
    "a=setup:active",
    "a=sctp-port:5000",
    ...ice.candidates.map((c, i) => `a=candidate:${i + 1} 1 udp ${2_130_706_431 - i} ${c.address} ${c.port} typ host`),
    "a=end-of-candidates",
  ];
  return { type: "answer", sdp: `${lines.join("\r\n")}\r\n` };
}

/** Milliseconds of each answered check of one throw-away connection; null when none was answered. */
export async function iceRound(ice) {
  const connection = new RTCPeerConnection({ iceServers: [] });
  try {
    connection.createDataChannel("probe");
    await connection.setLocalDescription(await connection.createOffer());
    const started = performance.now();
    await connection.setRemoteDescription(answerFor(ice));
    let answered = 0;
    let read = null;
    while (performance.now() - started < ICE_ROUND_MS) {
      await sleep(25);
      const now = readPairs(await connection.getStats());
      if (now) {
        read = now;
        answered ||= performance.now();
      }
      if (answered && performance.now() - answered > ICE_SETTLE_MS) break;
    }
    return read;
  } finally {
    connection.close();
  }
}

/** The mean round trip of the best pair, in ms: the browser's own clock between a check and its answer. */
function readPairs(stats) {
  let best = null;
  for (const pair of stats.values()) {
    if (pair.type !== "candidate-pair" || !(pair.responsesReceived > 0) || !(pair.totalRoundTripTime > 0)) continue;
    const rtt = (1_000 * pair.totalRoundTripTime) / pair.responsesReceived;
    if (best === null || rtt < best) best = rtt;
  }
  return best;
}

/** Milliseconds from request to answer without what the node took; the connection is warm after the first. */
export async function httpRound(url) {
  const unique = new URL(url);
  unique.searchParams.set("t", `${performance.now()}`);
  const started = performance.now();
  const answer = await fetch(unique, { cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(HTTP_TIMEOUT_MS) });
  const elapsed = performance.now() - started;
  if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
  await answer.arrayBuffer();
  // Timing-Allow-Origin opens the exact times; the browser writes the entry a moment after the answer.
  await sleep(0);
  const [entry] = performance.getEntriesByName(unique.href);
  const exact = entry?.requestStart > 0 && entry.responseStart > 0;
  const inside = entry?.serverTiming?.[0]?.duration ?? 0;
  const rtt = (exact ? entry.responseStart - entry.requestStart : elapsed) - inside;
  performance.clearResourceTimings();
  return Math.max(rtt, 0);
}

/** min, avg and jitter of round trips in ms; null without any. */
export function summary(samples) {
  if (samples.length === 0) return null;
  const sum = samples.reduce((total, sample) => total + sample, 0);
  let differences = 0;
  for (let i = 1; i < samples.length; i++) differences += Math.abs(samples[i] - samples[i - 1]);
  return { min: Math.min(...samples), avg: sum / samples.length, jitter: differences / Math.max(samples.length - 1, 1) };
}
