// Reads a PeerConnection's statistics once a second and turns them into rates and rows for people.

import { push } from "/demo/spark.js";
import { bits, milliseconds } from "/demo/words.js";

/** The numbers of one PeerConnection since the last reading. */
export class Meter {
  constructor(pc) {
    this.pc = pc;
    this.last = null;
    this.bitrates = [];
    this.rtts = [];
  }

  /** Reads once. Rates are over the time since the last reading. */
  async read() {
    const report = await this.pc.getStats();
    const stats = [...report.values()];
    const find = (type, kind) => stats.find((s) => s.type === type && (!kind || s.kind === kind));
    const pair = selectedPair(report, stats);
    const out = find("outbound-rtp", "video") ?? find("outbound-rtp", "audio");
    const rtp = out ?? find("inbound-rtp", "video") ?? find("inbound-rtp", "audio");
    const sound = find(out ? "outbound-rtp" : "inbound-rtp", "audio");
    const told = find("remote-inbound-rtp", "video") ?? find("remote-inbound-rtp", "audio");
    const nowMs = pair?.timestamp ?? rtp?.timestamp ?? performance.now();
    const total = {
      bytesIn: sum(stats, "inbound-rtp", "bytesReceived"),
      bytesOut: sum(stats, "outbound-rtp", "bytesSent"),
      frames: rtp?.framesDecoded ?? rtp?.framesEncoded ?? 0,
      nowMs,
    };
    const before = this.last ?? total;
    this.last = total;
    const seconds = (total.nowMs - before.nowMs) / 1000;
    const rate = (name) => (seconds > 0 ? Math.max(0, total[name] - before[name]) / seconds : 0);
    const rttS = told?.roundTripTime ?? pair?.currentRoundTripTime;
    const reading = {
      publishes: Boolean(out),
      bitrateIn: rate("bytesIn") * 8,
      bitrateOut: rate("bytesOut") * 8,
      framesPerSecond: rtp?.framesPerSecond ?? rate("frames"),
      framesTotal: total.frames,
      bytesTotal: total.bytesIn + total.bytesOut,
      rttMs: rttS === undefined ? undefined : rttS * 1000,
      codec: codecName(report, rtp),
      width: rtp?.frameWidth,
      height: rtp?.frameHeight,
      lost: out ? told?.packetsLost : sum(stats, "inbound-rtp", "packetsLost"),
      jitterMs: jitterMs(out ? told : rtp),
      nacks: rtp?.nackCount,
      plis: rtp?.pliCount,
      retransmitted: rtp?.retransmittedPacketsSent ?? rtp?.retransmittedPacketsReceived,
      freezes: rtp?.freezeCount,
      limit: rtp?.qualityLimitationReason,
      estimate: pair?.availableOutgoingBitrate,
      bufferMs: rtp?.jitterBufferEmittedCount ? (1000 * rtp.jitterBufferDelay) / rtp.jitterBufferEmittedCount : undefined,
      audioLevel: sound?.audioLevel,
    };
    push(this.bitrates, out ? reading.bitrateOut : reading.bitrateIn);
    push(this.rtts, reading.rttMs ?? 0);
    return reading;
  }
}

/** A reading as rows of name, value and what the name means. */
export function rows(reading) {
  const both = [
    ["Codec", reading.codec ?? "none yet", "The video codec that is in use"],
    ["Resolution", reading.width ? `${reading.width} x ${reading.height}` : "none yet", "Width and height of the picture"],
    ["Frames", reading.width ? `${Math.round(reading.framesPerSecond)} /s` : "none yet", "Pictures each second"],
    ["Round trip", milliseconds(reading.rttMs), "Time to the node and back"],
    ["Jitter", milliseconds(reading.jitterMs), "Variation of the packets' travel time"],
    ["Packets lost", count(reading.lost), "Packets that never arrived, repaired ones not counted"],
  ];
  if (reading.publishes) {
    return [
      ["Sending", bits(reading.bitrateOut), "Bitrate of audio and video together"],
      ["Estimate", bits(reading.estimate), "What the browser believes the path carries"],
      ...both,
      ["NACK received", count(reading.nacks), "Repair requests from the node"],
      ["PLI received", count(reading.plis), "Keyframe requests from the node"],
      ["Repaired", count(reading.retransmitted), "Packets sent again"],
      ["Limited by", reading.limit ?? "none", "What keeps the encoder from a better picture"],
    ];
  }
  return [
    ["Receiving", bits(reading.bitrateIn), "Bitrate of audio and video together"],
    ...both,
    ["NACK sent", count(reading.nacks), "Repair requests to the node"],
    ["PLI sent", count(reading.plis), "Keyframe requests to the node"],
    ["Freezes", count(reading.freezes), "Times that the picture stood still"],
    ["Buffer", milliseconds(reading.bufferMs), "Time that packets wait before they are shown"],
    ["Audio level", reading.audioLevel === undefined ? "none yet" : `${Math.round(reading.audioLevel * 100)} %`, "Loudness of what is played; 0 % while the sound is off"],
  ];
}

function selectedPair(report, stats) {
  const transport = stats.find((s) => s.type === "transport");
  const chosen = transport?.selectedCandidatePairId && report.get(transport.selectedCandidatePairId);
  // Firefox names no pair in its transport statistics.
  return chosen || stats.find((s) => s.type === "candidate-pair" && (s.selected || (s.nominated && s.state === "succeeded")));
}

function codecName(report, rtp) {
  return rtp?.codecId && report.get(rtp.codecId)?.mimeType.split("/")[1];
}

function jitterMs(stat) {
  return stat?.jitter === undefined ? undefined : stat.jitter * 1000;
}

function sum(stats, type, field) {
  return stats.filter((s) => s.type === type).reduce((total, s) => total + (s[field] ?? 0), 0);
}

function count(value) {
  return value === undefined ? "unknown" : String(value);
}
