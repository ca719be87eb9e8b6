// LiveKit's own client in a page: joins a room of a node and tells what it sees. Nothing of it is changed.

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { once } from "node:events";

const dist = new URL("./node_modules/livekit-client/dist/", import.meta.url);
const SCRIPTS = ["livekit-client.umd.js", "livekit-client.e2ee.worker.js"];

/** A page that has loaded the library, on an origin of its own. */
export async function serveLiveKitPage() {
  const scripts = new Map(await Promise.all(SCRIPTS.map(async (name) => [`/${name}`, await readFile(new URL(name, dist))])));
  const server = createServer((request, response) => {
    const script = scripts.get(request.url);
    response.setHeader("Content-Type", script ? "text/javascript" : "text/html");
    response.end(script ?? '<!doctype html><title>rooms</title><script src="/livekit-client.umd.js"></script><body></body>');
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return { url: `http://127.0.0.1:${server.address().port}/`, close: () => server.close() };
}

/** What runs in the page; `globalThis.popRoom` is its interface. */
function inPage() {
  const { Room, RoomEvent, Track, LogLevel, setLogLevel } = globalThis.LivekitClient;
  const log = [];
  // Of each line, in milliseconds since 1970.
  const times = [];
  for (const level of ["debug", "info", "warn", "error"]) {
    const write = console[level].bind(console);
    console[level] = (...words) => {
      log.push(`${level}: ${words.filter((word) => typeof word === "string").join(" ")}`);
      times.push(performance.timeOrigin + performance.now());
      if (log.length > 4000) [log, times].forEach((list) => list.shift());
      write(...words);
    };
  }
  // The library takes the console as it is now.
  setLogLevel(LogLevel.debug);
  let room;
  const events = [];

  async function join(url, token, { passphrase, policy, ...options } = {}, connect = {}) {
    // The library's public option: a first retry at once, then its own.
    if (policy) options.reconnectPolicy = { nextRetryDelayInMs: ({ retryCount }) => (retryCount < 10 ? 50 * retryCount : null) };
    if (passphrase) {
      const keyProvider = new globalThis.LivekitClient.ExternalE2EEKeyProvider();
      await keyProvider.setKey(passphrase);
      options.encryption = { keyProvider, worker: new Worker("/livekit-client.e2ee.worker.js") };
    }
    room = new Room(options);
    if (passphrase) await room.setE2EEEnabled(true);
    for (const [name, event] of Object.entries(RoomEvent)) {
      room.on(event, (...values) => events.push({ name, at: performance.now(), text: values.map(describe) }));
    }
    room.on(RoomEvent.TrackSubscribed, (track) => {
      const element = track.attach();
      element.dataset.sid = track.sid;
      document.body.append(element);
    });
    room.on(RoomEvent.TrackUnsubscribed, (track) => track.detach().forEach((element) => element.remove()));
    await room.connect(url, token, connect);
    return { sid: room.localParticipant.sid, identity: room.localParticipant.identity, room: room.name };
  }

  function describe(value) {
    if (value === undefined || value === null || typeof value !== "object") return String(value);
    if (value instanceof Uint8Array) return new TextDecoder().decode(value);
    return value.sid ?? value.trackSid ?? value.identity ?? value.message ?? value.constructor?.name ?? "object";
  }

  const remotes = () =>
    [...room.remoteParticipants.values()].map((person) => ({
      sid: person.sid,
      identity: person.identity,
      metadata: person.metadata,
      attributes: person.attributes,
      tracks: [...person.trackPublications.values()].map((publication) => ({
        sid: publication.trackSid,
        source: publication.source,
        kind: publication.kind,
        muted: publication.isMuted,
        subscribed: publication.isSubscribed,
        mime: publication.mimeType,
      })),
    }));

  /** Frames and bytes of each subscribed track. */
  async function received() {
    const found = {};
    for (const person of room.remoteParticipants.values()) {
      for (const publication of person.trackPublications.values()) {
        if (!publication.track) continue;
        const report = await publication.track.receiver.getStats();
        for (const row of report.values()) {
          if (row.type !== "inbound-rtp") continue;
          found[publication.trackSid] = {
            kind: row.kind,
            bytes: row.bytesReceived,
            packets: row.packetsReceived,
            lost: row.packetsLost,
            frames: row.framesDecoded,
            width: row.frameWidth,
            freezes: row.freezeCount,
            samples: row.totalSamplesReceived,
            energy: row.totalAudioEnergy,
            concealed: row.concealedSamples,
            mediaTrack: publication.track.mediaStreamTrack.id,
          };
        }
      }
    }
    return found;
  }

  /** Lets the sound that is played be so much older, so that what is repaired comes in time. */
  function buffer(sid, milliseconds) {
    publicationOf(sid).track.receiver.jitterBufferTarget = milliseconds;
  }

  /** Packets and frames of each stream that is sent, by RID. */
  async function sent() {
    const found = {};
    for (const publication of room.localParticipant.trackPublications.values()) {
      for (const row of (await publication.track.sender.getStats()).values()) {
        if (row.type !== "outbound-rtp" || row.kind !== "video") continue;
        const { packetsSent: packets, framesSent: frames, frameWidth: width, active, keyFramesEncoded: keyframes, pliCount: plis } = row;
        found[row.rid ?? ""] = { packets, frames, width, active, keyframes, plis };
      }
    }
    return found;
  }

  const publicationOf = (sid) =>
    [...room.remoteParticipants.values()].map((person) => person.trackPublications.get(sid)).find((publication) => publication);

  /** Publishes a sound of this loudness (0 to 1). */
  async function tone(gain) {
    const context = new AudioContext();
    const [oscillator, volume, out] = [context.createOscillator(), context.createGain(), context.createMediaStreamDestination()];
    volume.gain.value = gain;
    oscillator.connect(volume).connect(out);
    oscillator.start();
    const publication = await room.localParticipant.publishTrack(out.stream.getAudioTracks()[0], { source: Track.Source.Microphone, dtx: false });
    return publication.trackSid;
  }

  globalThis.popRoom = {
    join,
    remotes,
    received,
    sent,
    tone,
    buffer,
    /** 0: low, 1: medium, 2: high. */
    quality: (sid, quality) => publicationOf(sid).setVideoQuality(quality),
    enable: (sid, enabled) => publicationOf(sid).setEnabled(enabled),
    speakers: () => room.activeSpeakers.map((person) => person.identity),
    grades: () => [...room.remoteParticipants.values(), room.localParticipant].map((person) => person.connectionQuality),
    /** For what runs in the page as well. */
    room: () => room,
    state: () => room.state,
    metadata: () => room.metadata,
    events: () => events,
    names: () => events.map((event) => event.name),
    log: () => log,
    /** When the first line with these words was written since `since`. */
    logged: (words, since = 0) => times.find((at, i) => at >= since && log[i].includes(words)),
    camera: async (on, capture, publish) => (await room.localParticipant.setCameraEnabled(on, capture, publish))?.trackSid,
    microphone: async (on) => (await room.localParticipant.setMicrophoneEnabled(on))?.trackSid,
    unpublish: async (source) => {
      const publication = room.localParticipant.getTrackPublication(Track.Source[source]);
      await room.localParticipant.unpublishTrack(publication.track);
    },
    cutSocket: () => room.simulateScenario("signal-reconnect"),
    simulate: (scenario) => room.simulateScenario(scenario),
    leave: () => room.disconnect(),
  };
}

/** Opens the page in a browser of browsers.js and gives its room's interface as functions. */
export async function openRoom(browser, page) {
  const client = await browser.open(page.url);
  await client.page.evaluate(`(${inPage})()`);
  const call = (name) => (...values) => client.page.evaluate(`globalThis.popRoom.${name}(...${JSON.stringify(values)})`);
  const names = ["join", "remotes", "received", "sent", "tone", "buffer", "quality", "enable", "speakers", "grades", "state", "metadata", "events", "names", "log", "logged", "camera", "microphone", "unpublish", "cutSocket", "simulate", "leave"];
  return { page: client.page, ...Object.fromEntries(names.map((name) => [name, call(name)])) };
}
