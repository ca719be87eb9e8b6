// A picture and a sound that need no device: colour bars, a moving hand, a running clock and a soft chord.

const FRAMES_PER_SECOND = 30;
const BARS = ["#c8c8c8", "#c8c800", "#00c8c8", "#00c800", "#c800c8", "#c80000", "#0000c8"];

/** Starts picture and sound. Returns the stream and what ends it. */
export function startPattern(options = {}) {
  const [picture, sound] = [startPicture(options), startTone()];
  const stop = () => {
    picture.stop();
    sound.stop();
  };
  return { stream: new MediaStream([picture.track, sound.track]), stop };
}

/** Starts the picture. Returns its track and what ends it. */
export function startPicture({ width = 1280, height = 720, label = "pop" } = {}) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { alpha: false, desynchronized: true });
  const picture = pictureTrack(canvas);
  let frame = 0;
  const draw = () => {
    drawFrame(context, width, height, frame++, label);
    picture.push();
  };
  const ticker = new Worker(new URL("./ticker.js", import.meta.url));
  ticker.onmessage = () => {
    draw();
    ticker.postMessage("drawn");
  };
  ticker.postMessage(FRAMES_PER_SECOND);
  draw();
  const stop = () => {
    ticker.terminate();
    picture.stop();
  };
  return { track: picture.track, stop };
}

/** A track of the canvas. A generator is fed by us and goes on in a background tab, where `captureStream` sees no frames;
 * browsers without it get `captureStream`. */
function pictureTrack(canvas) {
  if (!("MediaStreamTrackGenerator" in window)) {
    const track = canvas.captureStream(FRAMES_PER_SECOND).getVideoTracks()[0];
    return { track, push() {}, stop: () => track.stop() };
  }
  const track = new MediaStreamTrackGenerator({ kind: "video" });
  const writer = track.writable.getWriter();
  const push = () => {
    // A full queue means that the encoder does not keep up: this frame is left out.
    if (writer.desiredSize <= 0) return;
    const frame = new VideoFrame(canvas, { timestamp: Math.round(performance.now() * 1000) });
    writer.write(frame).catch(() => frame.close());
  };
  const stop = () => {
    writer.close().catch(() => {});
    track.stop();
  };
  return { track, push, stop };
}

/** Starts the sound. Returns its track and what ends it. A page that nobody has touched yet makes no sound: `resume` after a touch. */
export function startTone() {
  const audio = new AudioContext();
  const out = audio.createMediaStreamDestination();
  const volume = new GainNode(audio, { gain: 0.06 });
  volume.connect(out);
  for (const frequency of [220, 277.18, 329.63]) {
    const tone = new OscillatorNode(audio, { type: "triangle", frequency });
    tone.connect(volume);
    tone.start();
  }
  // A slow swell, so that a listener hears that the sound is live and not stuck.
  const swell = new OscillatorNode(audio, { frequency: 0.5 });
  const depth = new GainNode(audio, { gain: 0.03 });
  swell.connect(depth).connect(volume.gain);
  swell.start();
  const resume = () => audio.resume().catch(() => {});
  resume();
  return { track: out.stream.getAudioTracks()[0], resume, stop: () => audio.close().catch(() => {}) };
}

function drawFrame(context, width, height, frame, label) {
  const barsHeight = Math.round(height * 0.62);
  BARS.forEach((colour, i) => {
    context.fillStyle = colour;
    const left = Math.round((i * width) / BARS.length);
    context.fillRect(left, 0, Math.round(((i + 1) * width) / BARS.length) - left, barsHeight);
  });
  const floor = context.createLinearGradient(0, 0, width, 0);
  floor.addColorStop(0, "#000");
  floor.addColorStop(1, "#fff");
  context.fillStyle = floor;
  context.fillRect(0, barsHeight, width, Math.round(height * 0.08));
  context.fillStyle = "#0b1220";
  context.fillRect(0, Math.round(height * 0.7), width, height);

  drawDial(context, width / 2, height * 0.31, height * 0.22, frame);

  const size = Math.round(height * 0.1);
  context.fillStyle = "#f8fafc";
  context.textBaseline = "middle";
  context.font = `600 ${size}px ui-monospace, monospace`;
  context.textAlign = "left";
  context.fillText(clockText(new Date()), width * 0.04, height * 0.79);
  context.textAlign = "right";
  context.fillText(`#${String(frame).padStart(6, "0")}`, width * 0.96, height * 0.79);
  context.font = `500 ${Math.round(size * 0.45)}px system-ui, sans-serif`;
  context.fillStyle = "#94a3b8";
  context.fillText(`${width} x ${height}, ${FRAMES_PER_SECOND} frames/s`, width * 0.96, height * 0.92);
  context.textAlign = "left";
  context.fillText(label, width * 0.04, height * 0.92);
}

/** One turn of the hand is one second: a stutter is seen at once. */
function drawDial(context, x, y, radius, frame) {
  const angle = ((frame % FRAMES_PER_SECOND) / FRAMES_PER_SECOND) * 2 * Math.PI - Math.PI / 2;
  context.fillStyle = "rgba(11, 18, 32, 0.85)";
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
  context.fillStyle = "#38bdf8";
  context.beginPath();
  context.moveTo(x, y);
  context.arc(x, y, radius * 0.92, -Math.PI / 2, angle);
  context.fill();
  context.fillStyle = "#f8fafc";
  context.beginPath();
  context.arc(x + Math.cos(angle) * radius * 0.92, y + Math.sin(angle) * radius * 0.92, radius * 0.09, 0, 2 * Math.PI);
  context.fill();
}

function clockText(now) {
  return `${now.toTimeString().slice(0, 8)}.${String(now.getMilliseconds()).padStart(3, "0")}`;
}
