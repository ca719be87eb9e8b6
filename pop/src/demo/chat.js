// Chat: text streams on LiveKit's usual topic, so that other apps on LiveKit's components read along and answer.

import { RoomEvent } from "/demo/livekit.js";
import { byId, element, showSentence } from "/demo/words.js";

const TOPIC = "lk.chat";

/** Oldest messages go beyond this many. */
const MESSAGES_MAX = 500;

/** Longest message of another that is shown, in characters. */
const TEXT_LEN_MAX = 5_000;

/** The chat of one call; `onUnread` hears of messages of others. */
export class Chat {
  constructor(room, onUnread) {
    this.room = room;
    this.list = byId("messages");
    this.list.replaceChildren();
    this.onUnread = onUnread;
    this.form = byId("chat-form");
    this.onSubmit = (event) => {
      event.preventDefault();
      this.send(this.form.elements.text.value.trim());
    };
    this.form.addEventListener("submit", this.onSubmit);
    room.registerTextStreamHandler(TOPIC, async (reader, { identity }) => {
      // A stream that breaks off is no message.
      const text = await reader.readAll().catch(() => "");
      if (text) this.hear(identity, text);
    });
    // What SDKs before text streams send.
    room.on(RoomEvent.ChatMessage, (message, participant) => participant && !participant.isLocal && this.hear(participant.identity, message.message));
  }

  allow(may) {
    for (const field of this.form.elements) field.disabled = !may;
    this.form.elements.text.placeholder = may ? "Message to everyone" : "Your link does not allow messages";
  }

  async send(text) {
    if (!text) return;
    try {
      await this.room.localParticipant.sendText(text, { topic: TOPIC });
      this.form.reset();
      showSentence(byId("chat-error"), "");
      this.show("You", text, true);
    } catch (error) {
      showSentence(byId("chat-error"), `Not sent: ${error.message}`);
    }
  }

  hear(identity, text) {
    const name = this.room.getParticipantByIdentity(identity)?.name || identity;
    this.show(name, text.slice(0, TEXT_LEN_MAX), false);
    this.onUnread();
  }

  show(name, text, isOwn) {
    const time = new Date().toTimeString().slice(0, 5);
    const head = element("p", { className: "from" }, element("b", { textContent: name }), ` ${time}`);
    const message = element("li", { className: isOwn ? "own" : "" }, head, element("p", { textContent: text }));
    this.list.append(message);
    while (this.list.childElementCount > MESSAGES_MAX) this.list.firstElementChild.remove();
    this.list.scrollTop = this.list.scrollHeight;
  }

  close() {
    this.form.removeEventListener("submit", this.onSubmit);
    this.room.unregisterTextStreamHandler(TOPIC);
  }
}
