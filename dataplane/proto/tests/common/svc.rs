//! A layered encoder as libwebrtc's are (`modules/video_coding/svc`): its frames' descriptors and true dependencies, no pictures.
#![allow(dead_code, unreachable_pub)] // Each test file uses its part.

/// Writes bits from the left.
#[derive(Default)]
pub struct BitWriter {
    pub bytes: Vec<u8>,
    len: usize,
}

impl BitWriter {
    pub fn put(&mut self, len: usize, value: u32) {
        for bit in (0..len).rev() {
            if self.len.is_multiple_of(8) {
                self.bytes.push(0);
            }
            *self.bytes.last_mut().unwrap() |= ((value >> bit & 1) as u8) << (7 - self.len % 8);
            self.len += 1;
        }
    }

    /// `ns(values)`.
    fn put_non_symmetric(&mut self, values: u32, value: u32) {
        let width = u32::BITS - values.leading_zeros();
        let short = (1 << width) - values;
        if value < short {
            self.put(width as usize - 1, value);
        } else {
            self.put(width as usize, value + short);
        }
    }
}

/// How spatial layers are built on each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    /// L3T3: each on the one below, in every picture.
    Full,
    /// L3T3_KEY: in key pictures alone.
    Key,
}

/// One layer's frame of one picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub number: u16,
    pub spatial: u8,
    pub temporal: u8,
    /// Of a key picture.
    pub is_key: bool,
    /// Numbers of the frames that it cannot be decoded without.
    pub dependencies: Vec<u16>,
    pub picture: u32,
    /// The last of its picture.
    pub is_last: bool,
    structure: Option<Vec<(usize, u32)>>,
    indications: Vec<u32>,
    template: u32,
    chains: u32,
}

impl Frame {
    /// The descriptor of one of the frame's packets.
    pub fn descriptor(&self, starts: bool, ends: bool) -> Vec<u8> {
        let mut bits = BitWriter::default();
        bits.put(1, u32::from(starts));
        bits.put(1, u32::from(ends));
        bits.put(6, self.template);
        bits.put(16, self.number.into());
        let structure = self.structure.as_ref().filter(|_| starts);
        bits.put(1, u32::from(structure.is_some()));
        bits.put(1, 0);
        bits.put(3, 0b111);
        for (len, value) in structure.into_iter().flatten() {
            bits.put(*len, *value);
        }
        for indication in &self.indications {
            bits.put(2, *indication);
        }
        for dependency in &self.dependencies {
            let difference = u32::from(self.number.wrapping_sub(*dependency)) - 1;
            let size = if difference < 16 { 1 } else { 2 };
            bits.put(2, size as u32);
            bits.put(4 * size, difference);
        }
        bits.put(2, 0);
        for _ in 0..self.chains {
            bits.put(8, 1);
        }
        bits.bytes
    }
}

const NOT_PRESENT: u32 = 0;
const DISCARDABLE: u32 = 1;
const SWITCH: u32 = 2;
const REQUIRED: u32 = 3;

/// An encoder of up to 4 x 3 layers.
pub struct Encoder {
    spatial: u8,
    temporal: u8,
    prediction: Prediction,
    number: u16,
    picture: u32,
    /// Pictures since the keyframe.
    since_key: u32,
    id_offset: u32,
    /// The last frame of each spatial and temporal layer.
    last: [[Option<u16>; 3]; 4],
    pub key_wanted: bool,
}

impl Encoder {
    pub fn new(spatial: u8, temporal: u8, prediction: Prediction) -> Encoder {
        Encoder {
            spatial,
            temporal,
            prediction,
            number: 0xfff0,
            picture: 0,
            since_key: 0,
            id_offset: 60,
            last: Default::default(),
            key_wanted: true,
        }
    }

    /// The next picture's frames, the lowest first.
    pub fn picture(&mut self) -> Vec<Frame> {
        let is_key = std::mem::take(&mut self.key_wanted);
        if is_key {
            self.since_key = 0;
            self.last = Default::default();
            // "template_id_offset" moves on with each structure, so that late frames of the one before are not read by the new one.
            self.id_offset = (self.id_offset + u32::from(self.spatial * self.temporal)) % 64;
        }
        let temporal = match (self.temporal, self.since_key % 4) {
            (1, _) | (_, 0) => 0,
            (2, at) => (at % 2) as u8,
            (_, 2) => 1,
            _ => 2,
        };
        let frames = (0..self.spatial).map(|spatial| self.frame(spatial, temporal, is_key)).collect();
        self.since_key += 1;
        self.picture += 1;
        frames
    }

    fn frame(&mut self, spatial: u8, temporal: u8, is_key: bool) -> Frame {
        let number = self.number;
        self.number = self.number.wrapping_add(1);
        let mut dependencies = Vec::new();
        if spatial > 0 && (is_key || self.prediction == Prediction::Full) {
            dependencies.push(number.wrapping_sub(1));
        }
        let below = &self.last[usize::from(spatial)][..usize::from(temporal.max(1))];
        let newest = below.iter().flatten().min_by_key(|last| number.wrapping_sub(**last));
        dependencies.extend(newest.filter(|_| !is_key));
        self.last[usize::from(spatial)][usize::from(temporal)] = Some(number);
        let targets = (0..self.spatial).flat_map(|s| (0..self.temporal).map(move |t| (s, t)));
        Frame {
            number,
            spatial,
            temporal,
            is_key,
            dependencies,
            picture: self.picture,
            is_last: spatial + 1 == self.spatial,
            structure: (is_key && spatial == 0).then(|| self.structure()),
            indications: targets.map(|(s, t)| self.indication(spatial, temporal, is_key, s, t)).collect(),
            template: (self.id_offset + u32::from(spatial * self.temporal + temporal)) % 64,
            chains: self.spatial.into(),
        }
    }

    /// `ScalabilityStructureFullSvc::Dti` and `ScalabilityStructureKeySvc::Dti`.
    fn indication(&self, spatial: u8, temporal: u8, is_key: bool, of_spatial: u8, of_temporal: u8) -> u32 {
        if self.prediction == Prediction::Key {
            return match () {
                () if is_key => {
                    if spatial <= of_spatial {
                        SWITCH
                    } else {
                        NOT_PRESENT
                    }
                }
                () if of_spatial != spatial || of_temporal < temporal => NOT_PRESENT,
                () if of_temporal == temporal && temporal > 0 => DISCARDABLE,
                () => SWITCH,
            };
        }
        match () {
            () if of_spatial < spatial || of_temporal < temporal => NOT_PRESENT,
            () if of_spatial == spatial && of_temporal == temporal && temporal > 0 => DISCARDABLE,
            () if of_spatial == spatial || is_key => SWITCH,
            () => REQUIRED,
        }
    }

    /// One template for each layer, with the indications of a picture that is no key picture; resolutions of 320 x 180 and its doubles.
    fn structure(&self) -> Vec<(usize, u32)> {
        let (spatial, temporal) = (u32::from(self.spatial), u32::from(self.temporal));
        let targets = spatial * temporal;
        let layers: Vec<(u8, u8)> = (0..self.spatial).flat_map(|s| (0..self.temporal).map(move |t| (s, t))).collect();
        let mut fields = vec![(6, self.id_offset), (5, targets - 1)];
        fields.extend(layers.iter().skip(1).map(|(_, t)| (2, if *t == 0 { 2 } else { 1 })));
        fields.push((2, 3));
        for (s, t) in &layers {
            fields.extend(layers.iter().map(|(of_s, of_t)| (2, self.indication(*s, *t, false, *of_s, *of_t))));
        }
        fields.extend(layers.iter().map(|_| (1, 0)));
        let mut non_symmetric = |values: u32, value: u32| {
            let mut bits = BitWriter::default();
            bits.put_non_symmetric(values, value);
            fields.extend((0..bits.len).map(|at| (1, u32::from(bits.bytes[at / 8] >> (7 - at % 8) & 1))));
        };
        non_symmetric(targets + 1, spatial);
        layers.iter().for_each(|(s, _)| non_symmetric(spatial, (*s).into()));
        fields.extend((0..targets * spatial).map(|_| (4, 1)));
        fields.push((1, 1));
        fields.extend((0..spatial).flat_map(|s| [(16, (320 << s) - 1), (16, (180 << s) - 1)]));
        fields
    }
}
