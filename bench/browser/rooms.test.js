// What a room does for people whose wishes differ: layers, unused layers, speakers, end-to-end encryption. LiveKit's own client.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { launchChromium, launchFirefox } from "./browsers.js";
import { pause, until } from "./expect.js";
import { openRoom, serveLiveKitPage } from "./livekit.js";
import { startNode } from "./node.js";

const [LOW, MEDIUM, HIGH] = [0, 1, 2];
const WIDTHS = [320, 640, 960];
const CAMERA = { resolution: { width: 960, height: 540, frameRate: 10 } };

let node, site, browsers, url;

before(async () => {
  [node, site, ...browsers] = await Promise.all([startNode("rooms"), serveLiveKitPage(), launchChromium(), launchFirefox()]);
  url = node.http.replace("http", "ws");
});

after(async () => {
  await Promise.allSettled((browsers ?? []).map((browser) => browser.close()));
  site?.close();
  await node?.stop();
});

async function come(browser, room, identity, options = {}) {
  const person = await openRoom(browser, site);
  return Object.assign(person, await person.join(url, await node.token(room, identity), options));
}

async function leave(...people) {
  await Promise.all(people.map((person) => person.leave()));
  for (const person of people) await person.page.close();
}

/** What `viewer` decodes of `sid` once it has this width and goes on. */
async function untilWidth(viewer, sid, width, seconds = 25) {
  let last, mark;
  const seen = async () => {
    last = (await viewer.received())[sid];
    if (last?.width !== width) return (mark = undefined);
    mark ??= last;
    return last.frames >= mark.frames + 10 && last;
  };
  return until(`${viewer.identity} sees ${sid} ${width} wide`, seen, seconds).catch((error) => {
    assert.fail(`${error.message}; last ${JSON.stringify(last)}`);
  });
}

// The library sends VP8 and H.264 as a stream for each layer; VP9 and AV1 with the layers inside one, each half as wide as the next.
for (const [videoCodec, streams, widths] of [
  ["vp8", 3, WIDTHS],
  ["h264", 3, WIDTHS],
  ["vp9", 1, [240, 480, 960]],
  ["av1", 1, [240, 480, 960]],
]) {
  test(`three viewers of three layers of ${videoCodec} get each its own, change them, and nothing freezes`, async (t) => {
    const publisher = await come(browsers[0], `layers-${videoCodec}`, "ann");
    const sid = await publisher.camera(true, CAMERA, { videoCodec, simulcast: true });
    const people = ["low", "medium", "high"];
    const viewers = await Promise.all(people.map((who, i) => come(browsers[who === "medium" && videoCodec !== "h264" ? 1 : 0], `layers-${videoCodec}`, who)));
    assert.equal(Object.keys(await publisher.sent()).length, streams);
    const ann = (await viewers[0].remotes()).find((person) => person.identity === "ann");
    assert.equal(ann.tracks[0].mime.toLowerCase(), `video/${videoCodec}`);
    // Two cores encode three layers and decode four pictures: once the machine itself may stutter. A switch that freezes does so each time.
    let frozen = 0;
    for (let round = 0; round < 3 + frozen; round++) {
      const wishes = viewers.map((_, i) => (i + round) % 3);
      const before = await Promise.all(viewers.map((viewer) => viewer.received().then((all) => all[sid])));
      for (const [i, viewer] of viewers.entries()) {
        await until(`${viewer.identity} has the track`, async () => (await viewer.received())[sid]);
        await viewer.quality(sid, wishes[i]);
      }
      const after = await Promise.all(viewers.map((viewer, i) => untilWidth(viewer, sid, widths[wishes[i]])));
      const freezes = after.map((seen, i) => (seen.freezes ?? 0) - (before[i]?.freezes ?? 0));
      t.diagnostic(`round ${round}: widths ${after.map((seen) => seen.width)}, frames ${after.map((seen) => seen.frames)}, freezes ${freezes}, lost ${after.map((seen) => seen.lost)}`);
      // In the first round the picture begins.
      if (round > 0 && freezes.some((count) => count > 0)) frozen++;
      assert.ok(frozen <= 1, "a switch is no freeze");
      assert.deepEqual(after.map((seen) => seen.lost), [0, 0, 0], "numbers go on");
    }
    const { plis, keyframes } = Object.values(await publisher.sent())[0];
    t.diagnostic(`the publisher was asked for ${plis} keyframes of its first stream and made ${keyframes}`);
    await leave(publisher, ...viewers);
  });
}

test("a layer that nobody wants is not sent, and comes back when somebody wants it", async (t) => {
  const publisher = await come(browsers[0], "unused", "ann", { dynacast: true });
  const sid = await publisher.camera(true, CAMERA, { videoCodec: "vp8", simulcast: true });
  const viewers = await Promise.all(["bob", "cid"].map((who) => come(browsers[0], "unused", who)));
  for (const viewer of viewers) {
    await untilWidth(viewer, sid, WIDTHS[HIGH]);
    await viewer.quality(sid, LOW);
  }
  const rate = async (rid, seconds) => {
    const before = (await publisher.sent())[rid].packets;
    await pause(seconds);
    return ((await publisher.sent())[rid].packets - before) / seconds;
  };
  await until("the upper layers stop", async () => (await rate("f", 1)) === 0 && (await rate("h", 1)) === 0, 30);
  for (const viewer of viewers) await untilWidth(viewer, sid, WIDTHS[LOW]);
  assert.ok((await rate("q", 1)) > 5, "the lowest goes on");
  await viewers[0].quality(sid, HIGH);
  await untilWidth(viewers[0], sid, WIDTHS[HIGH]);
  await untilWidth(viewers[1], sid, WIDTHS[LOW]);
  for (const viewer of viewers) await viewer.enable(sid, false);
  await until("nothing is sent for nobody", async () => (await rate("q", 1)) + (await rate("h", 1)) + (await rate("f", 1)) === 0, 30);
  await viewers[1].enable(sid, true);
  const seen = await untilWidth(viewers[1], sid, WIDTHS[LOW]);
  t.diagnostic(`at the end ${JSON.stringify(seen)}`);
  await leave(publisher, ...viewers);
});

test("who speaks is told, the loudest first, and who stopped is told too", async () => {
  const people = await Promise.all(["ann", "bob", "cid"].map((who) => come(browsers[0], "voices", who)));
  const [ann, bob, cid] = people;
  await Promise.all([ann.tone(0.1), bob.tone(0.7)]);
  const speakers = async () => (await cid.speakers()).join(" ");
  await until("both speak, bob is louder", async () => (await speakers()) === "bob ann");
  await bob.microphone(false);
  await until("only ann speaks", async () => (await speakers()) === "ann");
  await ann.microphone(false);
  await until("nobody speaks", async () => (await speakers()) === "");
  await until("connections are graded", async () => (await cid.grades()).every((grade) => grade === "excellent"), 30);
  await leave(...people);
});

test("under end-to-end encryption layers are chosen all the same, and who lacks the key sees nothing", async (t) => {
  const passphrase = "known to two of three";
  const options = { passphrase };
  const publisher = await come(browsers[0], "sealed", "ann", options);
  const sid = await publisher.camera(true, CAMERA, { videoCodec: "vp8", simulcast: true });
  const voice = await publisher.tone(0.5);
  const viewer = await come(browsers[0], "sealed", "bob", options);
  const stranger = await come(browsers[0], "sealed", "eve", { passphrase: "guessed" });
  await untilWidth(viewer, sid, WIDTHS[HIGH]);
  await viewer.quality(sid, LOW);
  await untilWidth(viewer, sid, WIDTHS[LOW]);
  await viewer.quality(sid, MEDIUM);
  const seen = await untilWidth(viewer, sid, WIDTHS[MEDIUM]);
  await until("bob hears", async () => ((await viewer.received())[voice]?.energy ?? 0) > 0);
  const blind = (await stranger.received())[sid];
  t.diagnostic(`bob ${JSON.stringify(seen)}, eve ${JSON.stringify(blind)}`);
  assert.ok(blind.packets > 50, "the packets do come to eve");
  assert.ok((blind.frames ?? 0) === 0, "and none can be decoded");
  await leave(publisher, viewer, stranger);
});
