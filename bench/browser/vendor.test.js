// The library that the page serves is npm's, byte for byte, in the version that the lock file pins.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFile, readdir } from "node:fs/promises";
import path from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { vendored } from "./vendor.js";

const sha512 = (bytes) => createHash("sha512").update(bytes).digest("base64");

test("the committed livekit-client is the pinned npm package's, with its licence and the notices of what it bundles", async () => {
  const files = await vendored();
  for (const { file, content } of files) {
    const name = path.basename(fileURLToPath(file));
    assert.equal(sha512(await readFile(file)), sha512(content), `${name} differs: node bench/browser/vendor.js writes it anew`);
  }
  const names = files.map(({ file }) => path.basename(fileURLToPath(file))).sort();
  assert.deepEqual((await readdir(new URL(".", files[0].file))).sort(), names, "nothing else lies there");
});
