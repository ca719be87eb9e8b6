// The service address of a PoP, which survives its node: connections go to the node `to`, which may change.

import { once } from "node:events";
import { connect, createServer } from "node:net";

/** `to` is the name of a node of `pop`. */
export async function serveAddress(pop, to) {
  const pairs = new Set();
  const server = createServer((near) => {
    const { hostname, port } = new URL(pop.nodes[address.to].http);
    const far = connect(Number(port), hostname);
    for (const [one, other] of [[near, far], [far, near]]) {
      pairs.add(one);
      one.pipe(other);
      one.on("error", () => other.destroy()).on("close", () => (other.destroy(), pairs.delete(one)));
    }
  });
  const address = {
    to,
    cut: () => pairs.forEach((socket) => socket.resetAndDestroy()),
    close: () => (address.cut(), server.close()),
  };
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  return Object.assign(address, { url: `ws://127.0.0.1:${port}`, http: `http://127.0.0.1:${port}` });
}
