//! The built binary as a child process, with a folder of its own.

// Each test file uses its part.
#![allow(dead_code)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) const SECRET: &str = "a secret of these tests alone, 0123456789";

/// A folder of one test, removed at its end.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("pop-cli-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).expect("temporary files can be made");
        Folder(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("temporary files can be made");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
        path
    }

    /// A config on free ports, with this folder's socket and keys.
    pub(crate) fn config(&self) -> PathBuf {
        self.write("keys.toml", &format!("test = \"{SECRET}\"\n"));
        self.write("pop.toml", &config(&self.path("pop.sock"), "127.0.0.1:0"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn config(socket: &Path, listen: &str) -> String {
    format!(
        "[http]\nlisten = \"{listen}\"\n[admin]\nlisten = \"127.0.0.1:0\"\nsocket = \"{}\"\n[media]\naddresses = [\"127.0.0.1\"]\nport = 0\n\
         [dataplane]\npacket_pool = 1024\nrecv_buffers = 16\n[auth]\nkeys_file = \"keys.toml\"\n",
        socket.display()
    )
}

pub(crate) fn pop(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pop"));
    command.args(words).stdin(Stdio::null());
    command
}

pub(crate) fn run(words: &[&str]) -> Output {
    pop(words).output().expect("the binary is there")
}

pub(crate) fn shown(path: &Path) -> &str {
    path.to_str().expect("our folders are plain text")
}

pub(crate) fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// A running node, killed at the end of its test if it still runs.
pub(crate) struct Node {
    pub(crate) child: Child,
    stdout: BufReader<ChildStdout>,
    pub(crate) line: String,
}

impl Node {
    pub(crate) fn start(config: &Path, more: &[&str]) -> Node {
        Self::start_as(config, |command| command.args(more))
    }

    /// With arguments or an environment of the test's.
    pub(crate) fn start_as(config: &Path, more: impl FnOnce(&mut Command) -> &mut Command) -> Node {
        let mut command = pop(&["run", "--config", shown(config)]);
        let mut child = more(&mut command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary is there");
        let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line or the end");
        Node { child, stdout, line }
    }

    /// `key=value` of the ready line.
    pub(crate) fn said(&self, key: &str) -> &str {
        let words = self.line.trim_end().split(' ');
        let value = words.filter_map(|word| word.split_once('=')).find(|(name, _)| *name == key);
        value.unwrap_or_else(|| panic!("no {key} in {:?}", self.line)).1
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().expect("kill is everywhere").success());
    }

    /// Exit code, the rest of stdout, and stderr.
    pub(crate) fn end(mut self) -> (Option<i32>, String, String) {
        let (mut rest, mut log) = (String::new(), String::new());
        self.stdout.read_to_string(&mut rest).expect("text");
        self.child.stderr.take().expect("it is piped").read_to_string(&mut log).expect("text");
        (self.child.wait().expect("it is our child").code(), rest, log)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn http(base: &str, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(base.strip_prefix("http://").expect("a plain URL")).expect("the node listens");
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").expect("a small request");
    let (head, body) = read_answer(stream);
    (head[9..12].parse().expect("a status"), body)
}

pub(crate) fn read_answer(mut stream: impl Read) -> (String, String) {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.to_owned(), body.to_owned())
}
