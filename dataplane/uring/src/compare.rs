//! Both back ends at the same work on this machine, in turn: what a datagram costs each, and whether the difference is more than
//! noise.
//!
//! * send: to a socket that nobody reads; its queue is full, so the receive side in the figure is one drop.
//! * receive: a queue that was filled before the clock starts.
//! * forward: receive a run and send it on to the socket that nobody reads.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::backend::{Backend, BackendKind, IoConfig, Transmit, Wait};
use crate::clock::thread_cpu_time;
use crate::mmsg::MmsgBackend;
use crate::socket::bind_udp;
use crate::uring::UringBackend;
use crate::wake::{WakeReceiver, Waker, wake_pair};

/// A full-size video packet, in bytes.
const DATAGRAM_LEN: usize = 1_100;
/// Datagrams between two looks at the clock, which costs 300 ns. So many fit the queue of a socket that may not exceed the kernel's
/// default `net.core.rmem_max` (about 2.3 KB of it each).
const BATCH: usize = 120;
/// Batches of one case in one round.
const BATCHES: usize = 80;
/// Batches that warm caches and buffers before the receiving cases: every receive buffer is used once.
const WARM_UP_BATCHES: usize = 48;
/// What was sent over loopback is there before the send returns; who waits this long has lost datagrams.
const PATIENCE: Duration = Duration::from_millis(500);
/// Work and datagrams per train, in the order of measuring.
const CASES: [(&str, usize); 6] = [("send", 1), ("receive", 1), ("forward", 1), ("send", 10), ("receive", 10), ("forward", 10)];
/// A difference below this is nobody's reason to change the back end.
const DIFFERENCE_MIN: f64 = 0.02;

/// What [`compare`] measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Rounds; in each both back ends did all cases.
    pub rounds: usize,
    /// Per case and back end the CPU time of the calling thread.
    pub figures: Vec<Figure>,
    /// CPU time of mmsg over that of io_uring, over all cases of a round (the geometric mean): above 1, io_uring is faster.
    pub ratio: Spread,
    /// Between these lies the ratio's true median, with 95 % confidence (order statistics; the whole range below six rounds).
    pub ratio_interval: (f64, f64),
    /// Over the first byte and the length of every buffer received and the number of datagrams sent; both back ends had the same.
    pub checksum: u64,
}

/// What a case cost one back end.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// `send`, `receive` or `forward`.
    pub case: &'static str,
    /// Datagrams per train.
    pub train: usize,
    /// Which back end.
    pub backend: BackendKind,
    /// CPU ns per datagram.
    pub cpu_ns: Spread,
}

/// Values of several rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// The middle one.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

impl Comparison {
    /// The faster back end here; `None` when the difference is noise or below 2 %.
    pub fn faster(&self) -> Option<BackendKind> {
        let (low, high) = self.ratio_interval;
        if low > 1.0 && self.ratio.median >= 1.0 + DIFFERENCE_MIN {
            return Some(BackendKind::Uring);
        }
        (high < 1.0 && self.ratio.median <= 1.0 / (1.0 + DIFFERENCE_MIN)).then_some(BackendKind::Mmsg)
    }
}

/// Lets both back ends work in turn on loopback sockets of their own, `rounds` times: about 0.2 s of this thread each.
///
/// # Errors
///
/// A back end that the kernel refuses; datagrams that were lost; back ends that did not do the same.
pub fn compare(rounds: usize) -> io::Result<Comparison> {
    let rounds = rounds.max(1);
    let mut uring: Vec<Round> = Vec::with_capacity(rounds);
    let mut mmsg: Vec<Round> = Vec::with_capacity(rounds);
    for round in 0..rounds {
        // Whoever goes first finds other caches than whoever follows.
        if round % 2 == 0 {
            uring.push(measure(UringBackend::new)?);
            mmsg.push(measure(MmsgBackend::new)?);
        } else {
            mmsg.push(measure(MmsgBackend::new)?);
            uring.push(measure(UringBackend::new)?);
        }
        if uring[round].checksum != mmsg[round].checksum {
            return Err(io::Error::other(format!("the back ends did not do the same work in round {}", round + 1)));
        }
    }
    let checksum = uring.iter().fold(0u64, |sum, round| sum.wrapping_mul(31).wrapping_add(round.checksum));
    let mut figures = Vec::with_capacity(2 * CASES.len());
    for (at, (case, train)) in CASES.into_iter().enumerate() {
        for (backend, measured) in [(BackendKind::Uring, &uring), (BackendKind::Mmsg, &mmsg)] {
            let cpu_ns = spread(&mut measured.iter().map(|round| round.cpu_ns[at]).collect::<Vec<_>>());
            figures.push(Figure { case, train, backend, cpu_ns });
        }
    }
    let mut ratios: Vec<f64> = uring.iter().zip(&mmsg).map(|(uring, mmsg)| mmsg.mean_ns() / uring.mean_ns()).collect();
    let ratio = spread(&mut ratios);
    Ok(Comparison { rounds, figures, ratio, ratio_interval: median_interval(&ratios), checksum })
}

/// Sorts the values; there is at least one.
fn spread(values: &mut [f64]) -> Spread {
    values.sort_by(f64::total_cmp);
    Spread { min: values[0], median: values[values.len() / 2], max: values[values.len() - 1] }
}

/// The two values of a sorted list that have the true median between them with 95 % confidence: each is on either side of it like a
/// coin, whatever their distribution is.
fn median_interval(sorted: &[f64]) -> (f64, f64) {
    let n = sorted.len();
    // Probability that at most `left_out` of n coins show heads, doubled for both sides.
    let (mut term, mut both_tails) = (2.0 * 0.5f64.powi(n as i32), 0.0);
    let mut left_out = 0;
    while left_out < n / 2 {
        both_tails += term;
        if both_tails > 0.05 {
            break;
        }
        term *= (n - left_out) as f64 / (left_out + 1) as f64;
        left_out += 1;
    }
    let first = left_out.saturating_sub(1);
    (sorted[first], sorted[n - 1 - first])
}

/// One back end through all cases.
struct Round {
    cpu_ns: [f64; CASES.len()],
    checksum: u64,
}

impl Round {
    /// The geometric mean: a case that is ten times cheaper counts as much.
    fn mean_ns(&self) -> f64 {
        (self.cpu_ns.iter().map(|ns| ns.ln()).sum::<f64>() / self.cpu_ns.len() as f64).exp()
    }
}

/// A back end with one socket, another that fills its queue, and a socket that is never read.
struct Rig<B> {
    backend: B,
    source: MmsgBackend,
    to: SocketAddr,
    sink: SocketAddr,
    train: usize,
    _open: (UdpSocket, Waker, Waker),
}

fn measure<B: Backend>(make: impl Fn(Vec<UdpSocket>, WakeReceiver, &IoConfig) -> io::Result<B>) -> io::Result<Round> {
    let mut round = Round { cpu_ns: [0.0; CASES.len()], checksum: 0 };
    let mut rig: Option<Rig<B>> = None;
    for (cpu_ns, (case, train)) in round.cpu_ns.iter_mut().zip(CASES) {
        let rig = match &mut rig {
            Some(rig) if rig.train == train => rig,
            other => other.insert(Rig::new(&make, train)?),
        };
        let cpu = match case {
            // One batch unmeasured: pages, caches, a full sink.
            "send" => rig.send(1).and_then(|_| rig.send(BATCHES))?,
            "receive" => {
                rig.receive(WARM_UP_BATCHES, false, &mut 0)?;
                rig.receive(BATCHES, false, &mut round.checksum)?
            }
            _ => {
                let cpu = rig.receive(BATCHES, true, &mut round.checksum)?;
                round.checksum = round.checksum.wrapping_add(rig.backend.stats().datagrams_sent);
                cpu
            }
        };
        *cpu_ns = cpu.as_nanos() as f64 / (BATCH * BATCHES) as f64;
    }
    Ok(round)
}

impl<B: Backend> Rig<B> {
    fn new(make: impl Fn(Vec<UdpSocket>, WakeReceiver, &IoConfig) -> io::Result<B>, train: usize) -> io::Result<Self> {
        let bind = |queue: usize| bind_udp((Ipv4Addr::LOCALHOST, 0).into(), queue, 8 << 20);
        let socket = bind(16 << 20)?;
        let (waker, wake) = wake_pair()?;
        let to = socket.local_addr()?;
        let backend = make(vec![socket], wake, &IoConfig::default())?;
        let (source_waker, wake) = wake_pair()?;
        let source = MmsgBackend::new(vec![bind(1 << 12)?], wake, &IoConfig::default())?;
        let sink = bind(1 << 12)?;
        Ok(Self { backend, source, to, sink: sink.local_addr()?, train, _open: (sink, waker, source_waker) })
    }

    /// Sends `batches` batches to nobody: the CPU time it took.
    fn send(&mut self, batches: usize) -> io::Result<Duration> {
        let start = thread_cpu_time();
        for _ in 0..batches {
            send_batch(&mut self.backend, self.sink, self.train)?;
        }
        Ok(thread_cpu_time() - start)
    }

    /// Receives `batches` batches, and sends them on when `forward`: the CPU time without the filling of the queue.
    fn receive(&mut self, batches: usize, forward: bool, checksum: &mut u64) -> io::Result<Duration> {
        let mut cpu = Duration::ZERO;
        for _ in 0..batches {
            send_batch(&mut self.source, self.to, self.train)?;
            let start = thread_cpu_time();
            let mut received = 0;
            while received < BATCH {
                self.backend.turn(Wait::AtMost(PATIENCE))?;
                match self.take_turn(forward, checksum)? {
                    0 => return Err(io::Error::other(format!("{} of {BATCH} datagrams were lost on loopback", BATCH - received))),
                    count => received += count,
                }
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
    fn take_turn(&mut self, forward: bool, checksum: &mut u64) -> io::Result<usize> {
        let mut received = 0;
        while let Some(run) = self.backend.receive() {
            received += run.bytes.len().div_ceil(run.segment);
            let (first, len) = (run.bytes[0], run.bytes.len());
            *checksum = checksum.wrapping_mul(31).wrapping_add(u64::from(first) + len as u64);
            if forward {
                // Without the copy: a router writes the train anew anyway, when it encrypts.
                let id = acquire(&mut self.backend)?;
                self.backend.train(&id)[0] = first;
                self.backend.send(id, transmit(self.sink, self.train));
            }
        }
        Ok(received)
    }
}

fn acquire(backend: &mut impl Backend) -> io::Result<crate::TrainId> {
    backend.acquire().ok_or_else(|| io::Error::other("every slot is in flight"))
}

fn send_batch(backend: &mut impl Backend, to: SocketAddr, train: usize) -> io::Result<()> {
    for number in 0..BATCH / train {
        let id = acquire(backend)?;
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

    fn comparison(ratios: &[f64]) -> Comparison {
        let mut ratios = ratios.to_vec();
        let ratio = spread(&mut ratios);
        Comparison { rounds: ratios.len(), figures: Vec::new(), ratio, ratio_interval: median_interval(&ratios), checksum: 0 }
    }

    #[test]
    fn both_back_ends_do_the_same_work_in_every_case() {
        let compared = compare(2).expect("both back ends work here");
        assert_eq!((compared.rounds, compared.figures.len()), (2, 2 * CASES.len()));
        assert!(compared.figures.iter().all(|figure| figure.cpu_ns.min > 0.0 && figure.cpu_ns.min <= figure.cpu_ns.max));
        assert_ne!(compared.checksum, 0);
        // A train is the point of both: it costs less per datagram than a send each, by far more than noise.
        let send = |train: usize| {
            let figure =
                compared.figures.iter().find(|figure| (figure.case, figure.train, figure.backend) == ("send", train, BackendKind::Uring));
            figure.expect("it was measured").cpu_ns.median
        };
        assert!(send(10) < send(1));
    }

    #[test]
    fn the_faster_one_is_named_when_the_rounds_agree() {
        let ratios: Vec<f64> = (0..15).map(|round| 1.08 + f64::from(round) / 1_000.0).collect();
        assert_eq!(comparison(&ratios).faster(), Some(BackendKind::Uring));
        assert_eq!(comparison(&ratios.iter().map(|ratio| 1.0 / ratio).collect::<Vec<_>>()).faster(), Some(BackendKind::Mmsg));
    }

    #[test]
    fn noise_and_a_percent_name_nobody() {
        // Eleven of fifteen on one side happen to a coin once in eight times.
        let mixed: Vec<f64> = (0..15).map(|round| if round % 4 == 0 { 0.9 } else { 1.1 }).collect();
        assert_eq!(comparison(&mixed).faster(), None);
        assert_eq!(comparison(&[1.01; 15]).faster(), None);
        assert_eq!(comparison(&[0.99; 15]).faster(), None);
    }

    #[test]
    fn the_interval_of_a_median_leaves_out_as_many_as_the_table_says() {
        // The textbook's ranks for 95 %: of 6 all, of 9 the 2nd to the 8th, of 15 the 4th to the 12th, of 25 the 8th to the 18th.
        let ranks = |n: usize| median_interval(&(1..=n).map(|rank| rank as f64).collect::<Vec<_>>());
        assert_eq!([ranks(1), ranks(3), ranks(6)], [(1.0, 1.0), (1.0, 3.0), (1.0, 6.0)]);
        assert_eq!([ranks(9), ranks(15), ranks(25)], [(2.0, 8.0), (4.0, 12.0), (8.0, 18.0)]);
    }
}
