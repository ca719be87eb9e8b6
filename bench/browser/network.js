// A network of the test's own, played by `pop-bench shaper`: a namespace per end, wires with delay, loss and the rest between them.
// It goes away with `stop`, and also when this process dies.

import { spawn } from "node:child_process";
import { once } from "node:events";
import path from "node:path";
import { createInterface } from "node:readline";

import { target } from "./node.js";

/**
 * Makes the network. `ends`: from name to address, such as `{ a: "10.77.0.1/24", host: "@.10.77.0.2/24" }`; `@.` before the address
 * means this namespace instead of one of its own. `wires`: as in `pop-bench shaper --wire`.
 */
export async function makeNetwork(ends, wires = [], { seed = 1 } = {}) {
  const words = ["shaper", "--seed", `${seed}`];
  for (const [name, address] of Object.entries(ends)) {
    words.push("--end", address.startsWith("@.") ? `${name}@.=${address.slice(2)}` : `${name}=${address}`);
  }
  for (const wire of wires) words.push("--wire", wire);
  const child = spawn(path.join(target, "release", "pop-bench"), words, { stdio: ["pipe", "pipe", "inherit"] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const exited = once(child, "exit");
  const network = new Network(child, exited, lines);
  const { ready } = await network.read();
  network.ends = Object.fromEntries(Object.entries(ready).map(([name, end]) => [name, withIp(end)]));
  return network;
}

/** A client and nodes that are `rtts_ms` away from it: ends `client`, `node0`, `node1`, .. in 10.`second`.0.0/24. */
export function makeStar(rtts_ms, { second = 78, ...options } = {}) {
  const ends = { client: `10.${second}.0.1/24` };
  const wires = rtts_ms.map((rtt, i) => {
    ends[`node${i}`] = `10.${second}.0.${i + 2}/24`;
    return `client-node${i} delay ${rtt / 2}ms`;
  });
  return makeNetwork(ends, wires, options);
}

function withIp({ netns, addresses }) {
  return { netns, address: addresses[0].split("/")[0] };
}

class Network {
  constructor(child, exited, lines) {
    Object.assign(this, { child, exited, lines });
  }

  async read() {
    const { value, done } = await this.lines.next();
    if (done) throw new Error(`pop-bench shaper ended with ${(await this.exited)[0]}`);
    return JSON.parse(value);
  }

  /** Changes wires, such as `a-b loss 5%`; the change holds when this returns. One at a time. */
  async change(words) {
    this.child.stdin.write(`${words}\n`);
    const answer = await this.read();
    if (answer.error) throw new Error(`${words}: ${answer.error}`);
  }

  /** The counters so far: `wires["a>b"].lost`, `late_us.p99`, .. */
  async stats() {
    this.child.stdin.write("stats\n");
    return (await this.read()).stats;
  }

  /** Removes everything; the final counters. */
  async stop() {
    this.child.stdin.end();
    const { stats } = await this.read();
    const [code] = await this.exited;
    if (code !== 0) throw new Error(`pop-bench shaper ended with ${code}`);
    return stats;
  }
}
