//! Which digests a set certainly does not hold: a Bloom filter (B. H. Bloom, *Space/time trade-offs in hash coding with
//! allowable errors*, CACM 13(7), 1970).
//!
//! It never says of what was added that it is absent, and of the rest hardly ever (0.6%) that it may be there. It never looks at a
//! table.

/// For each digest. With four of them a look, that is one wrong answer in 150.
const BITS: usize = 12;
const LOOKS: u64 = 4;
/// 16 MB: of more than eleven million digests it is wrong more often.
const MOST_BITS: usize = 1 << 27;

pub struct Absent {
    words: Vec<u64>,
}

impl Absent {
    /// For about so many digests.
    pub fn of(digests: usize) -> Absent {
        let bits = digests.saturating_mul(BITS).clamp(64, MOST_BITS);
        Absent {
            words: vec![0; bits.div_ceil(64)],
        }
    }

    pub fn add(&mut self, digest: &[u8; 16]) {
        for (word, bit) in self.places(digest) {
            if let Some(word) = self.words.get_mut(word) {
                *word |= bit;
            }
        }
    }

    /// Whether it was certainly not added.
    pub fn is_absent(&self, digest: &[u8; 16]) -> bool {
        let mut places = self.places(digest).into_iter();
        places.any(|(word, bit)| self.words.get(word).is_none_or(|word| word & bit == 0))
    }

    /// A digest's bytes are as good as hashes of it: two numbers, from which the others follow (A. Kirsch, M. Mitzenmacher, *Less
    /// hashing, same performance*, ESA 2006).
    fn places(&self, digest: &[u8; 16]) -> [(usize, u64); LOOKS as usize] {
        let number = u128::from_be_bytes(*digest);
        let (one, other) = ((number >> 64) as u64, number as u64);
        let bits = self.words.len() as u128 * 64;
        std::array::from_fn(|look| {
            let hash = one.wrapping_add(other.wrapping_mul(look as u64));
            let place = (u128::from(hash) * bits) >> 64;
            ((place / 64) as usize, 1 << (place % 64))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests(seed: u64, count: usize) -> Vec<[u8; 16]> {
        let mut rng = fastrand::Rng::with_seed(seed);
        (0..count).map(|_| rng.u128(..).to_be_bytes()).collect()
    }

    #[test]
    fn nothing_that_was_added_is_absent_and_few_others_are_not() {
        for count in [0, 1, 5, 1_000, 50_000] {
            let added = digests(1, count);
            let mut absent = Absent::of(count);
            added.iter().for_each(|digest| absent.add(digest));
            assert!(!added.iter().any(|digest| absent.is_absent(digest)));
            let others = digests(2, 20_000);
            let wrong = others.iter().filter(|other| !absent.is_absent(other));
            let wrong = wrong.count();
            assert!(wrong < 300, "{wrong} of 20,000, at {count}");
        }
    }

    #[test]
    fn more_than_were_expected_are_still_known() {
        let added = digests(3, 10_000);
        let mut absent = Absent::of(10);
        added.iter().for_each(|digest| absent.add(digest));
        assert!(!added.iter().any(|digest| absent.is_absent(digest)));
    }
}
