//! Nodes in fake time, whose messages the test carries.

use std::collections::BTreeSet;

use pop_schemas::Identity;
use pop_session::Kind;
use pop_session::member::Permissions;
use pop_session::presence::Manifest;

use super::*;

struct Net {
    begun: Instant,
    now: Instant,
    nodes: Vec<Replica>,
    /// Of each node: session and participant that are here.
    seen: Vec<BTreeSet<(u64, u64)>>,
    events: Vec<Vec<BusEvent>>,
    /// Messages from the first to the second are lost.
    cut: BTreeSet<(usize, usize)>,
    /// Puts of participants are lost, and nothing else.
    loses_puts: bool,
}

fn room() -> SessionId {
    SessionId::new("room").unwrap()
}

fn record(name: &str, start: u64) -> NodeRecord {
    NodeRecord {
        name: name.into(),
        pop: "fra".into(),
        node: NodeId::of("fra", name),
        incarnation: Incarnation { start, nonce: 1 },
        mesh: None,
        release: "1".into(),
        load: 0,
        capacity: 1,
        draining: false,
        vips: Vec::new(),
    }
}

fn local(participant: u64, counter: u32, is_here: bool) -> LocalRecord {
    let manifest = Manifest::new(Identity::new("who").unwrap(), Kind::Publisher, Permissions::PUBLISHER);
    LocalRecord { participant: ParticipantId(participant), version: Version { epoch: 0, counter }, manifest: is_here.then_some(manifest) }
}

impl Net {
    fn new(nodes: &[(&str, u64)]) -> Net {
        let begun = Instant::now();
        let (seen, events) = (vec![BTreeSet::new(); nodes.len()], vec![Vec::new(); nodes.len()]);
        let mut net = Net { begun, now: begun, nodes: Vec::new(), seen, events, cut: BTreeSet::new(), loses_puts: false };
        for &(name, start) in nodes {
            let record = record(name, start);
            let mut node = Replica::new(record.node, "fra", record.incarnation, Arc::default());
            node.put_node(record);
            node.watch(&room());
            net.nodes.push(node);
        }
        net
    }

    fn put(&mut self, node: usize, participant: u64, counter: u32, is_here: bool) {
        let now = self.now;
        self.nodes[node].put_participant(now, &room(), &local(participant, counter, is_here)).expect("it is bounded");
    }

    fn withdraw(&mut self, node: usize, participant: u64) {
        let now = self.now;
        self.nodes[node].withdraw_participant(now, &room(), ParticipantId(participant));
    }

    /// `ms` in ticks, each node's beats and timers, and all messages until nobody has one.
    fn run(&mut self, ms: u64) {
        for _ in 0..ms / TICK.as_millis() as u64 {
            self.now += TICK;
            let now = self.now;
            let beats: Vec<_> = self.nodes.iter().map(|node| (node.node, node.beat())).collect();
            for (from, (id, beat)) in beats.into_iter().enumerate() {
                for to in self.others(from) {
                    self.nodes[to].handle_beat(now, id, record::decode_beat(&beat).expect("we wrote it"));
                }
            }
            for i in 0..self.nodes.len() {
                self.nodes[i].handle_timeout(now);
            }
            self.deliver();
        }
    }

    fn others(&self, from: usize) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&to| to != from && !self.cut.contains(&(from, to))).collect()
    }

    fn deliver(&mut self) {
        let now = self.now;
        while let Some((from, send)) = (0..self.nodes.len()).find_map(|i| Some((i, self.nodes[i].poll_send(now)?))) {
            let id = self.nodes[from].node;
            match send {
                Send::Watch(..) => {}
                Send::Participant(session, participant, bytes) => {
                    for to in self.others(from).into_iter().filter(|_| !self.loses_puts) {
                        let written = record::decode_participant(&bytes).expect("we wrote it");
                        self.nodes[to].handle_participant(&session, RemoteKey { node: id.0, participant }, written);
                    }
                }
                Send::Node(bytes) => {
                    for to in self.others(from) {
                        let (record, counter) = record::decode_node(&bytes).expect("we wrote it");
                        self.nodes[to].handle_node(now, id, record, counter);
                    }
                }
                Send::Digest(session, bytes) => {
                    for to in self.others(from) {
                        self.nodes[to].handle_digest(&session, id, record::decode_digest(&bytes).expect("we wrote it"));
                    }
                }
                Send::AskNode(node, incarnation) => {
                    if let Some(at) = self.reach(from, node, incarnation)
                        && let Some(bytes) = self.nodes[at].answer_node()
                    {
                        let (record, counter) = record::decode_node(&bytes).expect("we wrote it");
                        self.nodes[from].handle_node(now, node, record, counter);
                    }
                }
                Send::AskPage(ask) => {
                    let page = self
                        .reach(from, ask.node, ask.incarnation)
                        .map(|at| record::decode_page(&self.nodes[at].answer(&ask.session, ask.from)).expect("we wrote it"));
                    self.nodes[from].handle_page(now, &ask, page);
                }
            }
        }
        for i in 0..self.nodes.len() {
            while let Some(event) = self.nodes[i].poll_event() {
                match &event {
                    BusEvent::Record { record, .. } => {
                        let key = (record.key.node, record.key.participant.0);
                        if record.manifest.is_some() {
                            self.seen[i].insert(key)
                        } else {
                            self.seen[i].remove(&key)
                        };
                    }
                    BusEvent::NodeGone { node, .. } => self.seen[i].retain(|(of, _)| *of != node.0),
                    _ => {}
                }
                self.events[i].push(event);
            }
        }
    }

    /// The node, when messages pass both ways.
    fn reach(&self, from: usize, node: NodeId, incarnation: Incarnation) -> Option<usize> {
        let at = self.nodes.iter().position(|other| (other.node, other.incarnation) == (node, incarnation))?;
        (!self.cut.contains(&(from, at)) && !self.cut.contains(&(at, from))).then_some(at)
    }

    fn ids(&self, node: usize) -> Vec<u64> {
        let ids: BTreeSet<u64> = self.seen[node].iter().map(|(_, id)| *id).collect();
        ids.into_iter().collect()
    }

    fn gone(&self, node: usize) -> Vec<Gone> {
        let why = |event: &BusEvent| if let BusEvent::NodeGone { why, .. } = event { Some(*why) } else { None };
        self.events[node].iter().filter_map(why).collect()
    }
}

#[test]
fn what_was_missed_comes_with_the_next_digest() {
    let mut net = Net::new(&[("a", 1), ("b", 1)]);
    net.put(0, 1, 1, true);
    net.put(0, 2, 1, true);
    net.run(200);
    assert_eq!(net.ids(1), [1, 2]);
    net.loses_puts = true;
    net.put(0, 1, 2, false);
    net.put(0, 3, 1, true);
    net.run(200);
    assert_eq!(net.ids(1), [1, 2], "the puts were lost");
    net.run(1_600);
    assert_eq!(net.ids(1), [2, 3]);
    let counters = &net.nodes[1].counters;
    assert_eq!((counters.repairs(), counters.participants(), counters.nodes()), (1, 2, 1));
    net.run(5_000);
    assert_eq!(net.nodes[1].counters.repairs(), 1, "equal digests ask for nothing");
}

#[test]
fn whoever_was_told_while_the_node_was_held_for_away_is_told_once_more() {
    let mut net = Net::new(&[("a", 1), ("b", 1)]);
    net.put(0, 1, 1, true);
    net.put(0, 2, 1, true);
    net.run(200);
    net.seen[1].clear();
    let node = net.nodes[0].node;
    net.nodes[1].tell_again(node);
    net.put(0, 1, 2, false);
    net.run(200);
    assert_eq!(net.ids(1), [2], "and who has left is not");
    let told = net.events[1].len();
    net.run(5_000);
    assert_eq!((net.events[1].len(), net.nodes[1].counters.repairs()), (told, 0), "once");
}

#[test]
fn one_that_left_is_gone_even_when_its_tombstone_is() {
    let mut net = Net::new(&[("a", 1), ("b", 1)]);
    net.put(0, 1, 7, true);
    net.put(0, 2, 1, true);
    net.run(200);
    net.loses_puts = true;
    net.put(0, 1, 8, false);
    // As if 60 s had passed without a digest.
    net.deliver();
    net.nodes[0].forget_tombstone();
    net.run(1_700);
    assert_eq!(net.ids(1), [2]);
    let last =
        net.events[1].iter().rev().find_map(|event| if let BusEvent::Record { record, .. } = event { Some(record.clone()) } else { None });
    assert!(last.is_some_and(|record| record.manifest.is_none() && record.version == Version { epoch: 0, counter: 8 }));
}

#[test]
fn a_silent_node_is_gone_within_half_a_second_and_its_people_come_back_with_it() {
    let mut net = Net::new(&[("a", 1), ("b", 1), ("c", 1)]);
    for node in 0..3 {
        net.put(node, node as u64, 1, true);
    }
    net.run(200);
    assert_eq!(net.ids(1), [0, 2]);
    net.cut = [(0, 1), (1, 0)].into();
    net.run(400);
    assert!(net.gone(1).is_empty(), "not before its time");
    net.run(100);
    assert_eq!((net.gone(1), net.gone(0), net.gone(2)), (vec![Gone::Silent], vec![Gone::Silent], vec![]));
    assert_eq!(net.ids(1), [2]);
    net.put(0, 10, 1, true);
    net.put(0, 0, 2, false);
    net.run(5_000);
    net.cut.clear();
    net.run(300);
    assert_eq!((net.ids(1), net.ids(0)), (vec![2, 10], vec![1, 2]));
    assert_eq!(net.nodes[1].counters.participants(), 2);
}

#[test]
fn who_went_on_elsewhere_while_its_node_was_gone_ends_there_a_moment_after_the_node_is_back() {
    let mut net = Net::new(&[("a", 1), ("b", 1)]);
    net.put(0, 1, 1, true);
    net.put(0, 2, 1, true);
    net.run(200);
    net.cut = [(0, 1), (1, 0)].into();
    net.run(600);
    assert_eq!(net.gone(1), [Gone::Silent]);
    net.withdraw(0, 1);
    let told = |net: &Net| {
        let records =
            net.events[1].iter().filter_map(|event| if let BusEvent::Record { record, .. } = event { Some(record) } else { None });
        records.map(|record| (record.key.participant.0, record.manifest.is_some())).collect::<Vec<_>>()
    };
    let before = told(&net).len();
    net.cut.clear();
    net.run(200);
    assert_eq!(told(&net)[before..], [(2, true)], "of 1 its next owner may tell");
    net.run(400);
    assert_eq!(told(&net)[before..], [(2, true), (1, false)]);
    net.run(5_000);
    assert_eq!((told(&net).len(), net.nodes[1].counters.participants()), (before + 2, 1), "once");

    // Whom a node has that is gone for good is not remembered for ever.
    net.cut = [(0, 1), (1, 0)].into();
    net.run(600);
    assert_eq!(net.nodes[1].counters.participants(), 1);
    net.now += FENCE_LIFE;
    net.run(100);
    assert_eq!(net.nodes[1].counters.participants(), 0);
}

#[test]
fn a_node_that_had_no_time_to_listen_takes_nobody_for_dead() {
    let mut net = Net::new(&[("a", 1), ("b", 1)]);
    net.run(200);
    // Two seconds without the CPU, and the timer is served before the messages.
    net.now += Duration::from_secs(2);
    let now = net.now;
    net.nodes[1].handle_timeout(now);
    net.run(500);
    assert!(net.gone(1).is_empty(), "{:?}", net.gone(1));
}

#[test]
fn a_later_start_takes_the_place_of_an_earlier_one_which_has_to_stop() {
    let mut net = Net::new(&[("a", 1), ("b", 4), ("b", 5)]);
    // The later one is not there yet.
    net.cut = [(2, 0), (2, 1), (0, 2), (1, 2)].into();
    net.put(1, 40, 1, true);
    net.put(2, 50, 1, true);
    net.run(200);
    assert_eq!(net.ids(0), [40]);
    net.cut.clear();
    net.run(200);
    assert_eq!(net.ids(0), [50]);
    assert_eq!(net.gone(0), [Gone::Restarted]);
    let told = |node: usize| {
        net.events[node].iter().filter(|event| matches!(event, BusEvent::Duplicate { theirs, .. } if theirs.start == 5)).count()
    };
    assert_eq!((told(1), told(2)), (1, 0), "once, and only the earlier one");
    net.put(1, 41, 1, true);
    net.run(200);
    assert_eq!(net.ids(0), [50]);
    assert!(net.nodes[0].counters.ignored(Ignored::Older) > 0);
    // Remembered for a while after it is gone.
    net.cut = [(2, 0)].into();
    net.run(1_000);
    assert_eq!(net.ids(0), [] as [u64; 0]);
    net.run(60_000);
    assert_eq!(net.ids(0), [40, 41], "then the earlier one is all that there is");
}

#[test]
fn events_that_nobody_takes_are_bounded_and_what_is_lost_comes_back() {
    let mut net = Net::new(&[("a", 1), ("b", 1)]);
    net.run(200);
    let (now, a, b) = (net.now, net.nodes[0].node, 1);
    for id in 0..RECORD_EVENTS_MAX as u64 + 100 {
        net.put(0, id, 1, true);
        let bytes = net.nodes[0].own[&room()].records[&ParticipantId(id)].bytes.clone();
        let key = RemoteKey { node: a.0, participant: ParticipantId(id) };
        net.nodes[b].handle_participant(&room(), key, record::decode_participant(&bytes).expect("we wrote it"));
    }
    assert_eq!(net.nodes[b].counters.ignored(Ignored::Full), 100);
    assert_eq!(net.nodes[b].events.len(), RECORD_EVENTS_MAX);
    net.loses_puts = true;
    while net.nodes[0].poll_send(now).is_some() {}
    net.deliver();
    net.run(1_700);
    assert_eq!(net.seen[b].len(), RECORD_EVENTS_MAX + 100);
}

#[test]
fn sets_are_equal_after_lost_messages_and_partitions_of_any_order() {
    for seed in 1..=40u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let mut net = Net::new(&[("a", 1), ("b", 1), ("c", 1)]);
        let mut here = [BTreeSet::new(), BTreeSet::new(), BTreeSet::new()];
        for step in 0..60 {
            let node = random(3) as usize;
            let id = node as u64 * 1_000 + random(8);
            let is_here = random(3) > 0;
            net.put(node, id, step + 1, is_here);
            if is_here {
                here[node].insert(id)
            } else {
                here[node].remove(&id)
            };
            net.loses_puts = random(3) == 0;
            match random(6) {
                0 => drop(net.cut.insert((random(3) as usize, random(3) as usize))),
                1 => net.cut.clear(),
                _ => {}
            }
            net.run(50 * random(16));
        }
        net.cut.clear();
        net.loses_puts = false;
        net.run(2_500);
        for node in 0..3 {
            let expected: Vec<u64> = (0..3).filter(|&of| of != node).flat_map(|of| here[of].iter().copied()).collect();
            assert_eq!(net.ids(node), expected, "seed {seed}, node {node}, {:?} after the start", net.now - net.begun);
            assert_eq!(net.nodes[node].known, expected.len(), "seed {seed}");
        }
    }
}

#[test]
fn keepers_alone_hear_of_a_session_that_they_do_not_watch() {
    let mut net = Net::new(&[("a", 1), ("b", 1), ("c", 1), ("d", 1), ("e", 1)]);
    for node in &mut net.nodes[1..] {
        node.unwatch(&room());
    }
    net.run(200);
    net.put(0, 1, 1, true);
    net.run(200);
    let heard = |net: &Net, i: usize| net.events[i].iter().filter(|event| matches!(event, BusEvent::Keep(_))).count();
    let ranked = rank(&room(), net.nodes.iter().map(|node| node.node));
    for i in 1..5 {
        let is_keeper = ranked[..KEEPERS].contains(&net.nodes[i].node);
        assert_eq!(heard(&net, i), usize::from(is_keeper), "node {i}, at once");
        net.nodes[i].watch(&room());
    }
    net.run(3_000);
    assert!((1..5).all(|i| heard(&net, i) <= 1 && net.ids(i) == [1]), "what is watched is not told of");
    // Of one that has gone nobody is told.
    for node in &mut net.nodes[1..] {
        node.unwatch(&room());
    }
    net.put(0, 1, 2, false);
    net.run(3_000);
    assert!((1..5).all(|i| heard(&net, i) <= 1));
}

#[test]
fn one_that_has_another_owner_is_told_of_no_longer() {
    let mut net = Net::new(&[("a", 1), ("b", 1)]);
    net.put(0, 1, 1, true);
    net.put(0, 2, 1, true);
    net.run(200);
    assert_eq!(net.ids(1), [1, 2]);
    net.withdraw(0, 1);
    net.run(200);
    assert_eq!(net.ids(1), [1, 2], "others hear its new owner first");
    net.run(1_600);
    assert_eq!(net.ids(1), [2]);
    net.withdraw(0, 2);
    net.run(1_600);
    assert_eq!(net.ids(1), [] as [u64; 0], "the last of the session, too");
    assert!(net.nodes[0].own.contains_key(&room()));
    net.run(TOMBSTONE_LIFE.as_millis() as u64);
    assert!(net.nodes[0].own.is_empty(), "and then the session is forgotten");
}

#[test]
fn a_bus_that_is_slower_than_digests_keeps_no_more_than_one_of_each_session() {
    let mut node = Net::new(&[("a", 1)]).nodes.remove(0);
    let begun = Instant::now();
    node.put_participant(begun, &room(), &local(1, 1, true)).expect("it is bounded");
    for n in 0..1_000 {
        node.handle_timeout(begun + n * DIGEST_INTERVAL);
    }
    assert_eq!(node.digests_unsent.len(), 1);
}

#[test]
fn a_node_of_another_pop_is_none_of_this_one() {
    let mut net = Net::new(&[("a", 1), ("b", 1)]);
    let of_ams = NodeRecord { pop: "ams".into(), node: NodeId::of("ams", "x"), ..record("x", 1) };
    let now = net.now;
    net.nodes[0].handle_node(now, of_ams.node, of_ams, 1);
    net.run(200);
    let up = net.events[0].iter().filter(|event| matches!(event, BusEvent::NodeUp(_))).count();
    assert_eq!((up, net.nodes[0].counters.ignored(Ignored::Foreign)), (1, 1));
}

#[test]
fn hundreds_of_sessions_are_read_within_two_seconds_over_a_long_way_and_long_pages_few_at_a_time() {
    let mut net = Net::new(&[("a", 1), ("b", 1)]);
    net.run(200);
    let sessions: Vec<_> = (0..600).map(|number| SessionId::new(&format!("room{number}")).unwrap()).collect();
    let now = net.now;
    for session in &sessions {
        net.nodes[0].put_participant(now, session, &local(1, 1, true)).expect("it is bounded");
    }
    while net.nodes[0].poll_send(now).is_some() {}
    sessions.iter().for_each(|session| net.nodes[1].watch(session));
    let mut come = |until: usize| {
        let (mut on_the_way, mut answered, mut most) = (std::collections::VecDeque::new(), 0, 0);
        let begun = net.now;
        while answered < until {
            assert!(net.now - begun < Duration::from_secs(60), "{answered} have come");
            while on_the_way.front().is_some_and(|(at, _): &(Instant, PageAsk)| *at <= net.now) {
                let (_, ask) = on_the_way.pop_front().expect("there is one");
                let page = record::decode_page(&net.nodes[0].answer(&ask.session, ask.from)).expect("we wrote it");
                let now = net.now;
                net.nodes[1].handle_page(now, &ask, Some(page));
                answered += 1;
            }
            let now = net.now;
            while let Some(send) = net.nodes[1].poll_send(now) {
                if let Send::AskPage(ask) = send {
                    on_the_way.push_back((now + Duration::from_millis(250), ask));
                }
            }
            most = most.max(on_the_way.len());
            net.now += TICK;
        }
        (net.now - begun, most)
    };
    let (took, most) = come(sessions.len());
    assert!(took < Duration::from_secs(2), "{took:?} at 250 ms and {most} at once");
    assert_eq!(most, ASKED_MAX);
    // The twin: where pages are long no more are on their way than ever.
    for session in &sessions {
        let node = net.nodes[0].node;
        net.nodes[1].pull_anew(session, node);
    }
    net.nodes[1].page_len = record::PAGE_BYTES;
    let (mut most, now) = (0, net.now);
    while let Some(send) = net.nodes[1].poll_send(now) {
        most += usize::from(matches!(send, Send::AskPage(_)));
    }
    assert_eq!(most, ASKED_MIN);
}
