// livekit-client as the page serves it: a copy of the file in the npm package, its licence, and the notices of what is bundled in it.
//
//   node bench/browser/vendor.js     writes the three files anew, after another version was put into package.json

import { readFile, readdir, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";

const modules = new URL("./node_modules/", import.meta.url);
const home = new URL("../../pop/src/demo/vendor/", import.meta.url);

/** The three files: their place in the repository and what belongs there. */
export async function vendored() {
  const { version } = await describe("livekit-client");
  const read = (name) => readFile(new URL(`livekit-client/${name}`, modules));
  return [
    { file: new URL(`livekit-client-${version}.umd.js`, home), content: await read("dist/livekit-client.umd.js") },
    { file: new URL("LICENSE", home), content: await read("LICENSE") },
    { file: new URL("NOTICE", home), content: Buffer.from(await notice(version)) },
  ];
}

const describe = async (name) => JSON.parse(await readFile(new URL(`${name}/package.json`, modules), "utf8"));

async function notice(version) {
  const parts = [`livekit-client-${version}.umd.js is dist/livekit-client.umd.js of npm's livekit-client ${version}, Apache-2.0 (see LICENSE).`];
  parts.push("Bundled in it:");
  for (const name of await bundled()) {
    const { license } = await describe(name);
    parts.push(`--- ${name}, ${license}\n\n${await licence(name, license)}`);
  }
  return `${parts.join("\n\n")}\n`;
}

/** The packages whose sources the bundle's map names. */
async function bundled() {
  const map = JSON.parse(await readFile(new URL("livekit-client/dist/livekit-client.umd.js.map", modules), "utf8"));
  const names = map.sources.map((source) => /.*node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(source)?.[1]);
  // The map leaves out the protocol's generated messages and the compiler's own functions, which are in the bundle as well.
  return [...new Set([...names, "@livekit/protocol", "tslib"])].filter(Boolean).sort();
}

/** The text that has to go with every copy; Apache's own stands in LICENSE. */
async function licence(name, spdx) {
  const folder = new URL(`${name}/`, modules);
  const file = (await readdir(folder)).find((entry) => /^(licen[cs]e|copying)/i.test(entry));
  if (spdx === "Apache-2.0") return "The text is the one in LICENSE.";
  if (file) return (await readFile(new URL(file, folder), "utf8")).trim();
  // protobuf-es has no such file: Apache's text and, for the code taken from Google's, the comment above that code.
  const google = await readFile(new URL("dist/esm/google/varint.js", folder), "utf8");
  const lines = google.split("\n").filter((line) => line.startsWith("//")).map((line) => line.slice(3));
  const comment = lines.slice(0, lines.findIndex((line) => line.startsWith("OF THIS")) + 1).join("\n");
  return `The text is the one in LICENSE, and for the part from Google:\n\n${comment}`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  for (const { file, content } of await vendored()) await writeFile(file, content);
}
