//! Where in a server's WebSocket frames (RFC 6455) the bytes are that a proxy passes on, so that it can close in the server's place.

/// Longest head of a frame that is not masked: two bytes, and eight of length.
const HEAD_LEN_MAX: usize = 10;

const OPCODE_CLOSE: u8 = 8;
const FINAL: u8 = 0x80;

/// Service restart (IANA's registry of close codes).
const RESTART: u16 = 1_012;

/// What has passed. A client masks its frames and a server does not, so this reads a server's alone.
#[derive(Debug, Default)]
pub(super) struct Frames {
    head: [u8; HEAD_LEN_MAX],
    head_len: usize,
    /// Bytes of the payload that are to come.
    left: u64,
    /// A message has begun whose last frame has not come.
    is_within_message: bool,
    /// Nothing may follow: it was closed, is no WebSocket, or was cut off.
    is_over: bool,
    /// Bytes are being passed on, and nobody knows how many have left.
    is_passing: bool,
}

impl Frames {
    /// Bytes are about to be passed on.
    pub(super) fn begin(&mut self) {
        self.is_passing = true;
    }

    /// They were.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) {
        self.is_passing = false;
        while !bytes.is_empty() && !self.is_over {
            if self.left > 0 {
                let len = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= len as u64;
                bytes = &bytes[len..];
                continue;
            }
            self.head[self.head_len] = bytes[0];
            self.head_len += 1;
            bytes = &bytes[1..];
            self.read_head();
        }
    }

    fn read_head(&mut self) {
        let [first, second, ..] = self.head;
        let (short, masked) = (second & 0x7f, second & 0x80 != 0);
        let len = match (self.head_len, short) {
            (2, 0..=125) => u64::from(short),
            (4, 126) => u64::from(u16::from_be_bytes([self.head[2], self.head[3]])),
            (HEAD_LEN_MAX, 127) => self.head[2..].iter().fold(0, |len, byte| len << 8 | u64::from(*byte)),
            _ => return,
        };
        (self.head_len, self.left) = (0, len);
        match first & 0x0f {
            // Control frames stand between those of a message.
            OPCODE_CLOSE => self.is_over = true,
            opcode if opcode < OPCODE_CLOSE => self.is_within_message = first & FINAL == 0,
            _ => {}
        }
        self.is_over |= masked;
    }

    /// The frame that tells the client that its socket ends, where one may stand.
    pub(super) fn end(&self) -> Option<[u8; 4]> {
        let is_between = self.head_len == 0 && self.left == 0 && !self.is_within_message && !self.is_passing && !self.is_over;
        let [high, low] = RESTART.to_be_bytes();
        is_between.then_some([FINAL | OPCODE_CLOSE, 2, high, low])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: [u8; 4] = [0x88, 2, 0x03, 0xf4];

    fn frame(first: u8, len: usize) -> Vec<u8> {
        let mut frame = vec![first];
        match len {
            0..=125 => frame.push(len as u8),
            126..=0xffff => frame.extend([&[126][..], &(len as u16).to_be_bytes()].concat()),
            _ => frame.extend([&[127][..], &(len as u64).to_be_bytes()].concat()),
        }
        frame.resize(frame.len() + len, 0xff);
        frame
    }

    /// After how many bytes of `bytes`, passed on in parts of `step`, an end may follow.
    fn between(bytes: &[u8], step: usize) -> Vec<usize> {
        let (mut frames, mut found, mut passed) = (Frames::default(), Vec::new(), 0);
        for part in bytes.chunks(step) {
            frames.begin();
            assert_eq!(frames.end(), None, "nobody knows what has left");
            frames.pass(part);
            passed += part.len();
            if let Some(end) = frames.end() {
                assert_eq!(end, END);
                found.push(passed);
            }
        }
        found
    }

    #[test]
    fn an_end_stands_between_frames_alone() {
        assert_eq!(Frames::default().end().expect("nothing was said yet"), END);
        for len in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
            let bytes = [frame(0x82, len), frame(0x89, 3), frame(0x81, 2)].concat();
            let ends = [bytes.len() - 9, bytes.len() - 4, bytes.len()];
            assert_eq!(between(&bytes, 1), ends, "{len}");
            assert_eq!(between(&bytes, bytes.len()), ends[2..]);
        }
    }

    #[test]
    fn an_end_breaks_into_no_message_and_follows_no_other() {
        let parts = [frame(0x02, 3), frame(0x89, 0), frame(0x00, 3), frame(0x80, 3)].concat();
        assert_eq!(between(&parts, 1), [parts.len()], "a message of three frames, with a ping in it");
        assert_eq!(between(&[frame(0x82, 1), frame(0x88, 2)].concat(), 1), [3], "it was closed");
        assert_eq!(between(&[0x82, 0x81, 1, 2, 3, 4, 5], 1), [0_usize; 0], "a server masks nothing");
    }
}
