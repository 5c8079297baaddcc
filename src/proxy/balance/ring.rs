//! Consistent hashing: the same key goes to the same endpoint, on every worker and every node.
//!
//! Multi-probe consistent hashing (Appleton and O'Reilly, "Multi-probe consistent hashing", 2015): a key is
//! hashed several times and the endpoint whose point follows most closely on one of the hashes has it. Endpoints
//! need few points to have even shares, so thousands of them are compiled in milliseconds; and as on Karger's
//! ring a key changes hands only if its new endpoint was added or its old one is gone or may not be used:
//! adding one to n - 1 moves 1/n of the keys. Maglev's table would be looked up once and moves about twice as many.
//! Invariant: nothing here depends on anything but ids and weights.

/// Points of the heaviest endpoint, which has from half of them to all.
const POINTS: u64 = 64;
/// Hashes of a key.
const PROBES: u64 = 5;
/// 2^64 divided by the golden ratio: multiples of it are far apart.
pub(super) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The endpoints' points in order.
#[derive(Debug)]
pub(in crate::proxy) struct Ring {
    points: Vec<(u64, u32)>,
    /// By the leading bits of a hash: the first point that is not before all hashes with these bits.
    starts: Vec<u32>,
    shift: u32,
}

// === impl Ring ===

impl Ring {
    /// Each endpoint's id and weight.
    pub(in crate::proxy) fn new(endpoints: impl Iterator<Item = (u64, u32)> + Clone) -> Self {
        let heaviest = endpoints.clone().map(|(_, weight)| weight).max().unwrap_or(1);
        // A power of two: a new weight seldom changes how many points the others have.
        let unit = u64::from(heaviest).next_power_of_two();
        let mut points = Vec::new();
        for (place, (id, weight)) in endpoints.enumerate() {
            let count = (POINTS * u64::from(weight) / unit).max(1);
            points.extend((1..=count).map(|point| (mix(id ^ mix(point)), place as u32)));
        }
        points.sort_unstable();
        let bits = points.len().max(2).next_power_of_two().trailing_zeros();
        let shift = 64 - bits;
        let mut starts = Vec::with_capacity(1 << bits);
        let mut at = 0;
        for bucket in 0..1_u64 << bits {
            while points.get(at).is_some_and(|(point, _)| point >> shift < bucket) {
                at += 1;
            }
            starts.push(at as u32);
        }
        Self { points, starts, shift }
    }

    /// The place of the key's endpoint. While it is not `usable` or not `admit`ted, the next closest has its
    /// keys, so that they spread over all others.
    pub(in crate::proxy) fn find(
        &self,
        key: u64,
        usable: impl Fn(usize) -> bool,
        mut admit: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        let mut refused: Vec<usize> = Vec::new();
        loop {
            let passed = |place: usize| !usable(place) || refused.contains(&place);
            let probes = (0..PROBES).filter_map(|probe| self.after(mix(key ^ mix(probe << 32)), passed));
            let place = probes.min()?.1 as usize;
            if admit(place) {
                return Some(place);
            }
            refused.push(place);
        }
    }

    /// The first point after `hash` that is not `passed` over: how far, and whose.
    fn after(&self, hash: u64, passed: impl Fn(usize) -> bool) -> Option<(u64, u32)> {
        let start = self.starts[(hash >> self.shift) as usize] as usize;
        let start = start + self.points[start..].iter().take_while(|(point, _)| *point < hash).count();
        let mut around = self.points[start..].iter().chain(&self.points[..start]);
        let (point, place) = around.find(|(_, place)| !passed(*place as usize))?;
        Some((point.wrapping_sub(hash), *place))
    }
}

/// FNV-1a, its bits mixed: the same on every machine and in every build.
pub(in crate::proxy) fn hash_of(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

/// The end of splitmix64: every bit depends on every bit.
pub(super) fn mix(bits: u64) -> u64 {
    let bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: usize = 100_000;

    fn id(endpoint: usize) -> u64 {
        hash_of(format!("10.0.0.{endpoint}:8080").as_bytes())
    }

    fn ring(weights: &[u32]) -> Ring {
        let endpoints: Vec<_> =
            weights.iter().enumerate().map(|(place, weight)| (id(place), *weight)).collect();
        Ring::new(endpoints.into_iter())
    }

    fn owners(ring: &Ring, usable: impl Fn(usize) -> bool) -> Vec<usize> {
        let key = |key: usize| hash_of(&key.to_le_bytes());
        (0..KEYS).map(|number| ring.find(key(number), &usable, |_| true).unwrap()).collect()
    }

    fn shares(owners: &[usize], endpoints: usize) -> Vec<f64> {
        let share = |endpoint| owners.iter().filter(|owner| **owner == endpoint).count() as f64 / KEYS as f64;
        (0..endpoints).map(share).collect()
    }

    #[test]
    fn a_new_endpoint_takes_its_share_and_moves_no_other_key() {
        for n in [2, 5, 10, 50] {
            let before = owners(&ring(&vec![1; n - 1]), |_| true);
            let after = owners(&ring(&vec![1; n]), |_| true);
            let moved: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
            assert!(moved.iter().all(|(_, after)| **after == n - 1), "a key moved between old endpoints");
            let moved = moved.len() as f64 / KEYS as f64 * n as f64;
            assert!((0.85..1.15).contains(&moved), "{moved} of 1/{n} moved");
        }
    }

    #[test]
    fn shares_are_even_and_follow_the_weights() {
        for share in shares(&owners(&ring(&[1; 20]), |_| true), 20) {
            assert!((0.042..0.058).contains(&share), "{share}");
        }
        let shares = shares(&owners(&ring(&[5, 1, 1, 3]), |_| true), 4);
        for (share, expected) in shares.iter().zip([0.5, 0.1, 0.1, 0.3]) {
            assert!((share / expected - 1.0).abs() < 0.15, "{shares:?}");
        }
    }

    #[test]
    fn an_unusable_endpoint_s_keys_spread_over_the_others_and_come_back() {
        let ring = ring(&[1; 5]);
        let all = owners(&ring, |_| true);
        let without = owners(&ring, |place| place != 2);
        for (before, after) in all.iter().zip(&without) {
            assert!(before == after || *before == 2);
        }
        for (endpoint, share) in shares(&without, 5).iter().enumerate() {
            assert!(endpoint == 2 && *share == 0.0 || (0.21..0.29).contains(share), "{share}");
        }
        assert_eq!(ring.find(1, |_| false, |_| true), None);
        assert_eq!(ring.find(1, |_| true, |_| false), None);
    }

    #[test]
    fn the_hash_never_changes() {
        // Nodes of different builds serve together.
        assert_eq!(hash_of(b"10.0.0.1:8080"), 16_626_783_001_958_982_370);
        let owners: Vec<_> =
            (0..8).map(|key| ring(&[1; 4]).find(mix(key), |_| true, |_| true).unwrap()).collect();
        assert_eq!(owners, [1, 0, 0, 1, 1, 3, 1, 0]);
        assert_eq!(Ring::new(std::iter::empty()).find(1, |_| true, |_| true), None);
    }
}
