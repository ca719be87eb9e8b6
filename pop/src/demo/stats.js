// What the browser counts: one report of the call's one PeerConnection each second, as rates, for the tiles and the drawer.

/** Layers by RID, smallest first. */
const RIDS = ["q", "h", "f"];

/** Reads the statistics of `room`. */
export class Stats {
  constructor(room) {
    this.room = room;
    this.before = new Map();
  }

  /** One reading; rates are over the time since the last one. */
  async read() {
    const transport = this.room.engine?.pcManager?.publisher;
    const report = await transport?.getStats();
    if (!report) return new Reading([], [], {});
    const stats = [...report.values()];
    const rates = stats.filter((stat) => /^(in|out)bound-rtp$/.test(stat.type)).map((stat) => this.rate(report, stat));
    this.before = new Map(stats.map((stat) => [stat.id, stat]));
    return new Reading(rates, transport.getTransceivers(), connectionOf(report, stats, rates));
  }

  /** One RTP stream in this second. */
  rate(report, stat) {
    const before = this.before.get(stat.id) ?? stat;
    const seconds = (stat.timestamp - before.timestamp) / 1000;
    const per = (name) => (seconds > 0 ? Math.max(0, (stat[name] ?? 0) - (before[name] ?? 0)) / seconds : 0);
    const isOut = stat.type === "outbound-rtp";
    const told = isOut && stat.remoteId ? report.get(stat.remoteId) : undefined;
    const source = stat.mediaSourceId ? report.get(stat.mediaSourceId) : undefined;
    return {
      isOut,
      mid: stat.mid,
      trackIdentifier: stat.trackIdentifier ?? source?.trackIdentifier,
      kind: stat.kind,
      rid: stat.rid,
      width: stat.frameWidth,
      height: stat.frameHeight,
      framesPerSecond: stat.framesPerSecond ?? per(isOut ? "framesEncoded" : "framesDecoded"),
      frames: isOut ? stat.framesEncoded : stat.framesDecoded,
      bitrate: per(isOut ? "bytesSent" : "bytesReceived") * 8,
      packets: per(isOut ? "packetsSent" : "packetsReceived"),
      lost: isOut ? told?.packetsLost : stat.packetsLost,
      lossRatio: isOut ? told?.fractionLost : lossRatio(per("packetsLost"), per("packetsReceived")),
      jitterMs: seconds1000((isOut ? told : stat)?.jitter),
      freezes: stat.freezeCount,
      codec: report.get(stat.codecId)?.mimeType.split("/")[1],
      scalability: stat.scalabilityMode,
      limit: stat.qualityLimitationReason,
    };
  }
}

/** What one second was like. */
export class Reading {
  constructor(streams, transceivers, connection) {
    this.streams = streams;
    this.transceivers = transceivers;
    this.connection = connection;
  }

  /** The numbers of a track of livekit-client; undefined when nothing flows. The layers of a published one are taken together. */
  of(track) {
    const transceiver = this.transceivers.find(({ receiver, sender }) => (track.receiver ? receiver === track.receiver : sender === track.sender));
    const id = (track.receiver ?? track.sender)?.track?.id;
    const isOurs = (stream) => stream.isOut === !track.receiver && (stream.mid ? stream.mid === transceiver?.mid : stream.trackIdentifier === id);
    const streams = this.streams.filter((stream) => isOurs(stream) && stream.kind === track.kind);
    if (streams.length === 0) return undefined;
    const live = streams.filter((stream) => stream.bitrate > 0);
    const largest = (live.length > 0 ? live : streams).reduce((a, b) => ((b.width ?? 0) > (a.width ?? 0) ? b : a));
    return {
      ...largest,
      bitrate: live.reduce((total, stream) => total + stream.bitrate, 0),
      layers: live.length > 1 || streams.length > 1 ? RIDS.filter((rid) => live.some((stream) => stream.rid === rid)) : [],
    };
  }
}

/** The path to the node, and everything on it together. */
function connectionOf(report, stats, rates) {
  const pair = selectedPair(report, stats);
  const transport = stats.find((stat) => stat.type === "transport");
  const [local, remote] = [report.get(pair?.localCandidateId), report.get(pair?.remoteCandidateId)];
  const sum = (streams, name) => streams.reduce((total, stream) => total + (stream[name] ?? 0), 0);
  const [ins, outs] = [rates.filter((rate) => !rate.isOut), rates.filter((rate) => rate.isOut)];
  const told = stats.filter((stat) => stat.type === "remote-inbound-rtp" && stat.roundTripTime !== undefined);
  const worst = (streams, name) => Math.max(0, ...streams.map((stream) => stream[name] ?? 0));
  return {
    rttMs: seconds1000(pair?.currentRoundTripTime ?? told[0]?.roundTripTime),
    bitrateUp: sum(outs, "bitrate"),
    bitrateDown: sum(ins, "bitrate"),
    estimate: pair?.availableOutgoingBitrate,
    lossDown: lossRatio(ins.reduce((total, { lossRatio, packets }) => total + (lossRatio ?? 0) * packets, 0), sum(ins, "packets")),
    lossUp: worst(outs, "lossRatio"),
    jitterMs: worst(ins, "jitterMs"),
    path: remote && `${remote.protocol ?? "udp"} ${remote.address ?? remote.ip ?? ""}:${remote.port ?? ""}`,
    from: local && `${local.candidateType}${local.networkType ? `, ${local.networkType}` : ""}`,
    cipher: transport?.srtpCipher,
    dtls: transport?.dtlsState,
  };
}

function selectedPair(report, stats) {
  const transport = stats.find((stat) => stat.type === "transport");
  const chosen = transport?.selectedCandidatePairId && report.get(transport.selectedCandidatePairId);
  // Firefox names no pair in its transport statistics.
  return chosen || stats.find((stat) => stat.type === "candidate-pair" && (stat.selected || (stat.nominated && stat.state === "succeeded")));
}

function lossRatio(lost, received) {
  return lost + received > 0 ? Math.max(0, lost) / (Math.max(0, lost) + received) : undefined;
}

function seconds1000(value) {
  return value === undefined ? undefined : value * 1000;
}
