"""Our SRTP against libsrtp (pylibsrtp): each makes what the other makes, and opens it; each refuses what the other refuses."""

import pathlib
import random
import subprocess
import unittest

from pylibsrtp import Error, Policy, Session

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SEED = 20260731
# Our name, libsrtp's name, bytes of master key and salt, bytes of the tag.
PROFILES = [
    ("AES128_CM_HMAC_SHA1_80", Policy.SRTP_PROFILE_AES128_CM_SHA1_80, 30, 10),
    ("AEAD_AES_128_GCM", Policy.SRTP_PROFILE_AEAD_AES_128_GCM, 28, 16),
    ("AEAD_AES_256_GCM", Policy.SRTP_PROFILE_AEAD_AES_256_GCM, 44, 16),
]
# None; a one-byte element; one that ends with id 15, which webrtc-srtp cannot open; a two-byte element.
EXTENSIONS = [
    b"",
    b"\xbe\xde\x00\x01\x32abc",
    b"\xbe\xde\x00\x01\x10\x01\xf0\x00",
    b"\x10\x00\x00\x02\x05\x03abc\x00\x00\x00",
]


class Pipe:
    """The example program `srtp_pipe`: one line in, one line out."""

    def __init__(self):
        command = ["cargo", "run", "--quiet", "--release", "--package", "pop-proto", "--example", "srtp_pipe"]
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def ask(self, *words):
        line = " ".join(word.hex() if isinstance(word, bytes) else str(word) for word in words)
        self.process.stdin.write(line + "\n")
        answer = self.process.stdout.readline().strip()
        if not answer:
            raise AssertionError(f"srtp_pipe ended after {line!r}")
        return answer

    def stop(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=10)


def setUpModule():
    global pipe
    pipe = Pipe()


def tearDownModule():
    pipe.stop()


def session(direction, profile, key):
    return Session(Policy(key=key, ssrc_type=direction, srtp_profile=profile))


def for_each_profile(test):
    """Runs `test` once per profile with a seeded generator, the tag's length, and libsrtp's sender and receiver."""

    def run(self):
        for ours, theirs, key_len, tag_len in PROFILES:
            with self.subTest(profile=ours, seed=SEED):
                rng = random.Random(SEED)
                key = rng.randbytes(key_len)
                self.assertEqual(pipe.ask("keys", ours, key), "ok")
                sender = session(Policy.SSRC_ANY_OUTBOUND, theirs, key)
                receiver = session(Policy.SSRC_ANY_INBOUND, theirs, key)
                test(self, rng, tag_len, sender, receiver)

    return run


def rtp_packet(rng, sequence):
    """A packet with CSRCs and extension blocks now and then, one that ends with id 15 included; and its header's length."""
    csrcs = rng.randrange(16) if rng.random() < 0.2 else 0
    extension = rng.choice(EXTENSIONS)
    first = 0x80 | (0x10 if extension else 0) | csrcs
    header = bytes([first, rng.choice([96, 224])]) + sequence.to_bytes(2, "big") + rng.randbytes(4) + b"\x5e\xed\x00\x01"
    header += rng.randbytes(4 * csrcs) + extension
    return header, rng.randbytes(rng.choice([0, 1, 15, 16, 17, rng.randrange(1_200)]))


def rtcp_packet(rng):
    words = 1 + rng.randrange(60)
    return bytes([0x80, 200 + rng.randrange(7), 0, words]) + b"\x5e\xed\x00\x02" + rng.randbytes(4 * (words - 1))


class SrtpAgainstLibsrtp(unittest.TestCase):
    @for_each_profile
    def test_rtp_is_byte_equal_and_opens_both_ways(self, rng, tag_len, sender, receiver):
        index = rng.randrange(1 << 15)
        for _ in range(600):
            # Far enough for several rollovers; never half the sequence space.
            index += rng.choice([1, 1, 1, 2, rng.randrange(1, 4_000)])
            header, payload = rtp_packet(rng, index & 0xFFFF)
            packet = header + payload
            protected = pipe.ask("protect_rtp", index, len(header), packet)
            self.assertEqual(protected, sender.protect(packet).hex())
            self.assertEqual(len(protected) // 2, len(packet) + tag_len)
            self.assertEqual(receiver.unprotect(bytes.fromhex(protected)), packet)
            self.assertEqual(pipe.ask("open_rtp", len(header), protected), packet.hex())
        self.assertGreater(index >> 16, 1)

    @for_each_profile
    def test_rtcp_is_byte_equal_and_opens_both_ways(self, rng, tag_len, sender, receiver):
        for _ in range(200):
            packet = rtcp_packet(rng)
            protected = pipe.ask("protect_rtcp", packet)
            self.assertEqual(protected, sender.protect_rtcp(packet).hex())
            self.assertEqual(len(protected) // 2, len(packet) + tag_len + 4)
            self.assertEqual(receiver.unprotect_rtcp(bytes.fromhex(protected)), packet)
            self.assertEqual(pipe.ask("open_rtcp", protected), packet.hex())

    @for_each_profile
    def test_reordered_packets_around_the_rollover_open_on_both_sides(self, rng, tag_len, sender, receiver):
        packets = []
        for index in range(65_500, 65_600):
            header, payload = rtp_packet(rng, index & 0xFFFF)
            packets.append((len(header), header + payload, sender.protect(header + payload)))
        first, *rest = packets
        rest.sort(key=lambda packet: packets.index(packet) + rng.randrange(40))
        for header_len, packet, protected in [first, *rest]:
            self.assertEqual(receiver.unprotect(protected), packet)
            self.assertEqual(pipe.ask("open_rtp", header_len, protected), packet.hex())

    @for_each_profile
    def test_replays_and_forgeries_are_refused_on_both_sides(self, rng, tag_len, sender, receiver):
        header, payload = rtp_packet(rng, 7)
        protected = sender.protect(header + payload)
        for at in range(len(protected)):
            forged = bytearray(protected)
            forged[at] ^= 0x04
            with self.assertRaises(Error):
                receiver.unprotect(bytes(forged))
            self.assertEqual(pipe.ask("open_rtp", len(header), bytes(forged)), "drop srtp_auth")
        self.assertEqual(receiver.unprotect(protected), header + payload)
        self.assertEqual(pipe.ask("open_rtp", len(header), protected), (header + payload).hex())
        with self.assertRaises(Error):
            receiver.unprotect(protected)
        self.assertEqual(pipe.ask("open_rtp", len(header), protected), "drop srtp_replay")

        protected = sender.protect_rtcp(rtcp_packet(rng))
        receiver.unprotect_rtcp(protected)
        pipe.ask("open_rtcp", protected)
        with self.assertRaises(Error):
            receiver.unprotect_rtcp(protected)
        self.assertEqual(pipe.ask("open_rtcp", protected), "drop srtp_replay")


if __name__ == "__main__":
    unittest.main()
