"""Datagrams of an attacker: forged source addresses, early hellos, and packets that lie about their lengths."""

import os
import socket
import struct

from OpenSSL import SSL

MEDIA_SSRC = 0x0BADCAFE


class Forger:
    """Sends UDP from any source address and port through a raw socket."""

    def __init__(self):
        self.raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)

    def send(self, source, target, payload):
        # A UDP checksum of zero is "none", RFC 768; the kernel fills the one of IP and its length.
        udp = struct.pack("!HHHH", source[1], target[1], 8 + len(payload), 0)
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, 17, 0, socket.inet_aton(source[0]), socket.inet_aton(target[0]))
        self.raw.sendto(ip + udp + payload, (target[0], 0))

    def close(self):
        self.raw.close()


def client_hello():
    """A real one, from OpenSSL."""
    context = SSL.Context(SSL.DTLS_METHOD)
    connection = SSL.Connection(context)
    connection.set_connect_state()
    try:
        connection.do_handshake()
    except SSL.WantReadError:
        pass
    return connection.bio_read(4_096)


def null_cipher_hello():
    """A ClientHello that offers TLS_NULL_WITH_NULL_NULL and TLS_RSA_WITH_NULL_SHA alone: the datagram of the 2023 advisories."""
    suites = struct.pack("!HHH", 4, 0x0000, 0x0002)
    body = b"\xfe\xfd" + os.urandom(32) + b"\x00\x00" + suites + b"\x01\x00" + b"\x00\x00"
    handshake = b"\x01" + struct.pack("!I", len(body))[1:] + b"\x00\x00" + b"\x00\x00\x00" + struct.pack("!I", len(body))[1:] + body
    return plaintext_record(22, handshake)


def plaintext_record(content_type, body):
    """A DTLS 1.2 record of epoch 0."""
    return struct.pack("!BHHHIH", content_type, 0xFEFD, 0, 0, 77, len(body)) + body


def plaintext_attacks():
    """What ends calls of implementations that read plaintext after the handshake."""
    return [
        plaintext_record(21, b"\x02\x28"),  # fatal handshake_failure
        plaintext_record(21, b"\x01\x00"),  # close_notify
        plaintext_record(20, b"\x01"),  # ChangeCipherSpec
        plaintext_record(23, b"hello"),  # application data
        plaintext_record(22, b"\x10"),  # one byte of a ClientKeyExchange
        plaintext_record(22, os.urandom(40)),
        plaintext_record(63, b"\x00"),  # no such type
        client_hello(),
        null_cipher_hello(),
    ]


def malformed_dtls():
    """Records whose header or length does not hold."""
    return [
        b"\x16",
        b"\x16\xfe\xfd\x00\x00",
        struct.pack("!BHHHIH", 22, 0xFEFD, 0, 0, 1, 4_000) + b"short",
        struct.pack("!BHHHIH", 23, 0xFEFD, 1, 0, 1, 0),
        b"\x14" + os.urandom(11),
    ]


def rtp(payload_type, sequence, timestamp, ssrc, payload, extension=b"", padding=None, csrcs=0, marker=0):
    """An RTP packet whose parts need not agree. `padding` is the value of its last byte."""
    first = 0x80 | (0x20 if padding is not None else 0) | (0x10 if extension else 0) | csrcs
    head = struct.pack("!BBHII", first, marker << 7 | payload_type, sequence & 0xFFFF, timestamp & 0xFFFFFFFF, ssrc)
    tail = b"" if padding is None else bytes([padding])
    return head + extension + payload + tail


def lying_rtp(payload_type, ssrc):
    """Packets with the lies of row 6 (padding) and row 7 (extensions). Sequence numbers count up from 1."""
    shapes = [
        {"payload": b"\x10" + bytes(20), "padding": 0},
        {"payload": b"\x10" + bytes(20), "padding": 22},
        {"payload": b"\x10" + bytes(20), "padding": 23},
        {"payload": b"\x10" + bytes(20), "padding": 255},
        {"payload": b"", "padding": 1},
        {"payload": b"", "padding": 0},
        {"payload": b""},
        # One-byte extensions: an element that runs over the block, id 15, a block of padding, no element at all.
        {"payload": b"\x10\x00", "extension": b"\xbe\xde\x00\x01" + b"\x1f\x00\x00\x00"},
        {"payload": b"\x10\x00", "extension": b"\xbe\xde\x00\x01" + b"\x00\x00\x00\x3f"},
        {"payload": b"\x10\x00", "extension": b"\xbe\xde\x00\x01" + b"\xf0\x00\x00\x00"},
        {"payload": b"\x10\x00", "extension": b"\xbe\xde\x00\x01" + b"\x00\x00\x00\x00"},
        {"payload": b"\x10\x00", "extension": b"\xbe\xde\x00\x00"},
        # Two-byte extensions that run over.
        {"payload": b"\x10\x00", "extension": b"\x10\x00\x00\x01" + b"\x01\xff\x00\x00"},
        {"payload": b"\x10\x00", "extension": b"\x10\x00\x00\x01" + b"\x00\x00\x00\x05"},
        # Descriptors of VP8 that promise bytes which are not there.
        {"payload": b"\x80"},
        {"payload": b"\x90\xff"},
        {"payload": b"\x90\x80"},
        {"payload": b"\x90\x80\x80"},
        {"payload": b"\x90\xf0\x80\x01"},
        {"payload": b"\xff\xff\xff\xff\xff"},
        {"payload": os.urandom(1_200)},
    ]
    return [rtp(payload_type, i + 1, 3_000 * i, ssrc, **shape) for i, shape in enumerate(shapes)]


def rtcp(count, packet_type, body, words=None):
    """One RTCP packet; `words` overrides the true length field."""
    body += b"\x00" * (-len(body) % 4)
    return struct.pack("!BBH", 0x80 | count, packet_type, len(body) // 4 if words is None else words) + body


def lying_rtcp(ssrc, media_ssrc):
    """Reports and feedback with the lies of row 7. Each starts with a header that SRTCP can protect."""
    ours, media = struct.pack("!I", ssrc), struct.pack("!I", media_ssrc)
    remb = lambda count, rest: rtcp(15, 206, ours + bytes(4) + b"REMB" + bytes([count]) + b"\x03\xff\xff" + rest)
    twcc = lambda status_count, chunks: rtcp(15, 205, ours + media + struct.pack("!HHI", 1, status_count, 0x00000100) + chunks)
    return [
        remb(255, media),
        remb(1, b""),
        remb(0, b""),
        twcc(10, b"\xff\xff" * 2),  # symbol 3, reserved
        twcc(65_535, b"\x3f\xff" * 2),  # a run that is longer than its deltas
        twcc(10, b""),
        twcc(0, b"\x20\x01"),
        rtcp(1, 205, ours + media + b"\x00\x01\xff\xff" * 60),  # NACK for 1,020 packets
        rtcp(1, 205, ours + media),  # NACK without an item
        rtcp(1, 205, ours),
        rtcp(1, 206, ours + media) * 30,  # PLI, thirty times
        rtcp(4, 206, ours + media + b"\x00"),  # FIR without its item
        rtcp(31, 200, ours + bytes(20)),  # SR that promises 31 blocks
        rtcp(31, 201, ours),  # RR that promises 31 blocks
        rtcp(1, 201, ours + media + bytes(16)),
        rtcp(1, 202, ours + b"\x01\xff" + b"x"),  # SDES item that runs over
        rtcp(31, 202, ours),
        rtcp(31, 203, ours),  # BYE that promises 31 sources
        rtcp(1, 203, ours + b"\xff" + b"bye"),
        rtcp(0, 204, ours),
        rtcp(0, 207, ours + bytes(8)),
        rtcp(0, 201, ours, words=65_535),
        rtcp(0, 201, ours) + rtcp(15, 206, ours, words=9),
        rtcp(0, 201, ours) + b"\x80",
        rtcp(0, 201, ours) + os.urandom(60),
    ]


def unauthenticated_media(real_rtp, real_rtcp):
    """What an outsider makes of one captured SRTP and one SRTCP packet: (reason, datagrams)."""
    ahead = struct.pack("!H", (int.from_bytes(real_rtp[2:4], "big") + 100) & 0xFFFF)
    moved = real_rtp[:2] + ahead + real_rtp[4:]
    flipped = moved[:-1] + bytes([moved[-1] ^ 1])
    return {
        "srtp_auth": [moved, flipped, moved[:-16] + bytes(16), moved[:-32] + os.urandom(32)],
        "srtp_replay": [real_rtp],
        "short": [real_rtp[:n] for n in range(12, 28)] + [real_rtcp[:8] + bytes(n) for n in range(12, 20)],
        "srtcp_flipped": [real_rtcp[:8] + bytes([real_rtcp[8] ^ 1]) + real_rtcp[9:]],
    }


def without_e_bit(real_rtcp, tag_len):
    """SRTCP that says it is not encrypted. The E bit leads the index: at the end with GCM, before the tag with SHA1."""
    at = len(real_rtcp) - 4 - tag_len
    return real_rtcp[:at] + bytes([real_rtcp[at] & 0x7F]) + real_rtcp[at + 1 :]
