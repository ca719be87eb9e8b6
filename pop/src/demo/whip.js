// WHIP (RFC 9725) and WHEP: one POST carries the offer there and the answer back, one DELETE ends it.

/** What the node said when it did not answer 201; `message` is for people. */
export class Refused extends Error {
  constructor(status, message, retryAfterS) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

/** Codecs that both the node passes through and this browser can send, in the order the browser prefers. */
export function sendableCodecs() {
  const passed = ["VP8", "VP9", "H264", "AV1"];
  const able = RTCRtpSender.getCapabilities?.("video")?.codecs ?? [];
  return passed.filter((name) => able.some((codec) => isCodec(codec, name)));
}

/** Publishes `stream`. `codec` is a name of `sendableCodecs`, or empty for the browser's choice; `bitrateMax` is in bit/s. */
export async function publish({ endpoint, token, stream, codec, bitrateMax }) {
  const pc = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
  for (const track of stream.getTracks()) {
    const init = { direction: "sendonly", streams: [stream] };
    if (track.kind === "video" && bitrateMax) init.sendEncodings = [{ maxBitrate: bitrateMax }];
    const transceiver = pc.addTransceiver(track, init);
    if (track.kind === "video" && codec) preferCodec(transceiver, codec);
  }
  return new Session(pc, await exchange(pc, endpoint, token));
}

/** Watches a room. `session.stream` fills with tracks as the node sends them. */
export async function watch({ endpoint, token }) {
  const pc = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
  const stream = new MediaStream();
  pc.addTransceiver("video", { direction: "recvonly" });
  pc.addTransceiver("audio", { direction: "recvonly" });
  pc.addEventListener("track", (event) => stream.addTrack(event.track));
  const session = new Session(pc, await exchange(pc, endpoint, token));
  session.stream = stream;
  return session;
}

/** One running WHIP or WHEP session. */
export class Session {
  constructor(pc, remove) {
    this.pc = pc;
    this.remove = remove;
  }

  /** Ends it here and at the node. The node hears it first: after a closed connection it knows the resource no more. */
  async stop() {
    await this.remove();
    this.pc.close();
  }
}

/** Posts the offer and applies the answer; returns what deletes the session again. The offer goes without candidates: the
 * node is ICE-lite and learns our address from our checks. */
async function exchange(pc, endpoint, token) {
  const authorization = { Authorization: `Bearer ${token}` };
  try {
    await pc.setLocalDescription();
    const response = await fetch(endpoint, {
      method: "POST",
      headers: { ...authorization, "Content-Type": "application/sdp" },
      body: pc.localDescription.sdp,
    }).catch(() => {
      throw new Refused(0, "The node does not answer. Is it running, and is this page allowed to reach it?");
    });
    const body = await response.text();
    if (response.status !== 201) throw refusal(response, body);
    const location = response.headers.get("Location");
    const resource = location && new URL(location, response.url);
    const remove = async () => {
      // keepalive lets the request outlive a tab that is being closed.
      if (resource) await fetch(resource, { method: "DELETE", headers: authorization, keepalive: true }).catch(() => {});
    };
    try {
      await pc.setRemoteDescription({ type: "answer", sdp: body });
    } catch (error) {
      await remove();
      throw error;
    }
    return remove;
  } catch (error) {
    pc.close();
    throw error;
  }
}

function refusal(response, body) {
  const said = plainSentence(body);
  const retryAfterS = Number(response.headers.get("Retry-After")) || 0;
  const meaning = {
    401: "The token is missing, wrong or expired.",
    403: "The token does not allow this.",
    404: "There is no such room or endpoint.",
    503: "The node is full.",
  }[response.status] ?? `The node answered ${response.status}.`;
  return new Refused(response.status, said ? `${meaning} ${said}` : meaning, retryAfterS);
}

/** The sentence of an error body: plain text, or the field that JSON errors put it in. */
function plainSentence(body) {
  let text = body;
  try {
    const json = JSON.parse(body);
    text = json.detail ?? json.error?.message ?? json.error ?? json.message ?? "";
  } catch {
    // Plain text then.
  }
  return String(text).trim().slice(0, 300);
}

function preferCodec(transceiver, name) {
  const able = RTCRtpSender.getCapabilities("video").codecs;
  const wanted = able.filter((codec) => isCodec(codec, name)).sort((a, b) => packetizationMode(b) - packetizationMode(a));
  const repair = able.filter((codec) => isCodec(codec, "rtx"));
  if (wanted.length === 0) throw new Refused(0, `This browser cannot send ${name}.`);
  transceiver.setCodecPreferences([...wanted, ...repair]);
}

function isCodec(codec, name) {
  return codec.mimeType.toLowerCase() === `video/${name.toLowerCase()}`;
}

/** H.264 mode 1 carries frames larger than a packet; mode 0 cannot. */
function packetizationMode(codec) {
  return /packetization-mode=1/.test(codec.sdpFmtpLine ?? "") ? 1 : 0;
}
