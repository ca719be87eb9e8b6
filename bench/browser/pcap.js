// RTP headers in a capture: SRTP leaves them readable, header extensions included.

import { readFile } from "node:fs/promises";

const ETHERNET = 1;

/** Every RTP packet of a capture file: who sent it, SSRC, payload type, and the bytes of each header extension by its id. */
export async function rtpPackets(file) {
  const bytes = await readFile(file);
  if (bytes.readUInt32LE(0) !== 0xa1b2c3d4 || bytes.readUInt32LE(20) !== ETHERNET) throw new Error(`${file} is no Ethernet capture`);
  const packets = [];
  // tcpdump still writes: the last record may be there in part.
  for (let at = 24; at + 16 <= bytes.length; ) {
    const length = bytes.readUInt32LE(at + 8);
    if (at + 16 + length > bytes.length) break;
    const packet = readRtp(bytes.subarray(at + 16, at + 16 + length));
    if (packet) packets.push(packet);
    at += 16 + length;
  }
  return packets;
}

function readRtp(frame) {
  if (frame.length < 14 || frame.readUInt16BE(12) !== 0x0800) return;
  const ip = frame.subarray(14);
  const header = (ip[0] & 0x0f) * 4;
  if (ip[9] !== 17 || ip.length < header + 8 + 12) return;
  const [sourcePort, targetPort] = [ip.readUInt16BE(header), ip.readUInt16BE(header + 2)];
  const rtp = ip.subarray(header + 8);
  const payloadType = rtp[1] & 0x7f;
  // RFC 7983 and RFC 5761: version 2, and no RTCP packet type.
  if (rtp[0] >> 6 !== 2 || (rtp[1] >= 192 && rtp[1] <= 223)) return;
  return { sourcePort, targetPort, payloadType, ssrc: rtp.readUInt32BE(8), extensions: readExtensions(rtp) };
}

/** RFC 8285: the one-byte form (0xbede) and the two-byte form (0x100 and four bits). */
function readExtensions(rtp) {
  const found = new Map();
  const start = 12 + (rtp[0] & 0x0f) * 4;
  if (!(rtp[0] & 0x10) || rtp.length < start + 4) return found;
  const profile = rtp.readUInt16BE(start);
  const end = start + 4 + rtp.readUInt16BE(start + 2) * 4;
  const oneByte = profile === 0xbede;
  if ((!oneByte && profile >> 4 !== 0x100) || end > rtp.length) return found;
  for (let at = start + 4; at < end; ) {
    if (rtp[at] === 0) {
      at += 1;
      continue;
    }
    const id = oneByte ? rtp[at] >> 4 : rtp[at];
    const length = oneByte ? (rtp[at] & 0x0f) + 1 : rtp[at + 1];
    const value = at + (oneByte ? 1 : 2);
    found.set(id, rtp.subarray(value, value + length));
    at = value + length;
  }
  return found;
}
