//! Spatial and temporal layers inside one stream: which frames a viewer of a lower quality can do without, whatever tells it.
//!
//! ```text
//! dependency descriptor (any codec) --+
//! VP8 payload descriptor (TID, Y) ----+--> Layering, one per stream --> FrameLayers, one per packet --> thinning.rs, per viewer
//! VP9 payload descriptor (SID, TID) --+
//! ```
//! All of them stay in the clear under end-to-end encryption.

use crate::control::Codec;
use crate::wire::dependency::{DECODE_TARGETS_MAX, Descriptor, Indication, Malformed, SPATIAL_LAYERS_MAX, Structure, TEMPORAL_LAYERS_MAX};

/// A quality that can be sent: up to a spatial and a temporal layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target(u8);

impl Target {
    /// The target of these layers; what is higher than there can be is the highest.
    pub const fn new(spatial: u8, temporal: u8) -> Target {
        let spatial = if spatial < SPATIAL_LAYERS_MAX as u8 { spatial } else { SPATIAL_LAYERS_MAX as u8 - 1 };
        let temporal = if temporal < TEMPORAL_LAYERS_MAX as u8 { temporal } else { TEMPORAL_LAYERS_MAX as u8 - 1 };
        Target(spatial * TEMPORAL_LAYERS_MAX as u8 + temporal)
    }

    /// Highest spatial layer.
    pub const fn spatial(self) -> u8 {
        self.0 / TEMPORAL_LAYERS_MAX as u8
    }

    /// Highest temporal layer.
    pub const fn temporal(self) -> u8 {
        self.0 % TEMPORAL_LAYERS_MAX as u8
    }

    /// A place among [`TARGETS_MAX`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// How many targets there can be.
pub const TARGETS_MAX: usize = SPATIAL_LAYERS_MAX * TEMPORAL_LAYERS_MAX;
const _: () = assert!(TARGETS_MAX <= u32::BITS as usize, "a set of targets is 32 bits");

/// Some targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetSet(u32);

impl TargetSet {
    /// None.
    pub const NONE: TargetSet = TargetSet(0);
    /// Every one that there can be.
    pub const ALL: TargetSet = TargetSet(u32::MAX);

    /// Those of at least these layers.
    fn at_least(spatial: u8, temporal: u8) -> TargetSet {
        let temporals = TEMPORALS << temporal & TEMPORALS;
        let spatials = u32::MAX << (TEMPORAL_LAYERS_MAX as u32 * u32::from(spatial));
        TargetSet(spatials & (temporals * EACH_SPATIAL))
    }

    /// Those of at most these layers.
    fn at_most(spatial: u8, temporal: u8) -> TargetSet {
        let temporals = TEMPORALS >> (TEMPORAL_LAYERS_MAX as u32 - 1 - u32::from(temporal));
        let spatials = u32::MAX >> (TEMPORAL_LAYERS_MAX as u32 * (SPATIAL_LAYERS_MAX as u32 - 1 - u32::from(spatial)));
        TargetSet(spatials & (temporals * EACH_SPATIAL))
    }

    /// Those of one spatial layer.
    fn of_spatial(spatial: u8) -> TargetSet {
        TargetSet(TEMPORALS << (TEMPORAL_LAYERS_MAX as u32 * u32::from(spatial)))
    }

    /// Those of the target's spatial layer whose pictures are all among the target's.
    pub fn within(target: Target) -> TargetSet {
        TargetSet::of_spatial(target.spatial()).and(TargetSet::at_most(target.spatial(), target.temporal()))
    }

    /// Whether `target` is one.
    #[inline]
    pub const fn has(self, target: Target) -> bool {
        self.0 >> target.0 & 1 == 1
    }

    /// With `target`.
    #[must_use]
    pub const fn with(self, target: Target) -> TargetSet {
        TargetSet(self.0 | 1 << target.0)
    }

    /// Those of either.
    #[must_use]
    pub const fn or(self, other: TargetSet) -> TargetSet {
        TargetSet(self.0 | other.0)
    }

    /// Those of both.
    #[must_use]
    pub const fn and(self, other: TargetSet) -> TargetSet {
        TargetSet(self.0 & other.0)
    }

    /// Without those of `other`.
    #[must_use]
    pub const fn without(self, other: TargetSet) -> TargetSet {
        TargetSet(self.0 & !other.0)
    }

    /// There is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each of them, the lowest first.
    pub fn iter(self) -> impl Iterator<Item = Target> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let lowest = (rest != 0).then(|| Target(rest.trailing_zeros() as u8))?;
            rest &= rest - 1;
            Some(lowest)
        })
    }

    /// The best that is not above `wish`: spatial layers count first. When all are above it, the lowest; `None`: there is none.
    pub fn best(self, wish: Target) -> Option<Target> {
        let highest = |set: TargetSet| (set.0 != 0).then(|| Target(31 - set.0.leading_zeros() as u8));
        // Rows by spatial layer, so the highest bit is of the highest spatial layer, and in it of the highest temporal one.
        highest(self.and(TargetSet::at_most(wish.spatial(), wish.temporal()))).or_else(|| self.iter().next())
    }
}

/// One spatial layer's temporal ones.
const TEMPORALS: u32 = (1 << TEMPORAL_LAYERS_MAX) - 1;
/// The lowest target of each spatial layer.
const EACH_SPATIAL: u32 = u32::MAX / TEMPORALS;

/// What a packet's frame is to the qualities of its stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameLayers {
    /// The targets that the frame belongs to; none: nothing is known of it.
    pub present: TargetSet,
    /// Of these, the ones that can be entered with it.
    pub switch: TargetSet,
    /// The targets that are made now.
    pub active: TargetSet,
    /// Tells frames of a stream apart; mostly the next frame's is one more.
    pub number: u16,
    /// The frame's own layers.
    layers: Target,
    flags: u8,
}

const STARTS: u8 = 1;
const ENDS: u8 = 2;
const INDEPENDENT: u8 = 4;
const COUNTS_PICTURES: u8 = 8;

impl FrameLayers {
    /// Something is known.
    #[inline]
    pub fn is_known(&self) -> bool {
        !self.active.is_empty()
    }

    /// The frame's spatial layer.
    pub fn spatial(&self) -> u8 {
        self.layers.spatial()
    }

    /// The frame's temporal layer.
    pub fn temporal(&self) -> u8 {
        self.layers.temporal()
    }

    /// The packet is the first of its frame.
    pub fn starts(&self) -> bool {
        self.flags & STARTS != 0
    }

    /// The packet is the last of its frame.
    pub fn ends(&self) -> bool {
        self.flags & ENDS != 0
    }

    /// It decodes whatever was left out before: it depends on no frame, or on the lowest layer alone.
    pub fn is_independent(&self) -> bool {
        self.flags & INDEPENDENT != 0
    }

    /// Picture numbers may have no holes: whoever leaves this frame out must close up those behind it (VP8).
    pub fn counts_pictures(&self) -> bool {
        self.flags & COUNTS_PICTURES != 0
    }
}

/// What the packets of one stream say about its layers.
#[derive(Default)]
pub struct Layering {
    now: Era,
    /// What held before, for packets that come late.
    before: Era,
    bytes: [u64; TARGETS_MAX],
}

/// A structure and the targets that are made under it.
#[derive(Clone, Default)]
struct Era {
    structure: Option<Structure>,
    /// Target of each of the structure's decode targets.
    targets: [Target; DECODE_TARGETS_MAX],
    active: TargetSet,
    /// The packet that brought it.
    since: u64,
}

/// A packet that was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// Its frame's layers.
    pub layers: FrameLayers,
    /// Where the descriptor says it: whether a decoder can start with the packet.
    pub keyframe_start: Option<bool>,
    /// There was a descriptor that does not fit its own fields.
    pub malformed: bool,
}

impl Read {
    /// A descriptor whose template is unknown is as it should be: the keyframe with the structure has not come.
    fn failed(error: Malformed) -> Read {
        Read { malformed: error != Malformed::UnknownTemplate, ..Read::default() }
    }
}

impl Layering {
    /// Memory of one, in bytes.
    pub const LEN: usize = size_of::<Layering>();

    /// The encoder began anew: nothing is known.
    pub fn reset(&mut self) {
        (self.now, self.before) = (Era::default(), Era::default());
    }

    /// Takes a packet. `descriptor` is its dependency descriptor, if there is one; `payload` is not looked at behind its own descriptor.
    #[inline]
    pub fn read(&mut self, sequence: u64, codec: Codec, descriptor: Option<&[u8]>, payload: &[u8], marker: bool) -> Read {
        let mut read = descriptor.map_or_else(Read::default, |bytes| self.read_descriptor(sequence, bytes));
        // VP8's own counts pictures, which viewers without the descriptor want without holes. libwebrtc writes it only where it does
        // not send the other.
        let own = match codec {
            Codec::Vp8 => self.read_vp8(payload, marker),
            Codec::Vp9 if !read.layers.is_known() => self.read_vp9(payload),
            _ => None,
        };
        read.layers = own.unwrap_or(read.layers);
        for target in read.layers.present.and(read.layers.active).iter() {
            self.bytes[target.index()] += payload.len() as u64;
        }
        read
    }

    /// The targets that are made now, and the payload bytes that came for each since the start, lower layers' that it needs included.
    pub fn targets(&self) -> impl Iterator<Item = (Target, u64)> {
        self.now.active.iter().map(|target| (target, self.bytes[target.index()]))
    }

    /// The targets that are made now.
    pub fn active(&self) -> TargetSet {
        self.now.active
    }

    /// Width and height of each spatial layer, when they are told.
    pub fn resolutions(&self) -> Option<&[(u16, u16)]> {
        self.now.structure.as_ref()?.resolutions()
    }

    fn read_descriptor(&mut self, sequence: u64, bytes: &[u8]) -> Read {
        if sequence < self.now.since {
            return self.before.read_late(bytes);
        }
        // What changes it comes with a keyframe, or when an encoder turns a layer on or off.
        let changes = bytes.len() > 3 && bytes[3] & (HAS_STRUCTURE | HAS_ACTIVE_TARGETS) != 0;
        let before = changes.then(|| self.now.clone());
        let descriptor = match Descriptor::parse(bytes, &mut self.now.structure) {
            Ok(descriptor) => descriptor,
            Err(error) => return Read::failed(error),
        };
        if let Some(before) = before {
            self.before = before;
            self.now.follow(sequence, &descriptor);
        }
        self.now.translate(&descriptor)
    }

    /// RFC 7741 section 4.2. `None`: it has no temporal layers, or no picture id to tell its frames apart.
    fn read_vp8(&mut self, payload: &[u8], marker: bool) -> Option<FrameLayers> {
        const PICTURE_AND_LAYER: u8 = 0xa0;
        let [first, fields, id, ..] = *payload else { return None };
        if first & 0x80 == 0 || fields & PICTURE_AND_LAYER != PICTURE_AND_LAYER {
            return None;
        }
        let id_len = if id & 0x80 == 0 { 1 } else { 2 };
        let number = if id_len == 1 { u16::from(id) } else { u16::from_be_bytes([id & 0x7f, *payload.get(3)?]) };
        let tl0_len = usize::from(fields & 0x40 != 0);
        let layer = *payload.get(2 + id_len + tl0_len)?;
        let frame = payload.get(3 + id_len + tl0_len)?;
        let temporal = layer >> 6;
        let starts = first & 0x17 == 0x10;
        let is_key = starts && temporal == 0 && frame & 1 == 0;
        // "Y: 1 layer sync bit [...] the frame depends only on the base layer (TID = 0) frame".
        let is_sync = temporal > 0 && layer & 0x20 != 0;
        self.now.active = self.now.active.or(TargetSet::at_most(0, temporal));
        let present = TargetSet::at_least(0, temporal).and(TargetSet::of_spatial(0));
        let independent = if is_key || is_sync { INDEPENDENT } else { 0 };
        Some(FrameLayers {
            present,
            switch: if is_key || is_sync { present } else { TargetSet::NONE },
            active: self.now.active,
            number,
            layers: Target::new(0, temporal),
            flags: COUNTS_PICTURES | independent | if starts { STARTS } else { 0 } | if marker { ENDS } else { 0 },
        })
    }

    /// RFC 9628 section 4.2. `None`: it has no layers, or no picture id to tell its frames apart.
    fn read_vp9(&mut self, payload: &[u8]) -> Option<FrameLayers> {
        const PICTURE_AND_LAYERS: u8 = 0xa0;
        let [first, id, ..] = *payload else { return None };
        if first & PICTURE_AND_LAYERS != PICTURE_AND_LAYERS {
            return None;
        }
        let id_len = if id & 0x80 == 0 { 1 } else { 2 };
        let picture = if id_len == 1 { u16::from(id) } else { u16::from_be_bytes([id & 0x7f, *payload.get(2)?]) };
        // `|TID|U|SID|D|`.
        let layer = *payload.get(1 + id_len)?;
        let (temporal, spatial) = (layer >> 5, layer >> 1 & 7);
        if usize::from(spatial) >= SPATIAL_LAYERS_MAX {
            return None;
        }
        let starts = first & 0x08 != 0;
        let is_key = first & 0x40 == 0 && spatial == 0;
        if is_key && starts {
            self.now.active = self.now.active.or(TargetSet::at_most(vp9_spatial_max(payload, 2 + id_len).unwrap_or(0), 0));
        }
        let seen = self.now.active.iter().last().map_or(spatial, |target| target.spatial().max(spatial));
        self.now.active = self.now.active.or(TargetSet::at_most(seen, temporal));
        let present = TargetSet::at_least(spatial, temporal);
        // "U: Switching up point": of the frame's own spatial layer; spatial layers are entered at keyframes.
        let switch = match layer & 0x10 != 0 {
            _ if is_key => present,
            true => present.and(TargetSet::of_spatial(spatial)),
            false => TargetSet::NONE,
        };
        Some(FrameLayers {
            present,
            switch,
            active: self.now.active,
            number: picture << 2 | u16::from(spatial),
            layers: Target::new(spatial, temporal),
            flags: if starts { STARTS } else { 0 } | if first & 0x04 != 0 { ENDS } else { 0 } | if is_key { INDEPENDENT } else { 0 },
        })
    }
}

/// `template_dependency_structure_present_flag` and `active_decode_targets_present_flag`, in the fourth byte.
const HAS_STRUCTURE: u8 = 0x80;
const HAS_ACTIVE_TARGETS: u8 = 0x40;

impl Era {
    /// Takes what a descriptor changes; its structure is here already.
    fn follow(&mut self, sequence: u64, descriptor: &Descriptor) {
        let Some(structure) = &self.structure else { return };
        self.since = sequence;
        for (target, layers) in self.targets.iter_mut().zip(structure.targets()) {
            *target = Target::new(layers.spatial, layers.temporal);
        }
        if let Some(active) = descriptor.active_targets {
            let made = self.targets[..structure.targets().len()].iter().enumerate().filter(|(index, _)| active >> index & 1 == 1);
            self.active = made.fold(TargetSet::NONE, |set, (_, target)| set.with(*target));
        }
    }

    /// A packet of this era that came after it ended. It changes nothing.
    #[cold]
    fn read_late(&self, bytes: &[u8]) -> Read {
        let mut structure = self.structure.clone();
        match Descriptor::parse(bytes, &mut structure) {
            Ok(descriptor) if structure == self.structure => self.translate(&descriptor),
            // Of an era that is forgotten.
            Ok(descriptor) => Read { keyframe_start: Some(descriptor.start_of_frame && descriptor.is_independent), ..Read::default() },
            Err(error) => Read::failed(error),
        }
    }

    /// From decode targets to ours.
    #[inline]
    fn translate(&self, descriptor: &Descriptor) -> Read {
        let (mut present, mut switch) = (TargetSet::NONE, TargetSet::NONE);
        let targets_len = self.structure.as_ref().map_or(0, |structure| structure.targets().len());
        for (index, target) in self.targets[..targets_len].iter().enumerate() {
            let indication = descriptor.indications.of(index);
            if indication != Indication::NotPresent {
                present = present.with(*target);
            }
            if indication == Indication::Switch {
                switch = switch.with(*target);
            }
        }
        let mut flags = 0;
        for (flag, set) in [(STARTS, descriptor.start_of_frame), (ENDS, descriptor.end_of_frame), (INDEPENDENT, descriptor.is_independent)]
        {
            flags |= if set { flag } else { 0 };
        }
        let layers = Target::new(descriptor.layers.spatial, descriptor.layers.temporal);
        Read {
            layers: FrameLayers { present, switch, active: self.active, number: descriptor.frame_number, layers, flags },
            keyframe_start: Some(descriptor.has_structure && descriptor.start_of_frame && descriptor.is_independent),
            malformed: false,
        }
    }
}

/// The highest spatial layer that the scalability structure of a VP9 payload names; `at` is behind the layer indices. Flexible mode
/// has no TL0PICIDX, and a key picture no references.
fn vp9_spatial_max(payload: &[u8], at: usize) -> Option<u8> {
    let first = *payload.first()?;
    if first & 0x02 == 0 {
        return None;
    }
    let at = at + usize::from(first & 0x10 == 0);
    Some((payload.get(at)? >> 5).min(SPATIAL_LAYERS_MAX as u8 - 1))
}
