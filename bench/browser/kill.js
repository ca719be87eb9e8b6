// What people of a node see when it dies: the times at which each frame was shown, and the longest time without one.

/** Runs in the page: notes each frame that a video element shows, and keeps a small picture of it when asked to. */
function inPage() {
  const shown = new Map();
  const followed = new WeakSet();
  const SIZE = { width: 96, height: 54 };

  function follow(element, pictures) {
    if (followed.has(element)) return;
    followed.add(element);
    // A client that begins anew shows the track in another element.
    const frames = shown.get(element.dataset.sid) ?? [];
    shown.set(element.dataset.sid, frames);
    const canvas = Object.assign(document.createElement("canvas"), SIZE);
    const context = canvas.getContext("2d");
    const note = (_, { presentedFrames }) => {
      // Presented before this is called, and never more than a frame's time.
      const frame = { at: performance.timeOrigin + performance.now(), number: presentedFrames };
      if (pictures) {
        context.drawImage(element, 0, 0, SIZE.width, SIZE.height);
        frame.picture = canvas.toDataURL("image/jpeg", 0.6);
      }
      frames.push(frame);
      element.requestVideoFrameCallback(note);
    };
    element.requestVideoFrameCallback(note);
  }

  globalThis.popFrames = {
    begin: (pictures) => {
      const all = () => document.querySelectorAll("video[data-sid]").forEach((element) => follow(element, pictures));
      all();
      new MutationObserver(all).observe(document.body, { childList: true });
    },
    of: (sid) => shown.get(sid) ?? [],
  };
}

/** From now on the frames of all tracks that `person` (of livekit.js) shows are noted. */
export async function beginFrames(person, { pictures = false } = {}) {
  await person.page.evaluate(`globalThis.popFrames ?? (${inPage})(); globalThis.popFrames.begin(${pictures})`);
}

/** `{ at, number, picture }` of each frame of a track: milliseconds since 1970, the browser's count, a data URL. */
export async function framesOf(person, sid) {
  return person.page.evaluate((track) => globalThis.popFrames.of(track), sid);
}

/** The longest time without a frame that ended after `from`: `{ gap, begin, end }` in milliseconds. Endless when none came. */
export function longestGap(frames, from) {
  let longest = { gap: 0, begin: from, end: from };
  for (let i = 1; i < frames.length; i++) {
    const [begin, end] = [frames[i - 1].at, frames[i].at];
    if (end > from && end - begin > longest.gap) longest = { gap: end - begin, begin, end };
  }
  const last = frames.at(-1)?.at ?? 0;
  return last > from ? longest : { gap: Infinity, begin: last, end: Infinity };
}
