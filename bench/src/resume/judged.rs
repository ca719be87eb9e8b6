//! What the nodes sent and got while one was killed, captured and shown to the nonce oracle: who is taken over has new keys, and nobody sends an index twice.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::oracle;

/// Media of the nodes' workers.
const PORTS: (u16, u16) = (20_000, 20_007);

/// A capture in the nodes' namespace. Its file goes with it.
pub(super) struct Judged {
    tcpdump: Child,
    file: PathBuf,
}

impl Judged {
    /// Returns when packets are captured. The error is a sentence.
    pub(super) fn begin() -> Result<Judged, String> {
        let file = std::env::temp_dir().join(format!("pop-bench-resume-{}.pcap", std::process::id()));
        let ports = format!("udp portrange {}-{}", PORTS.0, PORTS.1);
        let mut command = Command::new("tcpdump");
        command.args(["-i", "any", "-U", "-B", "65536", "-s", "0", "-Z", "root", "-w"]).arg(&file).arg(ports);
        let mut tcpdump = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("tcpdump: {error}"))?;
        let mut said = BufReader::new(tcpdump.stderr.take().ok_or("tcpdump says nothing")?);
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            if said.read_line(&mut line).map_err(|error| error.to_string())? == 0 {
                let _ = tcpdump.wait();
                return Err("tcpdump does not capture".to_owned());
            }
        }
        // It is short, and is read at the end.
        tcpdump.stderr = Some(said.into_inner());
        Ok(Judged { tcpdump, file })
    }

    /// Packets of media, and those of nodes that repeat an index. The error is a sentence: there were some, or not all could be judged.
    pub(super) fn end(mut self) -> Result<u64, String> {
        let pid = self.tcpdump.id().to_string();
        Command::new("kill").args(["-INT", &pid]).status().map_err(|error| format!("kill: {error}"))?;
        let mut said = String::new();
        if let Some(mut stderr) = self.tcpdump.stderr.take() {
            stderr.read_to_string(&mut said).map_err(|error| error.to_string())?;
        }
        self.tcpdump.wait().map_err(|error| error.to_string())?;
        if !said.contains("0 packets dropped by kernel") {
            return Err(format!("the capture is not whole: {}", said.trim()));
        }
        let open = || File::open(&self.file).map(BufReader::new).map_err(|error| error.to_string());
        let verdict = oracle::check_capture(open, Some(PORTS))?;
        let oracle::Verdict { rtp, violations, shown, .. } = &verdict;
        match violations {
            0 if *rtp > 0 => Ok(*rtp),
            0 => Err("the capture has no media".to_owned()),
            _ => Err(format!("an index was used twice: {verdict}: {}", shown.join("; "))),
        }
    }
}

impl Drop for Judged {
    fn drop(&mut self) {
        // It has ended, or is not wanted any more.
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
        let _ = std::fs::remove_file(&self.file);
    }
}
