// A lab's button: the node that carries this call's media dies as kill -9 ends it, and the page tells for how long the picture stood still.

/** A picture that stands still for less is no gap: encoders skip frames. */
const GAP_MIN_MS = 150;
/** The picture goes on when it has for so long. */
const CALM_MS = 1_000;
const PATIENCE_MS = 15_000;

/** Whether the node is a lab's. */
export async function isLab() {
  const response = await fetch("/demo/crash").catch(() => undefined);
  return response?.ok ? (await response.json()).lab : false;
}

/** Ends the node that carries `sid`, of whom `token` is. The answer never comes: whoever could give it is dead. */
export async function crash(token, sid) {
  const response = await fetch(`/demo/crash?reconnect=1&sid=${sid}`, { method: "POST", headers: { Authorization: `Bearer ${token}` } }).catch(() => undefined);
  if (response && response.status < 500) throw new Error(`The node refuses: ${(await response.text()).trim()}`);
}

/** The longest time without a new frame in `video` from now on, in milliseconds, when it has gone on; undefined when it does not. */
export function longestGap(video) {
  const begin = performance.now();
  let [last, longest, ended] = [begin, 0, begin];
  return new Promise((done) => {
    let request;
    const look = setInterval(() => {
      const now = performance.now();
      const goesOn = longest >= GAP_MIN_MS && now - ended >= CALM_MS && now - last < GAP_MIN_MS;
      if (!goesOn && now - begin < PATIENCE_MS) return;
      clearInterval(look);
      video.cancelVideoFrameCallback(request);
      done(goesOn ? Math.round(longest) : undefined);
    }, 100);
    const note = () => {
      const now = performance.now();
      if (now - last > longest) [longest, ended] = [now - last, now];
      last = now;
      request = video.requestVideoFrameCallback(note);
    };
    request = video.requestVideoFrameCallback(note);
  });
}
