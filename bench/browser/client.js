// Runs inside the page. The shortest WHIP and WHEP client that the drafts allow, and the browser's own statistics.

globalThis.popClient = (() => {
  let pc;
  let resource;
  let token;
  let etag;
  let answer;
  let timer;
  let begun;
  let gone;
  const decoded = [];

  async function exchange(url) {
    await pc.setLocalDescription();
    const response = await fetch(url, {
      method: "POST",
      headers: { "Content-Type": "application/sdp", Authorization: `Bearer ${token}` },
      body: pc.localDescription.sdp,
    });
    const body = await response.text();
    if (response.status !== 201) throw new Error(`${url} answered ${response.status}: ${body}`);
    const location = response.headers.get("Location");
    if (!location) throw new Error("no Location, or CORS hides it");
    resource = new URL(location, response.url).href;
    etag = response.headers.get("ETag");
    answer = body;
    await pc.setRemoteDescription({ type: "answer", sdp: body });
  }

  /** A picture of noise: no encoder gets it below the bitrate it is given. */
  function noise(width, height) {
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const context = canvas.getContext("2d", { alpha: false });
    const tile = context.createImageData(256, 256);
    for (let i = 0; i < tile.data.length; i++) tile.data[i] = Math.random() * 256;
    const source = Object.assign(document.createElement("canvas"), { width: 256, height: 256 });
    source.getContext("2d").putImageData(tile, 0, 0);
    const pattern = context.createPattern(source, "repeat");
    timer = setInterval(() => {
      context.setTransform(1, 0, 0, 1, -Math.random() * 256, -Math.random() * 256);
      context.fillStyle = pattern;
      context.fillRect(0, 0, width + 256, height + 256);
    }, 33);
    return canvas.captureStream(30);
  }

  /** Three layers, the smallest first, or one with its bound and the layers that it has inside. Those below get so little that even a busy machine's estimate is
   * soon enough for the top one. */
  function encodings({ simulcast, bitrateMax, scalabilityMode }) {
    if (simulcast) {
      return [
        { rid: "q", scaleResolutionDownBy: 4, maxBitrate: 60_000 },
        { rid: "h", scaleResolutionDownBy: 2, maxBitrate: 120_000 },
        { rid: "f", maxBitrate: 800_000 },
      ];
    }
    return bitrateMax || scalabilityMode ? [{ ...(bitrateMax && { maxBitrate: bitrateMax }), ...(scalabilityMode && { scalabilityMode }) }] : undefined;
  }

  async function publish(options) {
    token = options.token;
    begun = () => publish(options);
    open();
    const { width = 640, height = 480 } = options;
    // Chromium makes three layers of nothing smaller, and its fake camera gives that size only when it must.
    const video = options.simulcast ? { width: { exact: 1280 }, height: { exact: 720 } } : { width, height, frameRate: 30 };
    const stream = options.noise ? noise(width, height) : await navigator.mediaDevices.getUserMedia({ audio: true, video });
    for (const track of stream.getTracks()) {
      const sendEncodings = track.kind === "video" ? encodings(options) : undefined;
      const transceiver = pc.addTransceiver(track, { direction: "sendonly", streams: [stream], ...(sendEncodings && { sendEncodings }) });
      if (track.kind === "video" && options.codec) {
        const wanted = RTCRtpSender.getCapabilities("video").codecs.filter((c) => c.mimeType.toLowerCase() === `video/${options.codec.toLowerCase()}`);
        if (wanted.length === 0) throw new Error(`this browser cannot send ${options.codec}`);
        // RTX is a codec of its own in this list; without it nothing is sent again as a stream of its own.
        const repair = RTCRtpSender.getCapabilities("video").codecs.filter((c) => c.mimeType.toLowerCase() === "video/rtx");
        transceiver.setCodecPreferences([...wanted, ...repair]);
      }
      if (track.kind === "audio" && options.red) {
        const named = (name) => RTCRtpSender.getCapabilities("audio").codecs.filter((c) => c.mimeType === `audio/${name}`);
        transceiver.setCodecPreferences([...named("red"), ...named("opus")]);
      }
    }
    await exchange(options.url);
  }

  /** Offers the dependency descriptor, which Chromium's offers to receive leave out and LiveKit's have. */
  function describe(transceiver) {
    const extensions = transceiver.getHeaderExtensionsToNegotiate();
    for (const extension of extensions) if (extension.uri.includes("dependency-descriptor")) extension.direction = "sendrecv";
    transceiver.setHeaderExtensionsToNegotiate(extensions);
  }

  async function watch(options) {
    token = options.token;
    begun = () => watch(options);
    open();
    const video = pc.addTransceiver("video", { direction: "recvonly" });
    if (options.descriptor) describe(video);
    pc.addTransceiver("audio", { direction: "recvonly" });
    const element = document.createElement("video");
    element.autoplay = true;
    element.playsInline = true;
    document.body.append(element);
    const stream = new MediaStream();
    element.srcObject = stream;
    pc.ontrack = (event) => stream.addTrack(event.track);
    await exchange(options.url);
  }

  /** `gone` ends when nothing comes back over the connection: the browser says so, after some seconds. */
  function open() {
    const opened = new RTCPeerConnection();
    gone = new Promise((resolve) => {
      opened.addEventListener("iceconnectionstatechange", () => ["disconnected", "failed"].includes(opened.iceConnectionState) && resolve(performance.timeOrigin + performance.now()));
    });
    pc = opened;
  }

  /** What a client does whose server is gone: it waits until its browser says so, asks for an ICE restart, and when the resource is unknown it posts anew.
   * The PATCH's status, and when the browser said so and when the answer to the POST was there, in milliseconds since 1970. */
  async function anew() {
    const goneAt = await gone;
    const { status } = await patch("*");
    if (status !== 404) throw new Error(`PATCH answered ${status}`);
    pc.close();
    await begun();
    return { status, goneAt, answeredAt: performance.timeOrigin + performance.now() };
  }

  /** From now on it is noted when a picture was decoded, to some 20 ms, whatever connection it came by. */
  function follow() {
    let frames = 0;
    setInterval(async () => {
      const report = [...(await pc.getStats()).values()].find(({ type, kind }) => type === "inbound-rtp" && kind === "video");
      if (report && report.framesDecoded !== frames) {
        frames = report.framesDecoded;
        if (frames > 0) decoded.push({ at: performance.timeOrigin + performance.now() });
      }
    }, 20);
  }

  /** A PATCH with our ICE agent's fragment: its first section, which is the transport of all (RFC 9725 section 4.3). */
  function patch(ifMatch) {
    const [, section] = pc.localDescription.sdp.split(/^m=/m);
    const wanted = /^a=(mid|ice-ufrag|ice-pwd|candidate|end-of-candidates)/;
    const lines = section.split("\r\n").filter((line) => wanted.test(line));
    const headers = { "Content-Type": "application/trickle-ice-sdpfrag", "If-Match": ifMatch, Authorization: `Bearer ${token}` };
    return fetch(resource, { method: "PATCH", headers, body: `m=${section.split("\r\n")[0]}\r\n${lines.join("\r\n")}\r\n` });
  }

  /** The status of a trickle PATCH with every candidate so far. */
  async function trickle() {
    return (await patch(etag)).status;
  }

  /** ICE restarts as a WHIP client does it: new credentials by PATCH, everything else as agreed in the beginning. */
  async function restart() {
    const ufrag = (text) => text.match(/^a=ice-ufrag:(.*)$/m)[1].trim();
    pc.restartIce();
    await pc.setLocalDescription();
    const response = await patch("*");
    const fragment = await response.text();
    if (response.status !== 200) throw new Error(`PATCH answered ${response.status}: ${fragment}`);
    const before = { etag, local: ufrag(answer) };
    etag = response.headers.get("ETag");
    const value = (name) => fragment.match(new RegExp(`^a=${name}:(.*)$`, "m"))[1].trim();
    const candidates = fragment.split("\r\n").filter((line) => line.startsWith("a=candidate:"));
    answer = answer
      .split("\r\n")
      .map((line) => line.replace(/^(a=ice-(ufrag|pwd)):.*/, (_, head, name) => `${head}:${value(`ice-${name}`)}`))
      .filter((line) => !line.startsWith("a=candidate:"))
      .flatMap((line) => (line === "a=end-of-candidates" ? [...candidates, line] : [line]))
      .join("\r\n");
    await pc.setRemoteDescription({ type: "answer", sdp: answer });
    return { before, etag, node: ufrag(answer), client: ufrag(pc.localDescription.sdp) };
  }

  /** Plain numbers: what was decoded, heard, lost and asked for. */
  async function stats() {
    const all = [...(await pc.getStats()).values()];
    const codec = (rtp) => all.find((s) => s.id === rtp?.codecId)?.mimeType.split("/")[1];
    const pick = (type, kind) => {
      const rtp = all.find((s) => s.type === type && s.kind === kind);
      return rtp && { ...rtp, codec: codec(rtp) };
    };
    const direction = all.some((s) => s.type === "outbound-rtp") ? "outbound-rtp" : "inbound-rtp";
    const transport = all.find((s) => s.type === "transport");
    const pair = all.find((s) => s.id === transport?.selectedCandidatePairId);
    return {
      state: pc.connectionState,
      protocol: all.find((s) => s.id === pair?.remoteCandidateId)?.protocol,
      video: pick(direction, "video") ?? {},
      audio: pick(direction, "audio") ?? {},
      layers: all.filter((s) => s.type === direction && s.kind === "video").map(({ rid, frameWidth, packetsSent }) => ({ rid, frameWidth, packetsSent })),
      payloads: Object.fromEntries([...pc.remoteDescription.sdp.matchAll(/a=rtpmap:(\d+) ([^/]+)/g)].map(([, type, name]) => [type, name])),
      estimate: all.find((s) => s.type === "candidate-pair" && s.nominated)?.availableOutgoingBitrate,
      srtp: transport?.srtpCipher,
      ice: { ufrag: transport?.iceLocalUsernameFragment, state: transport?.iceState, dtls: transport?.dtlsState },
      atMs: performance.now(),
    };
  }

  async function stop() {
    clearInterval(timer);
    const response = await fetch(resource, { method: "DELETE", headers: { Authorization: `Bearer ${token}` } });
    pc.close();
    return response.status;
  }

  /** Header extensions of the answer. */
  function extensions() {
    const sections = pc.remoteDescription.sdp.split("\r\nm=").slice(1);
    return sections.flatMap((section) => {
      const mid = section.match(/a=mid:(\S+)/)[1];
      const found = [...section.matchAll(/a=extmap:(\d+)\S* (\S+)/g)];
      return found.map(([, id, uri]) => ({ kind: section.split(" ")[0], mid, id: Number(id), uri }));
    });
  }

  /** Whether this browser offers to receive `codec`. */
  function decodes(codec) {
    return RTCRtpReceiver.getCapabilities("video").codecs.some((c) => c.mimeType.toLowerCase() === `video/${codec.toLowerCase()}`);
  }

  return { publish, watch, anew, follow, decoded: () => decoded, trickle, restart, stats, stop, extensions, decodes };
})();
