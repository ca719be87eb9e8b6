// LiveKit's client, as the script before this module put it into the page.
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
