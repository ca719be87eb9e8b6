//! SRTP over stdin and stdout, so that a test in another language can hold it against another library:
//! `bench/python/test_srtp_libsrtp.py` drives it against libsrtp.
//!
//! One line in, one line out; bytes are hexadecimal. A refused packet answers `drop REASON`.
//!
//! ```text
//! keys PROFILE MASTER_KEY_AND_SALT      -> ok       both directions under one key, from the start
//! protect_rtp INDEX HEADER_LEN PACKET   -> packet
//! protect_rtcp PACKET                   -> packet
//! open_rtp HEADER_LEN PACKET            -> packet
//! open_rtcp PACKET                      -> packet
//! ```

use std::{
    io::{self, BufRead, Write},
    process::ExitCode,
};

use pop_proto::{
    DropReason,
    control::{MasterKey, SrtpProfile},
    srtp::{OVERHEAD_MAX, SrtpReceiver, SrtpSender},
};

/// Both directions under one key.
struct Contexts {
    sender: SrtpSender,
    receiver: SrtpReceiver,
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.chars().map(|c| c.to_digit(16)).collect::<Option<Vec<_>>>()?;
    digits.chunks(2).map(|pair| Some((pair[0] << 4 | *pair.get(1)?) as u8)).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn new_contexts(profile: &str, bytes: &[u8]) -> Option<Contexts> {
    let all = [SrtpProfile::Aes128CmSha1_80, SrtpProfile::AeadAes128Gcm, SrtpProfile::AeadAes256Gcm];
    let profile = all.into_iter().find(|known| known.name() == profile)?;
    let (key, salt) = bytes.split_at_checked(profile.key_len()).filter(|(_, salt)| salt.len() == profile.salt_len())?;
    let mut master = MasterKey { key: [0; 32], salt: [0; 14] };
    master.key[..key.len()].copy_from_slice(key);
    master.salt[..salt.len()].copy_from_slice(salt);
    Some(Contexts { sender: SrtpSender::new(profile, &master), receiver: SrtpReceiver::new(profile, &master) })
}

impl Contexts {
    /// The packet that a line asks for; `None` when the line is no command.
    fn answer(&mut self, line: &[&str]) -> Option<Result<Vec<u8>, DropReason>> {
        let mut packet = unhex(line.last()?)?;
        let len = packet.len();
        let made = match line[..line.len() - 1] {
            ["protect_rtp", index, header_len] => {
                let (header, payload) = packet.split_at_checked(header_len.parse().ok()?)?;
                let mut out = vec![0; len + OVERHEAD_MAX];
                let made = self.sender.protect_rtp(index.parse().ok()?, header, payload, &mut out);
                packet = out;
                made
            }
            ["protect_rtcp"] => {
                packet.resize(len + OVERHEAD_MAX, 0);
                self.sender.protect_rtcp(&mut packet, len)
            }
            ["open_rtp", header_len] => self.receiver.unprotect_rtp(&mut packet, header_len.parse().ok()?).map(|opened| opened.len),
            ["open_rtcp"] => self.receiver.unprotect_rtcp(&mut packet),
            _ => return None,
        };
        Some(made.map(|len| {
            packet.truncate(len);
            packet
        }))
    }
}

fn main() -> ExitCode {
    let mut contexts = None;
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        let words: Vec<_> = line.split_whitespace().collect();
        let answer = if let ["keys", profile, bytes] = words[..] {
            contexts = unhex(bytes).and_then(|bytes| new_contexts(profile, &bytes));
            contexts.as_ref().map(|_| "ok".to_owned())
        } else {
            contexts.as_mut().and_then(|contexts: &mut Contexts| contexts.answer(&words)).map(|made| match made {
                Ok(packet) => hex(&packet),
                Err(reason) => format!("drop {}", reason.label()),
            })
        };
        let Some(answer) = answer else {
            eprintln!("not a command: {line:?}");
            return ExitCode::from(2);
        };
        let mut out = io::stdout().lock();
        if writeln!(out, "{answer}").and_then(|()| out.flush()).is_err() {
            break;
        }
    }
    ExitCode::SUCCESS
}
