// The token to join with. A link for many brings guests: the node makes each a token of their own, so that nobody pushes anybody out.

import { claims } from "/demo/address.js";

/** At which node each person of the room is, by identity; nothing when the node does not say. */
export async function hostsOf(token) {
  const response = await fetch("/demo/hosts", { headers: { Authorization: `Bearer ${token}` } }).catch(() => undefined);
  return response?.ok ? (await response.json()).hosts : {};
}

/** `token`, or a guest's made from it. `name` is what the others read. */
export async function ownToken(token, name) {
  if (!claims(token).guests) return token;
  const response = await fetch("/demo/guest", {
    method: "POST",
    headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
    body: JSON.stringify({ name }),
  }).catch(() => {
    throw new Error("The node does not answer. Is it running?");
  });
  if (!response.ok) {
    const said = (await response.text()).trim();
    throw new Error(response.status === 401 ? `The link is of no use any more: ${said}. Get a new one from the node.` : `The node refuses: ${said}`);
  }
  return (await response.json()).token;
}
