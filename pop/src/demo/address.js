// The page's address: the room, and behind the '#', where no server and no log sees it, the token.

/** What the address says. */
export function readAddress() {
  const query = new URLSearchParams(location.search);
  const hash = new URLSearchParams(location.hash.slice(1));
  const token = hash.get("token") ?? "";
  const room = query.get("room") ?? hash.get("room") ?? claims(token).video?.room ?? "demo";
  return { room, token, query };
}

/** The claims that a token carries, unchecked: the page only words itself by them. */
export function claims(token) {
  try {
    const middle = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    return JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(middle), (c) => c.charCodeAt(0))));
  } catch {
    return {};
  }
}

/** The address of the page at `path` for `room` and `token`; `flags` are names in the query. */
export function pageUrl(path, { room, token }, flags = []) {
  const url = new URL(path, location.href);
  url.search = [`room=${encodeURIComponent(room)}`, ...flags].join("&");
  url.hash = new URLSearchParams({ token });
  return url.href;
}
