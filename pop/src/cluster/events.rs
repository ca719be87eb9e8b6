//! What happened of late: for who looks at the page of a node and wants to know what it was.

use std::collections::VecDeque;

use crate::token::unix_now_ms;
use crate::view::EventView;

/// Events that are kept. A flapping path makes six a minute, so with one of them this is what the last minutes were like.
const EVENTS_MAX: usize = 50;

/// The last ones, the newest last.
#[derive(Debug, Default)]
pub(super) struct Events(VecDeque<EventView>);

impl Events {
    fn note(&mut self, event: EventView) {
        if self.0.len() == EVENTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(event);
    }

    /// Of a node: `new`, `restarted`, `away`, `back`, `link_up` or `link_down`.
    pub(super) fn note_node(&mut self, what: &'static str, pop: &str, node: &str) {
        let event = EventView { at_ms: unix_now_ms(), what, pop: pop.to_owned(), node: Some(node.to_owned()), from: None, way: None };
        self.note(event);
    }

    /// Another way goes to a PoP: `direct`, `via POP` or `none`.
    pub(super) fn note_way(&mut self, pop: &str, from: String, way: String) {
        let event = EventView { at_ms: unix_now_ms(), what: "way", pop: pop.to_owned(), node: None, from: Some(from), way: Some(way) };
        self.note(event);
    }

    pub(super) fn list(&self) -> Vec<EventView> {
        self.0.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_events_the_last_are_kept_in_their_order() {
        let mut events = Events::default();
        (0..1_000).for_each(|i| events.note_node("away", "fra", &i.to_string()));
        events.note_way("sin", "direct".to_owned(), "via ams".to_owned());
        let list = events.list();
        assert_eq!(list.len(), EVENTS_MAX);
        let nodes: Vec<_> = list.iter().filter_map(|event| event.node.as_deref()?.parse::<usize>().ok()).collect();
        assert_eq!(nodes, (1_000 - EVENTS_MAX + 1..1_000).collect::<Vec<_>>());
        assert_eq!((list[EVENTS_MAX - 1].what, list[EVENTS_MAX - 1].way.as_deref()), ("way", Some("via ams")));
        assert!(list.is_sorted_by_key(|event| event.at_ms));
    }
}
