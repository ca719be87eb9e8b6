// Numbered data messages of somebody in a room of livekit.js: sent, received, and compared.

/** What runs in the page: a mailbox, and a sender of numbered messages. Bodies are drawn from their number, so both ends know them. */
function inPage() {
  const { RoomEvent } = globalThis.LivekitClient;
  const room = globalThis.popRoom.room();
  const mail = [];
  const body = (number, len) => {
    const bytes = new Uint8Array(8 + len);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, number);
    view.setUint32(4, len);
    let state = number + 1;
    for (let i = 8; i < bytes.length; i++) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      bytes[i] = state >>> 24;
    }
    return bytes;
  };
  const hash = async (parts) => {
    const digest = await crypto.subtle.digest("SHA-256", await new Blob(parts).arrayBuffer());
    return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  };
  room.on(RoomEvent.DataReceived, (payload, from, kind, topic) => mail.push({ payload, from: from?.identity, kind, topic }));
  globalThis.popData = {
    /** Sends `count` messages of up to `len` bytes, and gives the hash of all of them. */
    async send(count, len, { first = 0, pauseMs = 0, ...options } = {}) {
      const sent = [];
      for (let i = 0; i < count; i++) {
        const number = first + i;
        const message = body(number, (number * 7919) % (len + 1));
        sent.push(message);
        await room.localParticipant.publishData(message, options);
        if (pauseMs) await new Promise((done) => setTimeout(done, pauseMs));
      }
      return hash(sent);
    },
    count: (topic) => mail.filter((message) => message.topic === topic).length,
    async report(topic) {
      const got = mail.filter((message) => message.topic === topic);
      const numbers = got.map(({ payload }) => new DataView(payload.buffer, payload.byteOffset).getUint32(0));
      return {
        count: got.length,
        ordered: numbers.every((number, i) => i === 0 || number > numbers[i - 1]),
        from: [...new Set(got.map((message) => message.from))],
        kinds: [...new Set(got.map((message) => message.kind))],
        hash: await hash(got.map((message) => message.payload)),
      };
    },
  };
}

/** Gives a person who has joined `send`, `count` and `report`. */
export async function addMailbox(person) {
  await person.page.evaluate(`(${inPage})()`);
  const call = (name) => (...values) => person.page.evaluate(`globalThis.popData.${name}(...${JSON.stringify(values)})`);
  return Object.assign(person, { send: call("send"), count: call("count"), report: call("report") });
}
