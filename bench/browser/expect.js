// Waiting for what real clients do in real time, and the checks that several tests share.

import assert from "node:assert/strict";

export const pause = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));

/** Asks `look` until its answer is truthy; fails with the last answer after `seconds`. */
export async function until(what, look, seconds = 20) {
  const end = Date.now() + seconds * 1000;
  for (;;) {
    const seen = await look();
    if (seen) return seen;
    assert.ok(Date.now() < end, `${what}: not within ${seconds} s`);
    await pause(0.2);
  }
}

/** The client decodes pictures and hears sound. */
export async function untilPlaying(viewer, seconds = 25) {
  let last;
  const playing = async () => {
    last = await viewer.stats();
    return last.video.framesDecoded > 5 && last.audio.totalAudioEnergy > 0;
  };
  await until("frames and sound", playing, seconds).catch((error) => {
    assert.fail(`${error.message}; last seen ${JSON.stringify(last)}`);
  });
}

/** What was sent and decoded during `seconds`. */
export async function watchFor(seconds, publisher, viewer) {
  const [sentBefore, seenBefore] = [await publisher.stats(), await viewer.stats()];
  await pause(seconds);
  const [sent, seen] = [await publisher.stats(), await viewer.stats()];
  return {
    seconds: (seen.atMs - seenBefore.atMs) / 1000,
    encoded: sent.video.framesEncoded - sentBefore.video.framesEncoded,
    decoded: seen.video.framesDecoded - seenBefore.video.framesDecoded,
    samples: seen.audio.totalSamplesReceived - seenBefore.audio.totalSamplesReceived,
    energy: seen.audio.totalAudioEnergy - seenBefore.audio.totalAudioEnergy,
    packets: seen.video.packetsReceived - seenBefore.video.packetsReceived,
    lost: seen.video.packetsLost - seenBefore.video.packetsLost,
    nacks: (seen.video.nackCount ?? 0) - (seenBefore.video.nackCount ?? 0),
    seen,
    sent,
  };
}

/** The sum of all samples of a metric, whatever their labels. */
export function sumOf(metrics, name) {
  let sum = 0;
  for (const [key, value] of metrics) if (key === name || key.startsWith(`${name}{`)) sum += value;
  return sum;
}
