// The call: from the link through the lobby into the room, and out again. LiveKit's client does the talking (vendor/).
//
//   /demo?room=ROOM#token=TOKEN
//
// In the query, for tests and for links that save clicks: name=NAME, auto (join at once), pattern (no devices), silent (no sound),
// codec=vp8|vp9|h264|av1, size=1080|720|360|180 (height of the picture that is sent).

import { claims, pageUrl, readAddress } from "/demo/address.js";
import { Chat } from "/demo/chat.js";
import { crash, isLab, longestGap } from "/demo/crash.js";
import { Drawer } from "/demo/drawer.js";
import { hostsOf, ownToken } from "/demo/guest.js";
import { ConnectionState, DisconnectReason, Room, RoomEvent, Track, setLogLevel, version } from "/demo/livekit.js";
import { Lobby } from "/demo/lobby.js";
import { MADE, NONE, PICTURES, SOUNDS, listDevices, openPicture, openSound } from "/demo/sources.js";
import { Stats } from "/demo/stats.js";
import { setUpTheme } from "/demo/theme.js";
import { Tiles } from "/demo/tiles.js";
import { byId, copy, noPathSentence, sentenceOf, showSentence, showState } from "/demo/words.js";

/** Events after which the tiles may look different. */
const TILE_EVENTS = [
  "ParticipantConnected",
  "ParticipantDisconnected",
  "TrackPublished",
  "TrackUnpublished",
  "TrackSubscribed",
  "TrackUnsubscribed",
  "TrackMuted",
  "TrackUnmuted",
  "LocalTrackPublished",
  "LocalTrackUnpublished",
  "ActiveSpeakersChanged",
  "ConnectionQualityChanged",
  "TrackStreamStateChanged",
  "ParticipantNameChanged",
  "Reconnected",
];

const address = readAddress();
const flag = (name) => address.query.has(name) && address.query.get(name) !== "0";
const wishes = {
  name: address.query.get("name"),
  pattern: flag("pattern"),
  silent: flag("silent"),
  codec: address.query.get("codec"),
  size: address.query.get("size"),
};
const drawer = new Drawer();
const lobby = new Lobby(wishes, () => join());
let call = null;

/** Shows one of the page's four views. */
function show(view) {
  for (const name of ["access", "lobby", "call", "over"]) byId(name).hidden = name !== view;
  document.body.dataset.view = view;
  for (const name of ["controls", "invite", "here"]) byId(name).hidden = view !== "call";
  if (view !== "call") {
    showState(byId("state"), "idle", "not joined");
    showSentence(byId("banner"), "");
    drawer.show(null);
  }
}

async function enterLobby() {
  const { video = {}, guests, name, sub } = claims(address.token);
  byId("room").textContent = byId("lobby-room").textContent = address.room;
  document.title = `${address.room} on pop`;
  byId("broadcast-link").href = pageUrl("/demo/broadcast", address);
  show("lobby");
  await lobby.open(video.canPublish !== false, guests ? undefined : name || sub);
  if (flag("auto")) {
    address.query.delete("auto");
    join();
  }
}

function askForToken() {
  show("access");
  byId("access-form").addEventListener("submit", (event) => {
    event.preventDefault();
    address.token = event.target.elements.token.value.trim();
    address.room = claims(address.token).video?.room ?? address.room;
    history.replaceState(null, "", pageUrl("/demo", address));
    enterLobby();
  });
}

async function join() {
  const button = byId("lobby-form").querySelector("button");
  if (button.disabled) return;
  button.disabled = true;
  showState(byId("state"), "busy", "joining");
  const entering = new Call();
  try {
    const name = byId("lobby-form").elements.name.value.trim() || "Somebody";
    await entering.connect(await ownToken(address.token, name));
    call = entering;
    show("call");
    entering.start(await lobby.take());
  } catch (error) {
    entering.end();
    lobby.showError(refusalOf(error));
    showState(byId("state"), "bad", "not joined");
  } finally {
    button.disabled = false;
  }
}

/** One stay in the room. */
class Call {
  constructor() {
    this.room = new Room({ adaptiveStream: true, dynacast: true });
    this.sources = { picture: null, sound: null };
    this.setUp = { codec: "vp8", height: 720 };
    this.isOver = false;
    this.token = null;
    /** The tiles whose nodes are shown. */
    this.hosted = null;
  }

  async connect(token) {
    this.token = token;
    const { room } = this;
    room.on(RoomEvent.Disconnected, (reason) => this.onDisconnected(reason));
    room.on(RoomEvent.ConnectionStateChanged, (state) => this.showConnection(state));
    await room.connect(location.origin.replace(/^http/, "ws"), token);
  }

  /** The page follows the room from here on; what the lobby hands over is published. */
  start({ picture, sound, codec, height }) {
    const { room } = this;
    this.setUp = { codec, height };
    this.tiles = new Tiles(room);
    this.stats = new Stats(room);
    this.chat = new Chat(room, () => drawer.countUnread());
    for (const event of TILE_EVENTS) room.on(RoomEvent[event], () => this.refresh());
    room.on(RoomEvent.ParticipantPermissionsChanged, () => this.refresh());
    room.on(RoomEvent.AudioPlaybackStatusChanged, () => this.refresh());
    room.on(RoomEvent.MediaDevicesError, (error) => this.say(sentenceOf(error)));
    this.ticking = setInterval(() => this.tick(), 1000);
    this.showConnection(room.state);
    this.refresh();
    isLab().then((is) => (byId("crash").hidden = !is));
    this.publish("picture", picture);
    this.publish("sound", sound);
  }

  refresh() {
    // One drawing for all events of a moment.
    if (this.refreshing || this.isOver) return;
    this.refreshing = true;
    queueMicrotask(() => {
      this.refreshing = false;
      if (this.isOver) return;
      this.tiles.sync();
      this.showControls();
    });
  }

  /** Asked when people or tiles have come or gone. */
  async showHosts() {
    const shown = [...this.tiles.tiles.keys()].join();
    if (shown === this.hosted) return;
    const hosts = await hostsOf(this.token);
    const isComplete = this.tiles.people().every(({ identity }) => hosts[identity]);
    if (this.isOver) return;
    this.tiles.showHosts(hosts);
    // The node that is asked may not know yet who has just come.
    if (isComplete) this.hosted = shown;
  }

  async tick() {
    const reading = await this.stats.read().catch(() => undefined);
    if (!reading || this.isOver) return;
    this.tiles.showReading(reading);
    await this.showHosts();
    drawer.showReading(this.room, reading);
  }

  // ---- what one sends

  get own() {
    return this.room.localParticipant;
  }

  publication(kind) {
    return this.own.getTrackPublication(kind === "picture" ? Track.Source.Camera : Track.Source.Microphone);
  }

  async publish(kind, source) {
    this.sources[kind] = source;
    if (!source) return;
    const isPicture = kind === "picture";
    const options = isPicture
      ? { source: Track.Source.Camera, videoCodec: this.setUp.codec, backupCodec: false, simulcast: true }
      : { source: Track.Source.Microphone };
    try {
      await this.own.publishTrack(source.track, options);
    } catch (error) {
      if (!this.isOver) this.say(`Your ${kind} is not sent: ${error.message}`);
      source.stop();
      if (this.sources[kind] === source) this.sources[kind] = null;
    }
    this.refresh();
  }

  /** Sends another picture or sound, or none. From device to device the track stays the same for the others. */
  async choose(kind, choice) {
    const before = this.sources[kind];
    const isDevice = (value) => value && value !== MADE && value !== NONE;
    showSentence(byId("devices-error"), "");
    try {
      if (before && isDevice(before.choice) && isDevice(choice)) {
        await this.room.switchActiveDevice(kind === "picture" ? "videoinput" : "audioinput", choice);
        before.choice = choice;
        return;
      }
      const { height } = this.setUp;
      const next = await (kind === "picture" ? openPicture(choice, { height, label: location.host }) : openSound(choice));
      if (before) await this.own.unpublishTrack(before.track, true);
      before?.stop();
      await this.publish(kind, next);
    } catch (error) {
      showSentence(byId("devices-error"), sentenceOf(error));
      byId("devices-form").elements[kind].value = this.sources[kind]?.choice ?? NONE;
    }
  }

  /** Mutes, unmutes, or sends the first choice when nothing is sent yet. */
  async toggle(kind) {
    const publication = this.publication(kind);
    const form = byId("devices-form").elements;
    try {
      if (!publication) {
        await listAllDevices(this);
        const first = [...form[kind].options].find((option) => option.value !== NONE);
        form[kind].value = first.value;
        await this.choose(kind, first.value);
      } else if (publication.isMuted) await publication.unmute();
      else await publication.mute();
    } catch (error) {
      this.say(sentenceOf(error));
    }
    this.refresh();
  }

  async toggleScreen() {
    try {
      await this.own.setScreenShareEnabled(!this.own.isScreenShareEnabled, { audio: true, contentHint: "detail" });
    } catch (error) {
      // Who closes the browser's window of screens wants none.
      if (error.name !== "NotAllowedError") this.say(`Your screen is not shared: ${error.message}`);
    }
    this.refresh();
  }

  // ---- what one sees

  showControls() {
    const { permissions } = this.own;
    const may = (source) => permissions?.canPublish !== false && !(permissions?.canPublishSources?.length > 0 && !permissions.canPublishSources.includes(source));
    const [microphone, camera] = [this.own.isMicrophoneEnabled, this.own.isCameraEnabled];
    showButton(byId("mic"), microphone, "mic", ["Mute", this.sources.sound ? "Unmute" : "Send sound"]);
    showButton(byId("camera"), camera, "camera", ["Stop camera", "Start camera"]);
    showButton(byId("screen"), this.own.isScreenShareEnabled, "screen", ["Stop sharing", "Share screen"]);
    byId("screen").classList.toggle("live", this.own.isScreenShareEnabled);
    // Numbers of the protocol's TrackSource.
    byId("camera").hidden = !may(1);
    byId("mic").hidden = !may(2);
    byId("screen").hidden = !may(3) || !navigator.mediaDevices?.getDisplayMedia;
    this.chat.allow(permissions?.canPublishData !== false);
    byId("unblock").hidden = this.room.canPlaybackAudio;
    const count = this.room.remoteParticipants.size;
    byId("people").textContent = count === 0 ? "you alone" : `you and ${count} other${count === 1 ? "" : "s"}`;
  }

  showConnection(state) {
    const shown = {
      [ConnectionState.Connected]: ["live", "connected", ""],
      [ConnectionState.Connecting]: ["busy", "joining", ""],
      [ConnectionState.Reconnecting]: ["busy", "reconnecting", "The connection broke. Reconnecting; media goes on as soon as there is a path."],
      [ConnectionState.SignalReconnecting]: ["busy", "reconnecting", "The node does not answer at the moment. Media may go on; reconnecting."],
    }[state];
    if (!shown) return;
    showState(byId("state"), shown[0], shown[1]);
    this.say(shown[2]);
  }

  /** A sentence over everything, until the next one. */
  say(sentence) {
    showSentence(byId("banner"), sentence);
  }

  // ---- a lab's

  /** Kills the node that carries this call, and tells what one saw of it. */
  async crash() {
    const button = byId("crash");
    button.disabled = true;
    try {
      const { [this.own.identity]: before } = await hostsOf(this.token);
      const video = this.tiles.remoteVideo();
      const watched = video && longestGap(video);
      const back = new Promise((done) => this.room.once(RoomEvent.Reconnected, done));
      await crash(this.token, this.own.sid);
      await back;
      const gap = await watched;
      if (this.isOver) return;
      // The next reading shows it on the tiles.
      this.hosted = null;
      const { [this.own.identity]: after } = await hostsOf(this.token);
      const seen = gap === undefined ? "" : ` The picture stood still for ${gap} ms.`;
      this.say(`The node ${before} is dead.${seen} This call is at ${after} now.`);
    } catch (error) {
      this.say(sentenceOf(error));
    } finally {
      button.disabled = false;
    }
  }

  // ---- the end

  leave() {
    this.end();
    finish("You left.");
  }

  onDisconnected(reason) {
    if (this.isOver || this !== call) return;
    this.end();
    finish(goodbye(reason));
  }

  end() {
    this.isOver = true;
    clearInterval(this.ticking);
    this.chat?.close();
    this.tiles?.close();
    this.room.disconnect();
    for (const source of Object.values(this.sources)) source?.stop();
    if (call === this) call = null;
  }
}

function finish(sentence) {
  show("over");
  byId("over-reason").textContent = sentence;
  byId("again").focus();
}

/** Why the node, or the network, ended it. */
function goodbye(reason) {
  const sentences = {
    [DisconnectReason.DUPLICATE_IDENTITY]: "Somebody joined with the same link, and this link is one person's: the newer one stays. Use a link of your own.",
    [DisconnectReason.SERVER_SHUTDOWN]: "The node stopped.",
    [DisconnectReason.PARTICIPANT_REMOVED]: "You were removed from the room.",
    [DisconnectReason.ROOM_DELETED]: "The room was closed.",
    [DisconnectReason.STATE_MISMATCH]: "The node no longer knows you after the connection broke. Join again.",
    [DisconnectReason.JOIN_FAILURE]: `Joining did not come to an end. ${noPathSentence()}`,
    [DisconnectReason.CONNECTION_TIMEOUT]: "The node heard nothing from you for too long.",
    [DisconnectReason.MEDIA_FAILURE]: noPathSentence(),
  };
  return sentences[reason] ?? "The connection is lost, and reconnecting did not help.";
}

/** Why joining did not work. */
function refusalOf(error) {
  if (error.name !== "ConnectionError") return sentenceOf(error);
  if (error.status === 401) return `The node does not believe the link: ${error.message}. It may have expired: get a new one from the node.`;
  if (error.status === 403) return `The link does not allow joining this room: ${error.message}.`;
  if (/pc connection|peer ?connection/i.test(error.message)) return noPathSentence();
  return `Joining did not work: ${error.message}.`;
}

function showButton(button, isOn, icon, [onText, offText]) {
  const text = isOn ? onText : offText;
  button.classList.toggle("off", !isOn && icon !== "screen");
  button.setAttribute("aria-label", text);
  button.querySelector("span").textContent = text;
  button.querySelector("use").setAttribute("href", `#i-${icon}${isOn || icon === "screen" ? "" : "-off"}`);
}

// ---- devices, invitation, keys

async function listAllDevices({ sources, room }) {
  const { picture, sound, speaker } = byId("devices-form").elements;
  await Promise.all([
    listDevices(picture, "videoinput", PICTURES),
    listDevices(sound, "audioinput", SOUNDS),
    listDevices(speaker, "audiooutput", []),
  ]);
  picture.value = sources.picture?.choice ?? NONE;
  sound.value = sources.sound?.choice ?? NONE;
  speaker.closest("label").hidden = speaker.options.length === 0 || !("setSinkId" in HTMLMediaElement.prototype);
  const output = room.getActiveDevice("audiooutput");
  if (output) speaker.value = output;
}

function setUpDevices() {
  const form = byId("devices-form");
  form.elements.picture.addEventListener("change", (event) => call?.choose("picture", event.target.value));
  form.elements.sound.addEventListener("change", (event) => call?.choose("sound", event.target.value));
  form.elements.speaker.addEventListener("change", (event) => {
    call?.room.switchActiveDevice("audiooutput", event.target.value).catch((error) => showSentence(byId("devices-error"), sentenceOf(error)));
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  const list = () => call && listAllDevices(call);
  for (const opener of document.querySelectorAll('[data-opens="devices"], [data-tab="devices"]')) opener.addEventListener("click", list);
  navigator.mediaDevices?.addEventListener("devicechange", () => (call ? list() : lobby.listAll()));
}

function setUpInvitation() {
  const [dialog, link, none] = ["invite-dialog", "invite-link", "invite-none"].map(byId);
  byId("invite").addEventListener("click", () => {
    const bringsGuests = Boolean(claims(address.token).guests);
    link.hidden = !bringsGuests;
    none.hidden = bringsGuests;
    link.querySelector("code").textContent = pageUrl("/demo", address);
    none.querySelector("code").textContent = `pop token create --room ${address.room} --identity NAME`;
    dialog.showModal();
  });
  byId("invite-copy").addEventListener("click", (event) => copy(pageUrl("/demo", address), event.target));
}

function setUpControls() {
  byId("mic").addEventListener("click", () => call?.toggle("sound"));
  byId("camera").addEventListener("click", () => call?.toggle("picture"));
  byId("screen").addEventListener("click", () => call?.toggleScreen());
  byId("crash").addEventListener("click", () => call?.crash());
  byId("leave").addEventListener("click", () => call?.leave());
  byId("unblock").addEventListener("click", () => call?.room.startAudio());
  byId("again").addEventListener("click", () => enterLobby());
  const keys = { m: "#mic", v: "#camera", s: "#screen", c: '[data-opens="chat"]', n: '[data-opens="stats"]' };
  addEventListener("keydown", (event) => {
    const isTyping = event.target.closest?.("input, select, textarea, dialog");
    if (!call || isTyping || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const button = keys[event.key] && document.querySelector(keys[event.key]);
    if (!button || button.hidden) return;
    event.preventDefault();
    button.click();
  });
}

setLogLevel("warn");
byId("library").textContent = `livekit-client ${version}`;
setUpTheme(byId("theme"));
setUpDevices();
setUpInvitation();
setUpControls();
if (address.token) enterLobby();
else askForToken();
