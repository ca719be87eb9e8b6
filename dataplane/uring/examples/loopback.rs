//! CPU ns per datagram of the calling thread over loopback, both back ends in turn.
//!
//! `cargo run --release -p pop-uring --example loopback -- ROUNDS`
//!
//! * send: to a socket that nobody reads; its queue is full, so the receive side in the figure is one drop.
//! * receive: a queue that was filled before the clock starts.
//! * forward: receive a run and send it on to the socket that nobody reads.
//!
//! The checksum is over the first byte and the length of every buffer received and the number of datagrams sent; both back ends
//! have the same.

use std::env;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use pop_uring::{Backend, IoConfig, MmsgBackend, Transmit, UringBackend, Wait, Waker, bind_udp, thread_cpu_time, wake_pair};

/// A full-size video packet.
const DATAGRAM_LEN: usize = 1_100;
/// Datagrams between two looks at the clock: it costs 300 ns to read.
const BATCH: usize = 240;
const BATCHES: usize = 40;

fn main() -> io::Result<()> {
    let rounds = env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(15);
    let mut table = Table::default();
    for round in 0..rounds {
        // Whoever goes first finds other caches than whoever follows.
        if round % 2 == 0 {
            measure(UringBackend::new, &mut table)?;
            measure(MmsgBackend::new, &mut table)?;
        } else {
            measure(MmsgBackend::new, &mut table)?;
            measure(UringBackend::new, &mut table)?;
        }
    }
    table.print(rounds);
    Ok(())
}

#[derive(Default)]
struct Table {
    rows: Vec<Row>,
    checksum: u64,
}

struct Row {
    case: &'static str,
    train: usize,
    backend: &'static str,
    nanos: Vec<f64>,
}

impl Table {
    fn add(&mut self, case: &'static str, train: usize, backend: &'static str, cpu: Duration, datagrams: usize) {
        let nanos = cpu.as_nanos() as f64 / datagrams as f64;
        match self.rows.iter_mut().find(|row| (row.case, row.train, row.backend) == (case, train, backend)) {
            Some(row) => row.nanos.push(nanos),
            None => self.rows.push(Row { case, train, backend, nanos: vec![nanos] }),
        }
    }

    fn print(&mut self, rounds: usize) {
        println!("{:<10}{:>6}  {:<10}{:>8}{:>8}{:>8}", "case", "train", "back end", "median", "min", "max");
        self.rows.sort_by_key(|row| (row.case, row.train, row.backend));
        for row in &mut self.rows {
            row.nanos.sort_by(f64::total_cmp);
            let (min, median, max) = (row.nanos[0], row.nanos[row.nanos.len() / 2], row.nanos[row.nanos.len() - 1]);
            println!("{:<10}{:>6}  {:<10}{median:>8.0}{min:>8.0}{max:>8.0}", row.case, row.train, row.backend);
        }
        println!("rounds {rounds}, datagrams per round and case {}, checksum {:016x}", BATCH * BATCHES, self.checksum);
    }
}

/// A back end with one socket, another that fills its queue, and a socket that is never read.
struct Rig<B> {
    backend: B,
    source: MmsgBackend,
    to: SocketAddr,
    sink: SocketAddr,
    _open: (UdpSocket, Waker, Waker),
}

fn measure<B: Backend>(
    make: impl Fn(Vec<UdpSocket>, pop_uring::WakeReceiver, &IoConfig) -> io::Result<B>,
    table: &mut Table,
) -> io::Result<()> {
    for train in [1, 10] {
        let bind = |queue: usize| bind_udp((Ipv4Addr::LOCALHOST, 0).into(), queue, 8 << 20);
        let socket = bind(16 << 20)?;
        let (waker, wake) = wake_pair()?;
        let to = socket.local_addr()?;
        let backend = make(vec![socket], wake, &IoConfig::default())?;
        let (source_waker, wake) = wake_pair()?;
        let source = MmsgBackend::new(vec![bind(1 << 12)?], wake, &IoConfig::default())?;
        let sink = bind(1 << 12)?;
        let mut rig = Rig { backend, source, to, sink: sink.local_addr()?, _open: (sink, waker, source_waker) };
        let datagrams = BATCH * BATCHES;
        // One batch unmeasured: pages, caches, a full sink.
        rig.send(train, 1)?;
        let cpu = rig.send(train, BATCHES)?;
        table.add("send", train, B::NAME, cpu, datagrams);
        rig.receive(train, 24, false, &mut 0)?;
        let cpu = rig.receive(train, BATCHES, false, &mut table.checksum)?;
        table.add("receive", train, B::NAME, cpu, datagrams);
        let cpu = rig.receive(train, BATCHES, true, &mut table.checksum)?;
        table.add("forward", train, B::NAME, cpu, datagrams);
        table.checksum = table.checksum.wrapping_add(rig.backend.stats().datagrams_sent);
    }
    Ok(())
}

impl<B: Backend> Rig<B> {
    /// Sends `batches` batches to nobody: the CPU time it took.
    fn send(&mut self, train: usize, batches: usize) -> io::Result<Duration> {
        let start = thread_cpu_time();
        for _ in 0..batches {
            send_batch(&mut self.backend, self.sink, train)?;
        }
        Ok(thread_cpu_time() - start)
    }

    /// Receives `batches` batches, and sends them on when `forward`: the CPU time without the filling of the queue.
    fn receive(&mut self, train: usize, batches: usize, forward: bool, checksum: &mut u64) -> io::Result<Duration> {
        let mut cpu = Duration::ZERO;
        for _ in 0..batches {
            send_batch(&mut self.source, self.to, train)?;
            let start = thread_cpu_time();
            let mut received = 0;
            while received < BATCH {
                self.backend.turn(Wait::AtMost(Duration::from_millis(100)))?;
                received += self.take_turn(train, forward, checksum)?;
            }
            // What was forwarded last leaves within the measured time too.
            if forward {
                self.backend.turn(Wait::No)?;
            }
            cpu += thread_cpu_time() - start;
        }
        Ok(cpu)
    }

    /// Takes what one turn brought: how many datagrams.
    fn take_turn(&mut self, train: usize, forward: bool, checksum: &mut u64) -> io::Result<usize> {
        let mut received = 0;
        while let Some(run) = self.backend.receive() {
            received += run.bytes.len().div_ceil(run.segment);
            let (first, len) = (run.bytes[0], run.bytes.len());
            *checksum = checksum.wrapping_mul(31).wrapping_add(u64::from(first) + len as u64);
            if forward {
                // Without the copy: a router writes the train anew anyway, when it encrypts.
                let id = self.backend.acquire().ok_or_else(|| io::Error::other("every slot is in flight"))?;
                self.backend.train(&id)[0] = first;
                self.backend.send(id, transmit(self.sink, train));
            }
        }
        Ok(received)
    }
}

fn send_batch(backend: &mut impl Backend, to: SocketAddr, train: usize) -> io::Result<()> {
    for number in 0..BATCH / train {
        let id = backend.acquire().ok_or_else(|| io::Error::other("every slot is in flight"))?;
        backend.train(&id)[0] = number as u8;
        backend.send(id, transmit(to, train));
    }
    backend.turn(Wait::No)
}

fn transmit(to: SocketAddr, train: usize) -> Transmit {
    Transmit { socket: 0, to, len: train * DATAGRAM_LEN, segment: (train > 1).then_some(DATAGRAM_LEN as u16) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_back_ends_do_the_same_work() {
        let checksum = |measured: &dyn Fn(&mut Table) -> io::Result<()>| {
            let mut table = Table::default();
            measured(&mut table).expect("a round");
            table.checksum
        };
        let ring = checksum(&|table| measure(UringBackend::new, table));
        assert_eq!(ring, checksum(&|table| measure(MmsgBackend::new, table)));
    }
}
