// A pop process for one test file: its own ports, its own keys, a capture of its media, and the judgement of the capture.

import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { chmod, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const run = promisify(execFile);
const repository = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");

/** Where cargo puts what it builds, and where tests leave their pictures and captures. */
export const target = path.resolve(repository, process.env.CARGO_TARGET_DIR ?? "target");

const programs = path.join(target, "release");
export const artifacts = path.join(target, "e2e");

/** Two workers' ports side by side, below the range from which the kernel gives ports to clients. */
async function freeMediaPort() {
  for (;;) {
    const port = 20_000 + Math.floor(Math.random() * 5_000) * 2;
    const sockets = [createSocket("udp4"), createSocket("udp4")];
    try {
      for (const [i, socket] of sockets.entries()) {
        socket.bind(port + i, "0.0.0.0");
        await once(socket, "listening");
      }
      return port;
    } catch {
      // Taken: draw again.
    } finally {
      for (const socket of sockets) socket.close();
    }
  }
}

/**
 * Starts a node, inside the network namespace `netns` when given. `address` is one of that host's own; media listens on loopback as
 * well. Captures run on `interfaces` of this namespace. `extra` is more of the config. A namespace of its own has ports that may be
 * given: `httpPort`, and `mediaPort` of the first worker; there the admin listener has one, too, for a node that begins anew by itself.
 */
export async function startNode(name, { address = "127.0.0.1", netns, interfaces = netns ? [] : ["lo"], httpPort = 0, mediaPort, extra = "" } = {}) {
  const folder = await mkdtemp(path.join(tmpdir(), "pop-e2e-"));
  const port = mediaPort ?? (await freeMediaPort());
  const keys = path.join(folder, "keys.toml");
  const config = path.join(folder, "pop.toml");
  await writeFile(keys, 'e2e = "a secret of this test run alone, 0123456789"\n');
  await chmod(keys, 0o600);
  const addresses = [...new Set(["127.0.0.1", address])].map((a) => JSON.stringify(a)).join(", ");
  await writeFile(
    config,
    `[http]
listen = "${address}:${httpPort}"
[admin]
listen = "${netns ? `${address}:9464` : "127.0.0.1:0"}"
socket = "${folder}/pop.sock"
[media]
addresses = [${addresses}]
port = ${port}
[dataplane]
cores = "0-1"
[auth]
keys_file = "keys.toml"
${extra}
`,
  );
  const node = new Node({ name, netns, folder, config, keys, ports: `${port}-${port + 1}`, mediaPorts: [port, port + 1] });
  await node.start();
  await mkdir(artifacts, { recursive: true });
  for (const it of interfaces) node.captures.push(await startCapture(it, port, path.join(artifacts, `${name}-${it}.pcap`)));
  return node;
}

class Node {
  constructor(fields) {
    Object.assign(this, fields);
    this.captures = [];
    this.log = [];
  }

  /** Also once more after `kill`: the same node, in its next incarnation. */
  async start() {
    // It does not outlive a test file that is ended.
    const within = ["setpriv", "--pdeathsig", "KILL", ...(this.netns ? ["ip", "netns", "exec", this.netns] : [])];
    const words = [...within, path.join(programs, "pop"), "run", "--json", "--config", this.config];
    const child = spawn(words[0], words.slice(1), { stdio: ["ignore", "pipe", "pipe"] });
    createInterface({ input: child.stderr }).on("line", (line) => this.log.push(line));
    const exited = once(child, "exit");
    const lines = createInterface({ input: child.stdout });
    const ended = exited.then(([code]) => assert.fail(`pop ended with ${code} before it was ready:\n${this.log.join("\n")}`));
    const [line] = await Promise.race([once(lines, "line"), ended]);
    ended.catch(() => {});
    const ready = JSON.parse(line);
    Object.assign(this, { child, exited, ready, http: ready.http });
  }

  /** As a crash ends it. */
  async kill() {
    this.child.kill("SIGKILL");
    await this.exited;
  }

  get hasEnded() {
    return this.child.exitCode !== null || this.child.signalCode !== null;
  }

  /** A token of `pop token create`. */
  async token(room, identity, ...options) {
    const words = ["token", "create", "--keys", this.keys, "--room", room, "--identity", identity, "--json", ...options];
    return JSON.parse((await run(path.join(programs, "pop"), words)).stdout).token;
  }

  /** All samples of `/metrics` as a map from the line's name and labels to its value. */
  async metrics() {
    const text = await (await this.ask("/metrics")).text();
    const samples = text.split("\n").filter((line) => line && !line.startsWith("#"));
    return new Map(samples.map((line) => [line.slice(0, line.lastIndexOf(" ")), Number(line.slice(line.lastIndexOf(" ") + 1))]));
  }

  async sessions() {
    return (await this.ask("/api/v1/sessions")).json();
  }

  async status() {
    return (await this.ask("/api/v1/status")).json();
  }

  /** Its log, as far as somebody may want to read it. */
  lastWords() {
    return `${this.name}:\n${lastWords(this.log)}`;
  }

  /** Of the admin listener. An error says at which node, why, and what that said last. */
  ask(route) {
    return fetch(this.ready.admin + route).catch((error) => {
      assert.fail(`${this.name} ${route}: ${error.cause?.code ?? error.cause ?? error}; exit code ${this.child.exitCode}:\n${lastWords(this.log)}`);
    });
  }

  /** Ends the node and its captures; it must end well, and no key and index may have made two ciphertexts. */
  async stop() {
    for (const capture of this.captures) await capture.stop();
    this.child.kill("SIGTERM");
    const hung = setTimeout(() => this.child.kill("SIGKILL"), 10_000);
    const [code, signal] = await this.exited;
    clearTimeout(hung);
    await rm(this.folder, { recursive: true, force: true });
    assert.equal(code, 0, `pop ended with ${code ?? signal}:\n${lastWords(this.log)}`);
    for (const { file } of this.captures) {
      const verdict = await run(path.join(programs, "pop-bench"), ["oracle", "--ports", this.ports, file]).catch((error) => {
        assert.fail(`nonce oracle on ${file}: ${error.stdout}${error.stderr}`);
      });
      console.log(`nonce oracle, ${path.basename(file)}: ${verdict.stdout.trim()}`);
      await rm(file);
    }
  }
}

/** What a node said last, and what any of its threads said of a bug. */
function lastWords(log) {
  const from = Math.max(0, log.length - 200);
  return [...log.slice(0, from).filter((line) => /panicked|a bug: /.test(line)), ...log.slice(from)].join("\n");
}

async function startCapture(device, port, file) {
  const words = ["-i", device, "-w", file, "-U", "-B", "32768", "-s", "0", "-Z", "root", `udp portrange ${port}-${port + 1}`];
  const child = spawn("tcpdump", words, { stdio: ["ignore", "ignore", "pipe"] });
  const exited = once(child, "exit");
  const said = [];
  await new Promise((listening, failed) => {
    createInterface({ input: child.stderr }).on("line", (line) => {
      said.push(line);
      if (line.includes("listening on")) listening();
    });
    child.once("exit", () => failed(new Error(`tcpdump ended: ${said.join("\n")}`)));
  });
  const stop = async () => {
    // What the kernel still holds for tcpdump reaches the file within its read timeout of a second.
    await new Promise((done) => setTimeout(done, 1_200));
    child.kill("SIGINT");
    await exited;
    // A capture with holes proves nothing about what is not in it.
    assert.match(said.join("\n"), /^0 packets dropped by kernel/m, `tcpdump kept up:\n${said.join("\n")}`);
  };
  return { file, stop };
}
