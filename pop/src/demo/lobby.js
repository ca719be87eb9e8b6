// Before the call: a name, and a picture and a sound that the person sees and hears of before anybody else does.

import { MADE, NONE, PICTURES, SOUNDS, listDevices, openPicture, openSound } from "/demo/sources.js";
import { byId, sentenceOf, showSentence } from "/demo/words.js";
import { sendableCodecs } from "/demo/whip.js";

const NO_DEVICES = "The browser gives cameras and microphones only to pages on https or on this machine's own address.";

/** The form before the call. `wishes` are the address's: name, pattern, codec, size. */
export class Lobby {
  constructor(wishes, onJoin) {
    this.form = byId("lobby-form");
    this.fields = this.form.elements;
    this.alert = this.form.querySelector(".alert");
    this.card = byId("lobby");
    this.video = this.card.querySelector("video");
    this.veil = this.card.querySelector(".veil");
    this.wishes = wishes;
    this.picture = this.sound = null;
    // Openings run one after the other: the last choice is what stays.
    this.opening = Promise.resolve();
    this.fill();
    this.fields.picture.addEventListener("change", () => this.openPicture());
    this.fields.size.addEventListener("change", () => this.openPicture());
    this.fields.sound.addEventListener("change", () => this.openSound());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      onJoin();
    });
  }

  fill() {
    const { name, codec, size } = this.wishes;
    this.fields.name.value = name ?? sessionStorage.getItem("name") ?? `Guest ${100 + Math.floor(Math.random() * 900)}`;
    for (const able of sendableCodecs()) this.fields.codec.add(new Option(able, able.toLowerCase()));
    if (codec) this.fields.codec.value = codec;
    if (size) this.fields.size.value = size;
  }

  /** Shows the form with devices open, or with the test pattern where there are none. `fixedName` is the token's, which nobody changes. */
  async open(mayPublish, fixedName) {
    if (fixedName) this.fields.name.value = fixedName;
    this.fields.name.disabled = Boolean(fixedName);
    for (const label of this.form.querySelectorAll("label:not(:first-of-type)")) label.hidden = !mayPublish;
    byId("lobby").classList.toggle("watch-only", !mayPublish);
    if (!mayPublish) return this.choose(NONE, NONE);
    if (this.wishes.pattern || !navigator.mediaDevices) {
      await this.choose(MADE, this.wishes.silent ? NONE : MADE);
      if (!navigator.mediaDevices) showSentence(this.alert, NO_DEVICES);
      return;
    }
    await this.listAll();
    this.choose(this.fields.picture.options[0].value, this.fields.sound.options[0].value);
    await this.opening;
    // With the permission come the devices' names, and ids where there were none.
    await this.listAll();
  }

  async choose(picture, sound) {
    if (this.fields.picture.options.length === 0) await this.listAll();
    this.fields.picture.value = picture;
    this.fields.sound.value = sound;
    return Promise.all([this.openPicture(), this.openSound()]);
  }

  async listAll() {
    const shown = [this.picture?.choice, this.sound?.choice];
    await Promise.all([listDevices(this.fields.picture, "videoinput", PICTURES), listDevices(this.fields.sound, "audioinput", SOUNDS)]);
    if (shown[0]) this.fields.picture.value = shown[0];
    if (shown[1]) this.fields.sound.value = shown[1];
  }

  openPicture() {
    return this.next(async () => {
      this.picture?.stop();
      this.picture = null;
      const label = location.host;
      this.picture = await this.tryOpen(this.fields.picture, (choice) => openPicture(choice, { height: Number(this.fields.size.value), label }));
      this.veil.hidden = Boolean(this.picture);
      this.video.classList.toggle("mirrored", this.picture !== null && this.picture.choice !== MADE);
      if (this.picture) this.picture.track.attach(this.video);
      else this.video.srcObject = null;
    });
  }

  openSound() {
    return this.next(async () => {
      this.sound?.stop();
      this.sound = await this.tryOpen(this.fields.sound, openSound);
      this.showLevel();
    });
  }

  /** What the select says, or, when the browser or the device refuses, what is made here. */
  async tryOpen(select, open) {
    try {
      showSentence(this.alert, "");
      return await open(select.value);
    } catch (error) {
      showSentence(this.alert, sentenceOf(error));
      select.value = select.name === "picture" ? MADE : NONE;
      return open(select.value);
    }
  }

  next(step) {
    this.opening = this.opening.then(step, step);
    return this.opening;
  }

  /** The bar under the picture moves with the voice. */
  showLevel() {
    this.meter?.close();
    const bar = this.card.querySelector(".level i");
    bar.style.width = "0";
    if (!this.sound) return;
    this.meter = new AudioContext();
    const analyser = new AnalyserNode(this.meter, { fftSize: 512 });
    this.meter.createMediaStreamSource(new MediaStream([this.sound.track.mediaStreamTrack])).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    const meter = this.meter;
    const draw = () => {
      if (meter.state === "closed") return;
      analyser.getFloatTimeDomainData(samples);
      const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
      bar.style.width = `${Math.max(0, Math.min(100, 100 + (10 * Math.log10(power + 1e-9) * 100) / 60))}%`;
      requestAnimationFrame(draw);
    };
    draw();
  }

  /** Hands over what the person chose; the lobby owns nothing any more. */
  async take() {
    await this.opening;
    this.meter?.close();
    this.picture?.track.detach(this.video);
    const name = this.fields.name.value.trim();
    sessionStorage.setItem("name", name);
    const taken = { picture: this.picture, sound: this.sound, codec: this.fields.codec.value, height: Number(this.fields.size.value) };
    this.sound?.resume?.();
    this.picture = this.sound = this.meter = null;
    return taken;
  }

  showError(sentence) {
    showSentence(this.alert, sentence);
  }
}
