//! A node is killed at a drawn moment of people's lives, not only while they watch: whoever comes just then has to be in the picture soon, too.
//!
//! ```text
//! coming -- JoinResponse -- answer -- check answered -- keys -- keyframe -- track off and on again -- keyframe ..
//!        Coming      Offered     Checking        Shaking   Waiting   Watching            Switching   Watching
//!                          kill -9, in any of them
//! ```
//! A person does what livekit-client does: when its socket ends it resumes, once it has an answer, else it joins anew; told to begin anew it does. It
//! has no timers of its own: what nobody tells it, it does not know. It is back when it has a keyframe and then [`RUN`] packets that follow each
//! other, by the numbers that it gets and by the publisher's ([`View::follows`]).

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use livekit_protocol as proto;
use pop::dtls::Dtls;
use pop_bench::seeded::SplitMix64;
use pop_proto::control::SrtpKeys;
use pop_proto::srtp::SrtpReceiver;
use pop_proto::wire::rtp::RtpView;
use pop_proto::wire::{Protocol, demux};
use proto::signal_request::Message as Say;
use proto::signal_response::Message as Told;
use serde::Serialize;
use tokio::net::UdpSocket;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{DOOR, FRAMES, Person, bind, member, ms, offer_of, publish, share};
use crate::fanout::ice::Checks;
use crate::fanout::join::{DATAGRAM_LEN_MAX, check_connectivity, shake_hands};
use crate::fanout::packet::{read_payload, starts_keyframe};
use crate::nodes::{KEY, Nodes};
use crate::rooms::member::{Member, Signal, describe, join_request};
use crate::sdp::{Answer, Media, Offer};
use crate::token::{Grant, sign_token};

/// Packets in order after which a person is back: a second.
const RUN: usize = 30;

/// A call without picture for longer is dead. No timer of an SDK ends before (15 s in livekit-client), so it was told in time.
const BACK_MAX: Duration = Duration::from_secs(10);

/// People come within this time.
const COMING: Duration = Duration::from_millis(200);

/// How long somebody watches before it turns the track off, and leaves it off.
const ON: Duration = Duration::from_millis(300);
const OFF: Duration = Duration::from_millis(80);

/// Longest time from the first who is at the drawn moment to the kill, besides a round trip.
const AFTER: Duration = Duration::from_millis(40);

/// Between attempts, as livekit-client waits (`DefaultReconnectPolicy`).
const PAUSES: [Duration; 4] = [Duration::ZERO, Duration::from_millis(300), Duration::from_millis(1_200), Duration::from_millis(2_700)];

/// Where in its life somebody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Stage {
    Coming,
    Offered,
    Checking,
    Shaking,
    Waiting,
    Watching,
    Switching,
}

/// A kill waits until somebody is at one of them.
const STAGES: [Stage; 7] =
    [Stage::Coming, Stage::Offered, Stage::Checking, Stage::Shaking, Stage::Waiting, Stage::Watching, Stage::Switching];

/// How one person came through a kill.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    stage: Stage,
    /// It came back with its sid, or joined anew; neither: nothing happened to it.
    resumes: u32,
    anew: u32,
    /// From the kill to the first packet of the keyframe.
    back: Duration,
}

impl Life {
    /// From the kill to the picture, of one that had to come back.
    pub(super) fn back(&self) -> Option<Duration> {
        (self.resumes + self.anew > 0).then_some(self.back)
    }
}

/// Of all who were at one stage.
#[derive(Debug, Serialize)]
pub(super) struct Lives {
    pub(super) stage: Stage,
    pub(super) people: usize,
    pub(super) untouched: usize,
    pub(super) resumed: usize,
    pub(super) anew: usize,
    pub(super) attempts_max: u32,
    pub(super) back_p50_ms: f64,
    pub(super) back_p99_ms: f64,
    pub(super) back_max_ms: f64,
}

/// By stage, of those that somebody was in.
pub(super) fn sum(all: &[Life]) -> Vec<Lives> {
    let of = |stage| {
        let lives: Vec<&Life> = all.iter().filter(|life| life.stage == stage).collect();
        let count = |what: fn(&Life) -> bool| lives.iter().filter(|life| what(life)).count();
        let mut back: Vec<f64> = lives.iter().map(|life| ms(life.back)).collect();
        back.sort_by(f64::total_cmp);
        Lives {
            stage,
            people: lives.len(),
            untouched: count(|life| life.resumes + life.anew == 0),
            resumed: count(|life| life.resumes > 0 && life.anew == 0),
            anew: count(|life| life.anew > 0),
            attempts_max: lives.iter().map(|life| life.resumes + life.anew).max().unwrap_or_default(),
            back_p50_ms: share(&back, 0.5),
            back_p99_ms: share(&back, 0.99),
            back_max_ms: share(&back, 1.0),
        }
    };
    STAGES.into_iter().map(of).filter(|lives| lives.people > 0).collect()
}

/// What a kill and the people of its room know of each other.
struct Shared {
    killed: OnceLock<Instant>,
    reached: mpsc::UnboundedSender<Stage>,
}

/// One room, one kill. The error is a sentence: somebody's call is dead, or packets of the bystander, whom nothing concerns, are missing.
pub(super) async fn kill(nodes: &mut Nodes, dtls: &Dtls, room: &str, people: u32, rtt: Duration, seed: u64) -> Result<Vec<Life>, String> {
    let mut random = SplitMix64::new(seed);
    let now_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_err(|error| error.to_string())?.as_secs();
    let token = |identity: &str, grant| sign_token(KEY, room, identity, grant, now_s);
    let door = nodes.http(DOOR)?.to_owned();
    let scout = nodes.people.spawn(Person::come(dtls.clone(), door.clone(), token("scout", Grant::Watch)));
    let scout = scout.await.map_err(|error| error.to_string())??;
    let victim = nodes.addresses.iter().position(|address| *address == scout.server.ip()).ok_or("the answer names no node's address")?;
    let stage = (0..nodes.addresses.len()).find(|at| ![victim, DOOR].contains(at)).ok_or("there are three nodes")?;
    let ssrc = u32::from_be_bytes(crate::random::random_bytes());
    let publisher = member(nodes.http(stage)?, dtls, token("publisher", Grant::Publish), Some(ssrc)).await?;
    let publisher = tokio::spawn(publish(publisher, FRAMES)).abort_handle();
    let bystander = member(nodes.http(stage)?, dtls, token("bystander", Grant::Watch), None).await?;
    let over = Arc::new(Notify::new());
    let bystander = tokio::spawn(find_holes(bystander, Arc::clone(&over)));

    let wanted = STAGES[random.below(STAGES.len())];
    let after = (rtt + AFTER).mul_f64(random.unit());
    let (reached, mut reaching) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared { killed: OnceLock::new(), reached });
    let mut all = JoinSet::new();
    let diaries: Vec<Arc<Diary>> = (0..people).map(|_| Arc::default()).collect();
    for (n, diary) in diaries.iter().enumerate() {
        let one = One {
            dtls: dtls.clone(),
            door: door.clone(),
            token: token(&format!("person-{n}"), Grant::Watch),
            shared: Arc::clone(&shared),
            diary: Arc::clone(diary),
            random: SplitMix64::new(random.next_u64()),
        };
        all.spawn_on(async move { (n, one.live().await) }, &nodes.people);
    }
    let somebody = async {
        while let Some(stage) = reaching.recv().await {
            if stage == wanted {
                break;
            }
        }
    };
    let begun = Instant::now();
    if timeout(BACK_MAX, somebody).await.is_err() {
        let told: Vec<String> = diaries.iter().map(|diary| diary.tell(begun)).collect();
        return Err(format!("{room}, seed {seed}: nobody was {wanted:?} within {BACK_MAX:?}: {}", told.join("; ")));
    }
    sleep(after).await;
    let killed = *shared.killed.get_or_init(Instant::now);
    nodes.servers[victim] = None;
    drop(scout);
    let mut lives: Vec<Option<Result<Life, String>>> = vec![None; diaries.len()];
    while let Ok(Some(ended)) = timeout(BACK_MAX.saturating_sub(killed.elapsed()), all.join_next()).await {
        let (n, life) = ended.map_err(|error| error.to_string())?;
        lives[n] = Some(life);
    }
    let (mut alive, mut dead) = (Vec::new(), Vec::new());
    for (n, life) in lives.into_iter().enumerate() {
        match life.unwrap_or_else(|| Err(format!("no picture {BACK_MAX:?} later"))) {
            Ok(life) => alive.push(life),
            Err(sentence) => dead.push(format!("person-{n}: {sentence} ({})", diaries[n].tell(killed))),
        }
    }
    over.notify_one();
    publisher.abort();
    let holes = bystander.await.map_err(|error| error.to_string())?;
    nodes.start(victim)?;
    let told = format!("{room}, killed {:.0} ms after somebody was {wanted:?}, seed {seed}", ms(after));
    if !dead.is_empty() {
        return Err(format!("{told}: {} of {people} calls are dead: {}", dead.len(), dead.join("; ")));
    }
    if let Some((at, last, next)) = holes.first() {
        let away = if *at < killed { -ms(killed - *at) } else { ms(*at - killed) };
        return Err(format!(
            "{told}: packet {next} follows {last} at the bystander, {away:.0} ms after the kill, one of {} times",
            holes.len()
        ));
    }
    let last = alive.iter().map(|life| life.back).max().unwrap_or_default();
    eprintln!("{told}: the last is back after {:.0} ms", ms(last));
    Ok(alive)
}

/// When another packet of the publisher than the next one came: the last one's number, and its own.
async fn find_holes(member: Member, over: Arc<Notify>) -> Vec<(Instant, u64, u64)> {
    let Member { socket, keys, seat: _seat, .. } = member;
    let (mut receiver, mut buffer, mut last, mut holes) =
        (SrtpReceiver::new(keys.profile, &keys.remote), [0; DATAGRAM_LEN_MAX], None, Vec::new());
    let Ok(media) = UdpSocket::from_std(socket) else { return vec![(Instant::now(), 0, 0)] };
    loop {
        tokio::select! {
            () = over.notified() => return if last.is_some() { holes } else { vec![(Instant::now(), 0, 0)] },
            Ok(len) = media.recv(&mut buffer) => if let Some(Packet { number, .. }) = Packet::open(&mut receiver, &mut buffer[..len]) {
                if let Some(last) = last.filter(|last| number != last + 1) {
                    holes.push((Instant::now(), last, number));
                }
                last = Some(number);
            }
        }
    }
}

/// What a person looks at in a packet of media.
struct Packet {
    sequence: u16,
    /// The publisher's own.
    number: u64,
    is_keyframe: bool,
}

impl Packet {
    fn open(receiver: &mut SrtpReceiver, datagram: &mut [u8]) -> Option<Packet> {
        if demux(datagram) != Ok(Protocol::Rtp) {
            return None;
        }
        let (header_len, sequence) = RtpView::parse(datagram).map(|view| (view.header_len(), view.sequence())).ok()?;
        let len = receiver.unprotect_rtp(datagram, header_len).ok()?.len;
        let payload = datagram.get(header_len..len)?;
        let (number, _) = read_payload(payload)?;
        Some(Packet { sequence, number, is_keyframe: starts_keyframe(payload) })
    }
}

/// Why a person has to do something.
enum Trouble {
    /// The socket ended, or there is none: it resumes if it can.
    Ended,
    /// It is told to begin anew.
    Anew,
    /// No protocol has this.
    Wrong(String),
}

/// What a person comes back with.
struct Stay {
    sid: String,
    track: String,
    /// The last offer and its answer.
    agreed: Option<(proto::SessionDescription, proto::SessionDescription)>,
    version: u32,
    media: Arc<UdpSocket>,
    is_off: bool,
}

/// When somebody entered which stage.
#[derive(Default)]
struct Diary(Mutex<Vec<(Instant, Stage)>>);

impl Diary {
    fn pages(&self) -> Vec<(Instant, Stage)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stage_at(&self, moment: Instant) -> Stage {
        self.pages().into_iter().take_while(|(at, _)| *at <= moment).last().map_or(Stage::Coming, |(_, stage)| stage)
    }

    /// Milliseconds after `moment`, below zero before it.
    fn tell(&self, moment: Instant) -> String {
        let tell = |(at, stage): (Instant, Stage)| {
            let away = if at < moment { -ms(moment - at) } else { ms(at - moment) };
            format!("{away:.0} ms {stage:?}")
        };
        self.pages().into_iter().map(tell).collect::<Vec<_>>().join(", ")
    }
}

/// One person.
struct One {
    dtls: Dtls,
    door: String,
    token: String,
    shared: Arc<Shared>,
    diary: Arc<Diary>,
    random: SplitMix64,
}

impl One {
    async fn live(mut self) -> Result<Life, String> {
        sleep(COMING.mul_f64(self.random.unit())).await;
        let (mut stay, mut resumes, mut anew, mut pauses) = (None, 0, 0, PAUSES.into_iter());
        let back = loop {
            match self.watch(&mut stay).await {
                Ok(back) => break back,
                Err(Trouble::Wrong(sentence)) => return Err(sentence),
                Err(Trouble::Anew) => stay = None,
                // Without an answer there is no connection to go on with.
                Err(Trouble::Ended) => stay = stay.filter(|stay| stay.agreed.is_some()),
            }
            *if stay.is_some() { &mut resumes } else { &mut anew } += 1;
            sleep(pauses.next().unwrap_or(PAUSES[PAUSES.len() - 1])).await;
        };
        let killed = *self.shared.killed.get().ok_or("it was back before the kill")?;
        Ok(Life { stage: self.diary.stage_at(killed), resumes, anew, back: back.saturating_duration_since(killed) })
    }

    fn enter(&self, stage: Stage) {
        self.diary.0.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), stage));
        // Nobody listens any more after the kill.
        let _ = self.shared.reached.send(stage);
    }

    /// Comes, and watches until it is back from the kill: since when.
    async fn watch(&mut self, stay: &mut Option<Stay>) -> Result<Instant, Trouble> {
        self.enter(Stage::Coming);
        let offer = offer_of(&self.dtls);
        let mut signal = self.open(stay, &offer).await?;
        let Some(stay) = stay else { return Err(Trouble::Wrong("nobody has come".to_owned())) };
        self.enter(Stage::Offered);
        let said = describe(&offer, stay.version);
        let answer = loop {
            match signal.next().await {
                Ok(Told::Answer(answer)) => break answer,
                Ok(told) => stop_at_leave(&told)?,
                Err(_) => return Err(Trouble::Ended),
            }
        };
        let parsed = Answer::parse(&answer.sdp).map_err(Trouble::Wrong)?;
        stay.agreed = Some((said, answer));
        self.enter(Stage::Checking);
        let (mut early, mut checks) = (Vec::new(), Checks::new(&offer.ufrag, (&parsed.ufrag, &parsed.password)));
        let media = Arc::clone(&stay.media);
        // A way that is dead tells nothing; signalling does.
        tokio::select! {
            trouble = until_trouble(&mut signal) => return Err(trouble),
            Ok(()) = check_connectivity(&media, &parsed, &mut checks) => {}
        }
        self.enter(Stage::Shaking);
        let keys = tokio::select! {
            trouble = until_trouble(&mut signal) => return Err(trouble),
            Ok(keys) = shake_hands(&self.dtls, &media, &parsed, |datagram| early.push(datagram.to_vec())) => keys,
        };
        self.enter(Stage::Waiting);
        if stay.is_off {
            turn(&mut signal, stay, false).await?;
        }
        self.look(&mut signal, stay, &keys, early).await
    }

    /// Joins, or resumes what there is.
    async fn open(&self, stay: &mut Option<Stay>, offer: &Offer) -> Result<Signal, Trouble> {
        let mut request = join_request(None, Media::Video, offer);
        if let Some(stay) = stay {
            (request.reconnect, request.participant_sid, request.publisher_offer) = (true, stay.sid.clone(), None);
        }
        let (mut signal, told) = Signal::open(&self.door, &self.token, &request).await.map_err(|_| Trouble::Ended)?;
        stop_at_leave(&told)?;
        match (told, &mut *stay) {
            (Told::Join(welcome), None) => {
                let track = welcome.other_participants.iter().flat_map(|person| &person.tracks).map(|track| track.sid.clone()).next();
                let (Some(track), Some(own)) = (track, welcome.participant) else {
                    return Err(Trouble::Wrong("the JoinResponse knows no track, or nobody".to_owned()));
                };
                let media =
                    bind().and_then(|socket| UdpSocket::from_std(socket).map_err(|error| error.to_string())).map_err(Trouble::Wrong)?;
                *stay = Some(Stay { sid: own.sid, track, agreed: None, version: 1, media: Arc::new(media), is_off: false });
            }
            (Told::Reconnect(_), Some(stay)) => {
                let (said, answer) = stay.agreed.clone().unzip();
                let track_sids_disabled = stay.is_off.then(|| stay.track.clone()).into_iter().collect();
                let sync = proto::SyncState { offer: said, answer, track_sids_disabled, ..Default::default() };
                stay.version += 1;
                say(&mut signal, Say::SyncState(sync)).await?;
                say(&mut signal, Say::Offer(describe(offer, stay.version))).await?;
            }
            _ => return Err(Trouble::Wrong("the server's first message is neither welcome nor refusal".to_owned())),
        }
        Ok(signal)
    }

    /// Reads packets, and turns the track off and on until the kill.
    async fn look(&mut self, signal: &mut Signal, stay: &mut Stay, keys: &SrtpKeys, early: Vec<Vec<u8>>) -> Result<Instant, Trouble> {
        let (media, mut view) = (Arc::clone(&stay.media), View::default());
        let mut receiver = SrtpReceiver::new(keys.profile, &keys.remote);
        let mut buffer = [0; DATAGRAM_LEN_MAX];
        for mut datagram in early {
            self.take(&mut view, Packet::open(&mut receiver, &mut datagram))?;
        }
        let mut turning = Box::pin(sleep(ON.mul_f64(0.5 + self.random.unit())));
        loop {
            tokio::select! {
                trouble = until_trouble(signal) => return Err(trouble),
                Ok(len) = media.recv(&mut buffer) => {
                    if let Some(back) = self.take(&mut view, Packet::open(&mut receiver, &mut buffer[..len]))? {
                        return Ok(back);
                    }
                }
                () = &mut turning => {
                    let off = !stay.is_off && view.keyframe.is_some() && self.shared.killed.get().is_none();
                    if off || stay.is_off {
                        self.enter(Stage::Switching);
                        turn(signal, stay, off).await?;
                        view.was_turned_on |= !off;
                    }
                    turning = Box::pin(sleep(if off { OFF } else { ON }));
                }
            }
        }
    }

    /// Since when it is back, once there is enough to say so.
    fn take(&self, view: &mut View, packet: Option<Packet>) -> Result<Option<Instant>, Trouble> {
        let Some(packet) = packet else { return Ok(None) };
        if packet.is_keyframe {
            self.enter(Stage::Watching);
        }
        view.take(Instant::now(), &packet, self.shared.killed.get().copied()).map_err(Trouble::Wrong)
    }
}

/// What a connection has shown so far.
#[derive(Default)]
struct View {
    /// The first keyframe, and the last packet since.
    keyframe: Option<Instant>,
    last: Option<(u16, u64)>,
    since_kill: usize,
    /// The track was turned on again, and no keyframe has come back from the past since.
    was_turned_on: bool,
}

impl View {
    /// Since when there is a picture after the kill, when [`RUN`] packets have come since both.
    fn take(&mut self, now: Instant, packet: &Packet, killed: Option<Instant>) -> Result<Option<Instant>, String> {
        if let Some((sequence, number)) = self.last {
            if !self.follows(sequence, number, packet) {
                let &Packet { sequence: next, number: other, is_keyframe } = packet;
                let what = if is_keyframe { ", a keyframe" } else { "" };
                return Err(format!("sequence {next} (the publisher's {other}{what}) follows {sequence} ({number})"));
            }
            self.was_turned_on &= packet.number > number;
        }
        self.last = Some((packet.sequence, packet.number));
        if packet.is_keyframe && self.keyframe.is_none() {
            self.keyframe = Some(now);
        }
        let (Some(keyframe), Some(killed)) = (self.keyframe, killed) else { return Ok(None) };
        self.since_kill += 1;
        Ok((self.since_kill >= RUN).then(|| keyframe.max(killed)))
    }

    /// Only a keyframe may come out of the publisher's turn. One of the past does when the track was turned on again: the group of pictures
    /// that is kept is sent once more, under new numbers and with its timestamps squeezed (`dataplane::core::catch_up`).
    fn follows(&self, sequence: u16, number: u64, packet: &Packet) -> bool {
        let is_in_turn = packet.number == number + 1 || (packet.is_keyframe && (packet.number > number || self.was_turned_on));
        packet.sequence == sequence.wrapping_add(1) && is_in_turn
    }
}

async fn turn(signal: &mut Signal, stay: &mut Stay, off: bool) -> Result<(), Trouble> {
    stay.is_off = off;
    let settings = proto::UpdateTrackSettings { track_sids: vec![stay.track.clone()], disabled: off, ..Default::default() };
    say(signal, Say::TrackSetting(settings)).await
}

async fn say(signal: &mut Signal, message: Say) -> Result<(), Trouble> {
    signal.say(message).await.map_err(|_| Trouble::Ended)
}

/// What the server says of no interest is passed over.
async fn until_trouble(signal: &mut Signal) -> Trouble {
    loop {
        match signal.next().await {
            Ok(told) => {
                if let Err(trouble) = stop_at_leave(&told) {
                    return trouble;
                }
            }
            Err(_) => return Trouble::Ended,
        }
    }
}

fn stop_at_leave(told: &Told) -> Result<(), Trouble> {
    let Told::Leave(leave) = told else { return Ok(()) };
    Err(match leave.action() {
        proto::leave_request::Action::Resume => Trouble::Ended,
        proto::leave_request::Action::Reconnect => Trouble::Anew,
        proto::leave_request::Action::Disconnect => Trouble::Wrong(format!("told to leave for good: {:?}", leave.reason())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_back_has_a_keyframe_and_packets_in_turn_since_the_kill() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let packet = |n: u64, is_keyframe| Packet { sequence: (65_530 + n) as u16, number: n, is_keyframe };
        let see = |view: &mut View, numbers: std::ops::Range<u64>, killed| {
            numbers.map(|n| view.take(at(n), &packet(n, n == 10), killed)).last().expect("some")
        };
        let mut view = View::default();
        assert_eq!(see(&mut view, 0..60, None), Ok(None), "nobody was killed");
        assert_eq!(see(&mut view, 60..89, Some(at(60))), Ok(None), "a packet is missing");
        assert_eq!(see(&mut view, 89..90, Some(at(60))), Ok(Some(at(60))), "a picture all the time");
        assert_eq!(see(&mut View::default(), 0..40, Some(at(5))), Ok(Some(at(10))), "a picture since the keyframe");
        assert_eq!(see(&mut View::default(), 11..100, Some(at(5))), Ok(None), "no keyframe");
        assert!(view.take(at(91), &packet(91, false), None).is_err(), "one is missing");
    }

    #[test]
    fn only_a_keyframe_is_out_of_turn_and_one_of_the_past_once_for_each_time_that_the_track_was_turned_on() {
        let now = Instant::now();
        let see = |view: &mut View, (sequence, number, is_keyframe)| view.take(now, &Packet { sequence, number, is_keyframe }, None);
        let view = |was_turned_on| View { last: Some((9, 40)), was_turned_on, ..View::default() };
        assert!(see(&mut view(false), (10, 44, false)).is_err(), "what it needs to decode this is missing");
        assert!(see(&mut view(true), (10, 44, false)).is_err(), "and after a pause it is, too");
        assert_eq!(see(&mut view(false), (10, 44, true)), Ok(None), "a new keyframe");
        assert!(see(&mut view(true), (11, 44, true)).is_err(), "a packet is missing");
        let told = "sequence 10 (the publisher's 9, a keyframe) follows 9 (40)".to_owned();
        assert_eq!(see(&mut view(false), (10, 9, true)), Err(told), "nobody wanted the past");
        assert!(see(&mut view(true), (10, 10, false)).is_err(), "the past begins with a keyframe");
        let mut view = view(true);
        assert_eq!(see(&mut view, (10, 41, false)), Ok(None), "it was on its way when the track was turned off");
        assert_eq!(see(&mut view, (11, 9, true)), Ok(None), "the pictures that are kept");
        assert_eq!(see(&mut view, (12, 10, false)), Ok(None), "all of them");
        assert!(see(&mut view, (13, 9, true)).is_err(), "again");
    }

    #[test]
    fn a_stage_is_the_last_that_was_entered_before() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let diary = Diary(Mutex::new(vec![(at(10), Stage::Coming), (at(20), Stage::Offered)]));
        assert_eq!([5, 15, 20, 30].map(|ms| diary.stage_at(at(ms))), [Stage::Coming, Stage::Coming, Stage::Offered, Stage::Offered]);
        assert_eq!(diary.tell(at(15)), "-5 ms Coming, 5 ms Offered");
    }
}
