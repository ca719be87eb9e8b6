// A host of the test's own: a network namespace with a veth pair to this one, and faults by iproute2's packet filter.

import { execFile } from "node:child_process";
import { promisify } from "node:util";

const run = promisify(execFile);
const ip = (...words) => run("ip", words);

/** Makes the namespace. Addresses are of a documentation-free private range that only this machine sees. */
export async function makeHost() {
  const id = `${process.pid % 100_000}`;
  const host = { netns: `pop-${id}`, device: `pop${id}a`, peer: `pop${id}b`, near: "10.213.77.1", far: "10.213.77.2" };
  await ip("netns", "add", host.netns);
  try {
    await ip("link", "add", host.device, "type", "veth", "peer", "name", host.peer, "netns", host.netns);
    await ip("addr", "add", `${host.near}/30`, "dev", host.device);
    await ip("link", "set", host.device, "up");
    for (const words of [
      ["addr", "add", `${host.far}/30`, "dev", host.peer],
      ["link", "set", host.peer, "up"],
      ["link", "set", "lo", "up"],
      // Browsers gather candidates of the default route's device.
      ["route", "add", "default", "via", host.near],
    ]) {
      await ip("-n", host.netns, ...words);
    }
  } catch (error) {
    await removeHost(host);
    throw error;
  }
  return host;
}

/** The veth pair goes with the namespace. */
export async function removeHost(host) {
  await ip("netns", "del", host.netns);
}

/** Loses `share` of all packets towards the host, or of those from it. The kernel draws 32 random bits a packet and compares. */
export async function losePackets(host, way, share) {
  const hook = { towards: "egress", from: "ingress" }[way];
  const threshold = Math.round((1 - share) * 2 ** 32);
  await run("tc", ["qdisc", "replace", "dev", host.device, "clsact"]);
  const program = `4,32 0 0 4294963256,37 0 1 ${threshold},6 0 0 2,6 0 0 0`;
  await run("tc", ["filter", "add", "dev", host.device, hook, "bpf", "da", "bytecode", program]);
}

/** Ends what losePackets began. */
export async function healPackets(host) {
  await run("tc", ["qdisc", "del", "dev", host.device, "clsact"]);
}

/** Drops every UDP datagram between here and the host, in both directions. */
export async function blockUdp(host) {
  await run("tc", ["qdisc", "add", "dev", host.device, "clsact"]);
  // Ethernet type 0x0800, IP protocol 17: shot, all else passes.
  const program = "6,40 0 0 12,21 0 3 2048,48 0 0 23,21 0 1 17,6 0 0 2,6 0 0 0";
  for (const direction of ["ingress", "egress"]) {
    await run("tc", ["filter", "add", "dev", host.device, direction, "bpf", "da", "bytecode", program]);
  }
}
