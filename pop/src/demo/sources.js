// What a person sends: a picture and a sound, each from a device, made here, or none.

import { LocalAudioTrack, LocalVideoTrack, Track, createLocalAudioTrack, createLocalVideoTrack } from "/demo/livekit.js";
import { startPicture, startTone } from "/demo/pattern.js";

/** Choices that are no device. */
export const NONE = "none";
export const MADE = "made";

const isDevice = (choice) => choice !== NONE && choice !== MADE;

/** A picture for `choice`, or null. `height` is 180 to 1080 for a 16:9 picture. */
export async function openPicture(choice, { height, label }) {
  if (choice === NONE) return null;
  const size = { width: Math.round((height * 16) / 9), height };
  if (isDevice(choice)) {
    const track = await createLocalVideoTrack({ deviceId: choice, resolution: { ...size, frameRate: 30 } });
    return { choice, track, stop: () => track.stop() };
  }
  const made = startPicture({ ...size, label });
  const track = new LocalVideoTrack(made.track, undefined, true);
  track.source = Track.Source.Camera;
  return { choice, track, stop: made.stop };
}

/** A sound for `choice`, or null. */
export async function openSound(choice) {
  if (choice === NONE) return null;
  if (isDevice(choice)) {
    const track = await createLocalAudioTrack({ deviceId: choice });
    return { choice, track, stop: () => track.stop() };
  }
  const made = startTone();
  const track = new LocalAudioTrack(made.track, undefined, true);
  track.source = Track.Source.Microphone;
  return { choice, track, resume: made.resume, stop: made.stop };
}

/** Fills a select with the devices of `kind` and what needs none; keeps what is chosen when it is still there. */
export async function listDevices(select, kind, extra) {
  const chosen = select.value;
  const all = (await navigator.mediaDevices?.enumerateDevices().catch(() => [])) ?? [];
  // Before the person has allowed the kind of device, the browser names one without an id.
  const devices = all.filter((device) => device.kind === kind && device.deviceId);
  const named = { videoinput: "Camera", audioinput: "Microphone", audiooutput: "Loudspeaker" }[kind];
  const options = devices.map((device, i) => new Option(device.label || `${named} ${i + 1}`, device.deviceId));
  select.replaceChildren(...options, ...extra.map(([text, value]) => new Option(text, value)));
  if ([...select.options].some((option) => option.value === chosen)) select.value = chosen;
}

export const PICTURES = [["Test pattern", MADE], ["No picture", NONE]];
export const SOUNDS = [["Test sound", MADE], ["No sound", NONE]];
