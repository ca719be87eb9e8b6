// Small things that every part of the pages needs: elements by id, numbers for people, errors in sentences.

export const byId = (id) => document.getElementById(id);

/** A new element with properties and children. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Bit/s for people. */
export function bits(value) {
  if (value === undefined) return "unknown";
  if (value >= 1e6) return `${(value / 1e6).toFixed(2)} Mb/s`;
  return `${Math.round(value / 1e3)} kb/s`;
}

/** Milliseconds for people. */
export function milliseconds(value) {
  if (value === undefined) return "unknown";
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}

/** What went wrong with a device, in a sentence. */
export function sentenceOf(error) {
  const known = {
    NotAllowedError: "The browser was not allowed to use that source.",
    NotFoundError: "There is no such device on this machine. Use the test pattern.",
    NotReadableError: "Another program uses that device.",
    OverconstrainedError: "The device cannot do that.",
  }[error.name];
  return known ?? error.message;
}

/** Shows a state with a colour: idle, busy, live or bad. */
export function showState(state, kind, text) {
  // An equal text is not set again: a screen reader would read it out every second.
  if (state.textContent === text && state.dataset.kind === kind) return;
  state.dataset.kind = kind;
  state.textContent = text;
}

/** Shows a sentence, or nothing. */
export function showSentence(place, sentence) {
  place.textContent = sentence;
  place.hidden = !sentence;
}

/** Copies `text`; `where` says so for two seconds. */
export async function copy(text, where) {
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

/** No media path: what to look at. */
export function noPathSentence() {
  const loopback = /^(localhost|127\.|\[::1\])/.test(location.hostname);
  if (loopback && navigator.userAgent.includes("Firefox")) {
    return (
      "No media path. Firefox uses loopback addresses only when media.peerconnection.ice.loopback is true in about:config " +
      "and the page may use a microphone or camera. Other browsers need neither."
    );
  }
  return "No media path to the node. Is a firewall between you and its UDP media port?";
}
