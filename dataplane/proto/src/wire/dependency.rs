//! The dependency descriptor: which frames of a stream with spatial and temporal layers belong to which decode target (AOM "RTP Payload
//! Format For AV1" 1.0, appendix A).
//!
//! A keyframe's first packet carries the structure: templates that later packets name. What is read here is what a choice of layers
//! needs; dependencies and chains are walked over, because the fields behind them have no other beginning.

/// Templates that a structure may have: their ids have six bits.
pub const TEMPLATES_MAX: usize = 64;
/// Decode targets that a structure may have: `dt_cnt_minus_one` has five bits.
pub const DECODE_TARGETS_MAX: usize = 32;
/// Spatial layers that are told apart; libwebrtc has as many.
pub const SPATIAL_LAYERS_MAX: usize = 4;
/// Temporal layers that are told apart; libwebrtc has as many.
pub const TEMPORAL_LAYERS_MAX: usize = 8;

/// Dependencies of one frame. libwebrtc makes at most five; each costs three bits or more, so the descriptor's length bounds them, too.
const DEPENDENCIES_MAX: usize = 64;

/// What is wrong with a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// It ends inside a field.
    Short,
    /// More layers, templates or dependencies than there may be.
    TooMany,
    /// Its template is not in the structure, or there is none yet.
    UnknownTemplate,
}

/// What a frame is to a decode target (appendix A.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Indication {
    /// It does not belong to the target.
    NotPresent,
    /// No other frame of the target depends on it.
    Discardable,
    /// The target can be entered here: whatever of it follows decodes if this frame does.
    Switch,
    /// Later frames of the target depend on it.
    Required,
}

/// One [`Indication`] for each decode target: two bits each, the first target's lowest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Indications(u64);

impl Indications {
    /// What the frame is to `target`, below [`DECODE_TARGETS_MAX`].
    #[inline]
    pub fn of(self, target: usize) -> Indication {
        match self.0 >> (2 * target) & 3 {
            0 => Indication::NotPresent,
            1 => Indication::Discardable,
            2 => Indication::Switch,
            _ => Indication::Required,
        }
    }

    fn set(&mut self, target: usize, bits: u32) {
        self.0 |= u64::from(bits) << (2 * target);
    }
}

/// A spatial and a temporal layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerIds {
    /// Below [`SPATIAL_LAYERS_MAX`].
    pub spatial: u8,
    /// Below [`TEMPORAL_LAYERS_MAX`].
    pub temporal: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Template {
    layers: LayerIds,
    /// It depends on no other frame.
    is_independent: bool,
    indications: Indications,
}

/// The template dependency structure of a coded video sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Structure {
    id_offset: u8,
    templates_len: u8,
    targets_len: u8,
    chains_len: u8,
    /// Highest spatial layer of a template.
    spatial_max: u8,
    templates: [Template; TEMPLATES_MAX],
    targets: [LayerIds; DECODE_TARGETS_MAX],
    resolutions: Option<[(u16, u16); SPATIAL_LAYERS_MAX]>,
}

impl Structure {
    /// The layers of each decode target: the highest of its frames.
    pub fn targets(&self) -> &[LayerIds] {
        &self.targets[..usize::from(self.targets_len)]
    }

    /// Width and height in pixels of each spatial layer, when they are told.
    pub fn resolutions(&self) -> Option<&[(u16, u16)]> {
        self.resolutions.as_ref().map(|all| &all[..=usize::from(self.spatial_max)])
    }

    /// A bit for each decode target.
    fn all_targets(&self) -> u32 {
        u32::MAX >> (DECODE_TARGETS_MAX as u32 - u32::from(self.targets_len))
    }

    fn template(&self, id: u8) -> Option<&Template> {
        let index = (64 + id - self.id_offset) % 64;
        self.templates[..usize::from(self.templates_len)].get(usize::from(index))
    }
}

/// One packet's descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The packet is the first of its frame.
    pub start_of_frame: bool,
    /// The packet is the last of its frame.
    pub end_of_frame: bool,
    /// Counts the frames of the stream, each spatial layer's for itself, modulo 2^16.
    pub frame_number: u16,
    /// The frame's layers.
    pub layers: LayerIds,
    /// The frame depends on no other.
    pub is_independent: bool,
    /// What the frame is to each decode target.
    pub indications: Indications,
    /// A structure came with it.
    pub has_structure: bool,
    /// From this frame on these decode targets are made, a bit each; `None`: as before.
    pub active_targets: Option<u32>,
}

impl Descriptor {
    /// Reads a descriptor. `structure` is the one that holds; one that comes with this packet takes its place if the whole is sound.
    ///
    /// Errors: whatever does not fit; trailing bytes are padding.
    #[inline]
    pub fn parse(bytes: &[u8], structure: &mut Option<Structure>) -> Result<Descriptor, Malformed> {
        let mut bits = BitReader::new(bytes);
        let (start_of_frame, end_of_frame) = (bits.flag()?, bits.flag()?);
        let (template_id, frame_number) = (bits.read(6)? as u8, bits.read(16)? as u16);
        let mut extended = Extended::default();
        if bytes.len() > 3 {
            extended = Extended::read(&mut bits, structure.as_ref())?;
        }
        let holds = extended.structure.as_ref().or(structure.as_ref()).ok_or(Malformed::UnknownTemplate)?;
        let template = *holds.template(template_id).ok_or(Malformed::UnknownTemplate)?;
        let indications = if extended.custom_indications { read_indications(&mut bits, holds.targets_len)? } else { template.indications };
        let is_independent = if extended.custom_dependencies { read_dependencies(&mut bits)? == 0 } else { template.is_independent };
        if extended.custom_chains {
            bits.skip(8 * usize::from(holds.chains_len))?;
        }
        let has_structure = extended.structure.is_some();
        let active_targets = extended.active_targets.or_else(|| has_structure.then(|| holds.all_targets()));
        if has_structure {
            *structure = extended.structure;
        }
        let layers = template.layers;
        Ok(Descriptor { start_of_frame, end_of_frame, frame_number, layers, is_independent, indications, has_structure, active_targets })
    }
}

/// The fields behind the first three bytes, up to the frame's own definition.
#[derive(Default)]
struct Extended {
    custom_indications: bool,
    custom_dependencies: bool,
    custom_chains: bool,
    structure: Option<Structure>,
    active_targets: Option<u32>,
}

impl Extended {
    fn read(bits: &mut BitReader<'_>, before: Option<&Structure>) -> Result<Extended, Malformed> {
        let (has_structure, has_active_targets) = (bits.flag()?, bits.flag()?);
        let (custom_indications, custom_dependencies, custom_chains) = (bits.flag()?, bits.flag()?, bits.flag()?);
        let structure = if has_structure { Some(Structure::read(bits)?) } else { None };
        let active_targets = match structure.as_ref().or(before) {
            _ if !has_active_targets => None,
            Some(structure) => Some(bits.read(structure.targets_len.into())?),
            None => return Err(Malformed::UnknownTemplate),
        };
        Ok(Extended { custom_indications, custom_dependencies, custom_chains, structure, active_targets })
    }
}

impl Structure {
    /// `template_dependency_structure()`.
    fn read(bits: &mut BitReader<'_>) -> Result<Structure, Malformed> {
        let mut structure = Structure {
            id_offset: bits.read(6)? as u8,
            templates_len: 0,
            targets_len: bits.read(5)? as u8 + 1,
            chains_len: 0,
            spatial_max: 0,
            templates: [Template::default(); TEMPLATES_MAX],
            targets: [LayerIds::default(); DECODE_TARGETS_MAX],
            resolutions: None,
        };
        structure.read_layers(bits)?;
        let targets_len = structure.targets_len;
        let templates = &mut structure.templates[..usize::from(structure.templates_len)];
        for template in &mut *templates {
            template.indications = read_indications(bits, targets_len)?;
        }
        for template in &mut *templates {
            template.is_independent = read_template_dependencies(bits)? == 0;
        }
        structure.chains_len = skip_chains(bits, targets_len, structure.templates_len)?;
        structure.find_target_layers();
        if bits.flag()? {
            structure.read_resolutions(bits)?;
        }
        Ok(structure)
    }

    /// `template_layers()`: each template says where the next one is.
    fn read_layers(&mut self, bits: &mut BitReader<'_>) -> Result<(), Malformed> {
        const NEXT_TEMPORAL: u32 = 1;
        const NEXT_SPATIAL: u32 = 2;
        const LAST: u32 = 3;
        let mut layers = LayerIds::default();
        loop {
            self.templates.get_mut(usize::from(self.templates_len)).ok_or(Malformed::TooMany)?.layers = layers;
            self.templates_len += 1;
            self.spatial_max = layers.spatial;
            match bits.read(2)? {
                NEXT_TEMPORAL => layers.temporal += 1,
                NEXT_SPATIAL => layers = LayerIds { spatial: layers.spatial + 1, temporal: 0 },
                LAST => return Ok(()),
                _ => {}
            }
            if usize::from(layers.spatial) >= SPATIAL_LAYERS_MAX || usize::from(layers.temporal) >= TEMPORAL_LAYERS_MAX {
                return Err(Malformed::TooMany);
            }
        }
    }

    /// `decode_target_layers()`.
    fn find_target_layers(&mut self) {
        for (index, target) in self.targets[..usize::from(self.targets_len)].iter_mut().enumerate() {
            for template in &self.templates[..usize::from(self.templates_len)] {
                if template.indications.of(index) != Indication::NotPresent {
                    target.spatial = target.spatial.max(template.layers.spatial);
                    target.temporal = target.temporal.max(template.layers.temporal);
                }
            }
        }
    }

    /// `render_resolutions()`.
    fn read_resolutions(&mut self, bits: &mut BitReader<'_>) -> Result<(), Malformed> {
        let mut resolutions = [(0, 0); SPATIAL_LAYERS_MAX];
        for resolution in &mut resolutions[..=usize::from(self.spatial_max)] {
            // Less one on the wire; 65,536 pixels are nobody's.
            *resolution = ((bits.read(16)? as u16).saturating_add(1), (bits.read(16)? as u16).saturating_add(1));
        }
        self.resolutions = Some(resolutions);
        Ok(())
    }
}

fn read_indications(bits: &mut BitReader<'_>, targets_len: u8) -> Result<Indications, Malformed> {
    let mut indications = Indications::default();
    for target in 0..usize::from(targets_len) {
        indications.set(target, bits.read(2)?);
    }
    Ok(indications)
}

/// `template_fdiffs()` of one template; returns how many there are.
fn read_template_dependencies(bits: &mut BitReader<'_>) -> Result<usize, Malformed> {
    let mut len = 0;
    while bits.flag()? {
        bits.skip(4)?;
        len += 1;
        if len > DEPENDENCIES_MAX {
            return Err(Malformed::TooMany);
        }
    }
    Ok(len)
}

/// `frame_fdiffs()`; returns how many there are.
fn read_dependencies(bits: &mut BitReader<'_>) -> Result<usize, Malformed> {
    let mut len = 0;
    loop {
        match bits.read(2)? {
            0 => return Ok(len),
            size => bits.skip(4 * size as usize)?,
        }
        len += 1;
        if len > DEPENDENCIES_MAX {
            return Err(Malformed::TooMany);
        }
    }
}

/// `template_chains()`; returns how many there are.
fn skip_chains(bits: &mut BitReader<'_>, targets_len: u8, templates_len: u8) -> Result<u8, Malformed> {
    let chains_len = bits.read_non_symmetric(u32::from(targets_len) + 1)?;
    if chains_len > 0 {
        for _ in 0..targets_len {
            bits.read_non_symmetric(chains_len)?;
        }
        bits.skip(4 * usize::from(templates_len) * chains_len as usize)?;
    }
    Ok(chains_len as u8)
}

/// Reads bits from the left, and never beyond the end.
struct BitReader<'a> {
    bytes: &'a [u8],
    /// In bits.
    at: usize,
}

impl<'a> BitReader<'a> {
    fn new(bytes: &'a [u8]) -> BitReader<'a> {
        BitReader { bytes, at: 0 }
    }

    #[inline]
    fn flag(&mut self) -> Result<bool, Malformed> {
        Ok(self.read(1)? == 1)
    }

    /// `f(len)` with at most 32 bits.
    #[inline]
    fn read(&mut self, len: usize) -> Result<u32, Malformed> {
        let from = self.at;
        self.skip(len)?;
        // At most five bytes have a part in it.
        let window = self.bytes[from / 8..self.at.div_ceil(8)].iter().fold(0u64, |window, byte| window << 8 | u64::from(*byte));
        let unused = self.at.next_multiple_of(8) - self.at;
        Ok((window >> unused & ((1 << len) - 1)) as u32)
    }

    #[inline]
    fn skip(&mut self, len: usize) -> Result<(), Malformed> {
        let end = self.at + len;
        if end > 8 * self.bytes.len() {
            return Err(Malformed::Short);
        }
        self.at = end;
        Ok(())
    }

    /// `ns(values)`: a number below `values`, which is above 0, in as few bits as go.
    fn read_non_symmetric(&mut self, values: u32) -> Result<u32, Malformed> {
        let width = u32::BITS - values.leading_zeros();
        let short = (1 << width) - values;
        let value = self.read(width as usize - 1)?;
        if value < short {
            return Ok(value);
        }
        Ok((value << 1) + self.read(1)? - short)
    }
}
