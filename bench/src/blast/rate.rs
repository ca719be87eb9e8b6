//! How much: packets or bits a second.

use std::str::FromStr;

/// A rate as it is written on a command line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rate {
    /// Packets per second.
    Packets(f64),
    /// Bits of RTP packets per second.
    Bits(f64),
}

impl Rate {
    /// Packets per second of `packet_len` bytes each.
    pub(crate) fn packets_per_second(self, packet_len: usize) -> f64 {
        match self {
            Rate::Packets(packets) => packets,
            Rate::Bits(bits) => bits / 8.0 / packet_len as f64,
        }
    }
}

impl FromStr for Rate {
    type Err = String;

    /// `200k`, `200kpps`, `1.5Mbps`, `10Gbit`.
    fn from_str(text: &str) -> Result<Rate, String> {
        let refused = || "give packets per second, such as 200k or 1.5Mpps, or bits, such as 500Mbps or 10Gbit".to_owned();
        let lower = text.to_ascii_lowercase();
        let bits = lower.strip_suffix("bps").or_else(|| lower.strip_suffix("bit/s")).or_else(|| lower.strip_suffix("bit"));
        let number = bits.or_else(|| lower.strip_suffix("pps")).unwrap_or(&lower);
        let (number, factor) = match number.as_bytes().last() {
            Some(b'k') => (&number[..number.len() - 1], 1e3),
            Some(b'm') => (&number[..number.len() - 1], 1e6),
            Some(b'g') => (&number[..number.len() - 1], 1e9),
            _ => (number, 1.0),
        };
        let value = number.parse::<f64>().map_err(|_| refused())? * factor;
        // A packet a century is no rate, and 10^12 is beyond every card.
        if !(1e-3..=1e12).contains(&value) {
            return Err(refused());
        }
        Ok(if bits.is_some() { Rate::Bits(value) } else { Rate::Packets(value) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_and_bits_are_told_apart() {
        let parse = |text: &str| text.parse::<Rate>();
        assert_eq!(parse("200k"), Ok(Rate::Packets(200e3)));
        assert_eq!(parse("1.5Mpps"), Ok(Rate::Packets(1.5e6)));
        assert_eq!(parse("64000"), Ok(Rate::Packets(64e3)));
        assert_eq!(parse("500Mbps"), Ok(Rate::Bits(500e6)));
        assert_eq!(parse("10Gbit"), Ok(Rate::Bits(10e9)));
        assert_eq!(parse("8.8Mbit/s").map(|rate| rate.packets_per_second(1_100)), Ok(1_000.0));
        for text in ["", "k", "-1", "0", "NaN", "inf", "1e40", "5 apples", "bps"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
