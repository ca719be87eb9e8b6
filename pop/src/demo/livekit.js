// LiveKit's client, as the script before this module put it into the page.

// Browsers keep randomUUID for secure pages; the client names messages by it, and plain http on a node's own address is worth a chat.
crypto.randomUUID ??= () => {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const text = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return text.replace(/(.{8})(.{4})(.{4})(.{4})(.{12})/, "$1-$2-$3-$4-$5");
};

export const {
  ConnectionQuality,
  ConnectionState,
  DisconnectReason,
  LocalAudioTrack,
  LocalVideoTrack,
  Room,
  RoomEvent,
  Track,
  VideoQuality,
  createLocalAudioTrack,
  createLocalVideoTrack,
  setLogLevel,
  version,
} = globalThis.LivekitClient;
