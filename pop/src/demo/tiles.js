// One tile for each person and one for each shared screen, as large as the place allows.

import { ConnectionQuality, Track, VideoQuality } from "/demo/livekit.js";
import { bits, byId } from "/demo/words.js";

/** Narrowest tile before the grid scrolls, in CSS pixels. */
const TILE_WIDTH_MIN = 150;

/** Between two tiles, in CSS pixels; call.css has the same. */
const GAP = 8;

/** Layers by the room protocol's quality, as people who read SDP call them. */
const LAYER_NAMES = { [VideoQuality.LOW]: "q", [VideoQuality.MEDIUM]: "h", [VideoQuality.HIGH]: "f" };

/** All tiles of a call. */
export class Tiles {
  constructor(room) {
    this.room = room;
    this.grid = byId("grid");
    this.screens = byId("screens");
    this.tiles = new Map();
    this.sounds = new Map();
    this.observer = new ResizeObserver(() => this.place());
    this.observer.observe(byId("stage"));
  }

  /** Makes the page like the room: what came is shown, what went is removed. Any event of the room leads here. */
  sync() {
    const wanted = new Map();
    for (const participant of this.people()) {
      wanted.set(`${participant.sid} person`, { participant, publication: participant.getTrackPublication(Track.Source.Camera) ?? anyVideo(participant) });
      const screen = participant.getTrackPublication(Track.Source.ScreenShare);
      if (screen) wanted.set(`${participant.sid} screen`, { participant, publication: screen });
    }
    for (const [key, tile] of this.tiles) if (!wanted.has(key)) this.remove(key, tile);
    const loudest = this.room.activeSpeakers[0];
    for (const [key, { participant, publication }] of wanted) {
      const isScreen = key.endsWith(" screen");
      const tile = this.tiles.get(key) ?? this.add(key, participant, isScreen);
      tile.show(publication, participant === loudest);
    }
    this.syncSounds();
    this.place();
  }

  /** Oneself first, the others as they came. */
  people() {
    const others = [...this.room.remoteParticipants.values()];
    return [this.room.localParticipant, ...others.sort((a, b) => (a.joinedAt ?? 0) - (b.joinedAt ?? 0))];
  }

  add(key, participant, isScreen) {
    const tile = new Tile(participant, isScreen);
    this.tiles.set(key, tile);
    (isScreen ? this.screens : this.grid).append(tile.root);
    return tile;
  }

  remove(key, tile) {
    tile.show(undefined, false);
    tile.root.remove();
    this.tiles.delete(key);
  }

  /** Everybody else's sound plays from elements that nobody sees. */
  syncSounds() {
    const wanted = new Set();
    for (const participant of this.room.remoteParticipants.values()) {
      for (const { audioTrack } of participant.audioTrackPublications.values()) if (audioTrack) wanted.add(audioTrack);
    }
    for (const [track, player] of this.sounds) {
      if (wanted.has(track)) continue;
      track.detach(player);
      player.remove();
      this.sounds.delete(track);
    }
    for (const track of wanted) {
      if (this.sounds.has(track)) continue;
      const player = track.attach();
      byId("sounds").append(player);
      this.sounds.set(track, player);
    }
  }

  /** Chooses the number of columns that makes 16:9 tiles largest. */
  place() {
    const stage = byId("stage");
    stage.classList.toggle("shared", this.screens.childElementCount > 0);
    const { clientWidth: width, clientHeight: height } = this.grid;
    const count = this.grid.childElementCount;
    let [columns, best] = [1, 0];
    for (let tried = 1; tried <= count; tried++) {
      const rows = Math.ceil(count / tried);
      const byWidth = (width - GAP * (tried - 1)) / tried;
      const byHeight = (((height - GAP * (rows - 1)) / rows) * 16) / 9;
      const size = Math.floor(Math.min(byWidth, byHeight));
      if (size > best) [columns, best] = [tried, size];
    }
    if (best < TILE_WIDTH_MIN) {
      columns = Math.max(1, Math.min(count, Math.floor((width + GAP) / (TILE_WIDTH_MIN + GAP))));
      best = Math.floor((width - GAP * (columns - 1)) / columns);
    }
    this.grid.style.setProperty("--columns", columns);
    this.grid.style.setProperty("--tile", `${best}px`);
  }

  /** Says at which node each person is; with one node alone there is nothing to say. `hosts`: from identity to node. */
  showHosts(hosts) {
    const isOne = new Set(Object.values(hosts)).size < 2;
    for (const { participant, root, host } of this.tiles.values()) {
      const name = hosts[participant.identity];
      host.hidden = isOne || !name;
      host.textContent = name ?? "";
      host.setAttribute("aria-label", `at node ${name}`);
      root.dataset.node = name ?? "";
    }
  }

  /** A picture of somebody else that is shown. */
  remoteVideo() {
    const others = [...this.tiles.values()].filter(({ participant }) => participant !== this.room.localParticipant);
    return others.map(({ root }) => root.querySelector("video")).find((video) => video?.readyState > 1);
  }

  /** Puts the numbers of a reading of stats.js onto the tiles. */
  showReading(reading) {
    for (const tile of this.tiles.values()) tile.showReading(reading);
  }

  close() {
    this.observer.disconnect();
    for (const [key, tile] of this.tiles) this.remove(key, tile);
    for (const [track, player] of this.sounds) {
      track.detach(player);
      player.remove();
    }
    this.sounds.clear();
  }
}

/** WHIP publishers do not say what their picture shows. */
function anyVideo(participant) {
  return [...participant.videoTrackPublications.values()].find((publication) => publication.source !== Track.Source.ScreenShare);
}

/** One person, or one person's screen. */
class Tile {
  constructor(participant, isScreen) {
    this.participant = participant;
    this.isScreen = isScreen;
    this.track = null;
    this.publication = null;
    this.fullSize = null;
    this.root = byId("tile-template").content.firstElementChild.cloneNode(true);
    this.root.classList.toggle("screen", isScreen);
    this.root.dataset.identity = participant.identity;
    const find = (selector) => this.root.querySelector(selector);
    [this.video, this.avatar, this.veil, this.badge] = ["video", ".avatar", ".veil", ".badge"].map(find);
    [this.quality, this.select, this.name, this.host, this.bars] = [".quality", "select", ".name", ".host", ".bars"].map(find);
    this.select.addEventListener("change", () => this.chooseQuality());
    this.video.addEventListener("dblclick", () => this.root.requestFullscreen?.().catch(() => {}));
  }

  /** Shows `publication`, or the person without a picture. */
  show(publication, isLoudest) {
    const { participant } = this;
    const track = publication?.videoTrack ?? null;
    if (track !== this.track) {
      this.track?.detach(this.video);
      this.fullSize = null;
      this.track = track;
      track?.attach(this.video);
    }
    this.publication = publication;
    const seen = Boolean(track) && !publication.isMuted;
    const name = participant.name || participant.identity;
    const isSilent = !this.isScreen && !participant.isMicrophoneEnabled && !hears(participant);
    this.name.textContent = `${name}${participant.isLocal ? " (you)" : ""}${this.isScreen ? ": screen" : ""}`;
    this.avatar.textContent = initials(name);
    this.video.setAttribute("aria-label", this.isScreen ? `Screen of ${name}` : `Picture of ${name}`);
    this.video.classList.toggle("mirrored", participant.isLocal && !this.isScreen && track !== null && !track.isUserProvided);
    this.root.classList.toggle("unseen", !seen);
    this.root.classList.toggle("silent", isSilent);
    this.root.classList.toggle("speaking", !this.isScreen && participant.isSpeaking);
    this.root.classList.toggle("loudest", !this.isScreen && isLoudest);
    this.root.setAttribute("aria-label", `${this.name.textContent}${isSilent ? ", muted" : ""}${seen ? "" : ", no picture"}`);
    this.quality.hidden = participant.isLocal || !track || !publication.simulcasted;
    this.select.setAttribute("aria-label", `Picture quality of ${name}`);
    this.showConnection();
    const isPaused = seen && track.streamState === Track.StreamState.Paused;
    this.veil.hidden = !isPaused;
    this.veil.textContent = isPaused ? "Paused: your connection is too slow" : "";
    if (!seen) this.badge.hidden = true;
  }

  showConnection() {
    const { connectionQuality } = this.participant;
    if (this.bars.dataset.quality === connectionQuality) return;
    this.bars.dataset.quality = connectionQuality;
    this.bars.hidden = connectionQuality === ConnectionQuality.Unknown;
    this.bars.setAttribute("aria-label", `Connection: ${connectionQuality}`);
  }

  /** Automatic is the size of the tile. A chosen layer comes whatever the tile's size: to the library it looks as if the picture
   * was shown in full somewhere else, too. */
  chooseQuality() {
    const { publication, track } = this;
    if (!track) return;
    const isChosen = this.select.value !== "auto";
    if (isChosen && !this.fullSize) track.observeElementInfo((this.fullSize = fullSizeOf(publication)));
    if (!isChosen && this.fullSize) {
      track.stopObservingElementInfo(this.fullSize);
      this.fullSize.handleResize();
      this.fullSize = null;
    }
    publication.setVideoQuality(isChosen ? Number(this.select.value) : VideoQuality.HIGH);
  }

  showReading(reading) {
    const numbers = this.track && !this.root.classList.contains("unseen") ? reading.of(this.track) : undefined;
    this.badge.hidden = !numbers?.width;
    if (this.badge.hidden) return;
    const { width, height, codec, framesPerSecond, bitrate, layers, frames } = numbers;
    const layer = this.participant.isLocal ? layers.join(" ") : layerName(this.publication, width, height);
    const words = [`${width}x${height}`, layer, codec, `${Math.round(framesPerSecond)} fps`, bits(bitrate)];
    this.badge.textContent = words.filter(Boolean).join("  ");
    // For whoever looks from outside.
    Object.assign(this.root.dataset, { layer, width, codec, frames: frames ?? 0 });
  }
}

/** A microphone, or whatever sound a WHIP publisher sends. */
function hears(participant) {
  return [...participant.audioTrackPublications.values()].some((publication) => publication.source !== Track.Source.ScreenShareAudio && !publication.isMuted);
}

function initials(name) {
  const words = name.trim().split(/\s+/);
  return [words[0], words.length > 1 ? words.at(-1) : ""].map((word) => [...word][0] ?? "").join("").toUpperCase();
}

/** q, h or f: the announced layer whose size comes closest; nothing where there is only one. */
export function layerName(publication, width, height) {
  const layers = publication?.trackInfo?.layers ?? [];
  if (layers.length < 2) return "";
  const size = (layer) => layer.width * layer.height;
  const off = (layer) => Math.abs(Math.log(size(layer) / (width * height)));
  const nearest = layers.filter(size).sort((a, b) => off(a) - off(b))[0];
  return nearest ? (LAYER_NAMES[nearest.quality] ?? "") : "";
}

/** A place of the picture's full size that no element has (livekit-client's ElementInfo). */
function fullSizeOf(publication) {
  const { width, height } = publication.dimensions ?? { width: 1920, height: 1080 };
  return {
    element: {},
    width: () => width,
    height: () => height,
    visible: true,
    pictureInPicture: false,
    visibilityChangedAt: undefined,
    observe() {},
    stopObserving() {},
  };
}
