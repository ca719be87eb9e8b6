// A PoP of several nodes, each in a namespace of its own, on a network whose wires can be shaped one by one. The people are here: in
// this namespace, at the end of the network that is called `people`.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { promisify } from "node:util";

import { pause, until } from "./expect.js";
import { makeNetwork } from "./network.js";
import { startNode, target } from "./node.js";

const run = promisify(execFile);
const pop = path.join(target, "release", "pop");
const MEDIA_PORT = 10_000;

/**
 * Starts a node for each of `names`, which are ends of the network, too: `network.change("a-b loss 2%")`. `split`: a client's socket and its
 * transport are at two nodes.
 */
export async function startPop(test, names = ["a", "b", "c"], { second = 75, wires = [], split = false, extra = "" } = {}) {
  const addresses = Object.fromEntries(names.map((name, i) => [name, `10.${second}.0.${i + 2}`]));
  const ends = { people: `@.10.${second}.0.1/24` };
  for (const name of names) ends[name] = `${addresses[name]}/24`;
  const network = await makeNetwork(ends, wires);
  const folder = await mkdtemp(path.join(tmpdir(), "pop-ca-"));
  const started = new Pop({ network, folder, names, nodes: {} });
  try {
    await run(pop, ["ca", "init", "--dir", `${folder}/ca`]);
    for (const name of names) {
      const [address, out, { netns }] = [addresses[name], path.join(folder, name), network.ends[name]];
      // As config/sysctl.d has it on a node's host.
      await run("ip", ["netns", "exec", netns, "sysctl", "-qw", "net.ipv4.tcp_syn_linear_timeouts=127"]);
      await run(pop, ["ca", "issue", "--dir", `${folder}/ca`, "--node", name, "--pop", test, "--address", address, "--out", out]);
      const others = names.filter((other) => other !== name).map((other) => `${addresses[other]}:7447`);
      started.nodes[name] = await startNode(`${test}-${name}`, {
        address,
        netns,
        // All have the same media ports, so one capture judges all.
        interfaces: name === names[0] ? ["people"] : [],
        httpPort: 7880,
        mediaPort: MEDIA_PORT,
        extra: `[node]
name = "${name}"
pop = "${test}"
state_dir = "${out}/state"
[bus]
listen = ["${address}:7447"]
connect = ${JSON.stringify(others)}
[mesh]
split = ${split}
listen = "${address}:7890"
ca = "${out}/ca.pem"
cert = "${out}/node.pem"
key = "${out}/node.key"
${extra}`,
      });
    }
    await started.untilWhole();
  } catch (error) {
    await started.stop().catch(() => {});
    throw error;
  }
  return started;
}

class Pop {
  constructor(fields) {
    Object.assign(this, fields);
  }

  get all() {
    return this.names.map((name) => this.nodes[name]).filter((node) => node);
  }

  /** Each node knows all others, and has a link to each. */
  async untilWhole() {
    let answers;
    const isWhole = async () => {
      answers = await Promise.all(this.all.map((node) => node.status()));
      const up = (list) => list.filter(({ state }) => state === "up").length === this.names.length - 1;
      return answers.every(({ nodes, links }) => up(nodes) && up(links));
    };
    await until("nodes that know each other", isWhole).catch((error) => {
      const seen = answers.map(({ nodes, links }) => ({ nodes, links }));
      assert.fail(`${error.message}: ${JSON.stringify(seen)}\n${this.all.map((node) => node.lastWords()).join("\n")}`);
    });
  }

  /** Who is in the room as `name` knows it: from identity to `{ node, state, local, tracks, .. }`. */
  async people(name, room) {
    const { sessions } = await this.nodes[name].sessions();
    const session = sessions.find(({ id }) => id === room);
    return Object.fromEntries((session?.participants ?? []).map((person) => [person.identity, person]));
  }

  async stop() {
    const ends = await Promise.allSettled(this.all.map((node) => node.stop()));
    await this.network.stop();
    await rm(this.folder, { recursive: true, force: true });
    for (const { reason } of ends) if (reason) throw reason;
  }
}
