//! Which texts go into one request.
//!
//! Always the oldest: a batch is a run of texts from the front of a queue, and what does not fit
//! ends it. It never leaves a text out for being too large; that one goes alone, and the provider
//! judges it.

/// Of all texts of a request together. A thread holds them and the body that is made of them, and
/// gateways refuse much larger bodies.
const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;

/// What one request may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Inputs; counts as 1 where it is 0.
    pub inputs: usize,
    /// Estimated tokens of all inputs together.
    pub tokens: Option<u64>,
    /// Bytes of all inputs together.
    pub bytes: usize,
}

impl Room {
    /// Room for so many inputs and estimated tokens, and for 4 MiB.
    pub fn new(inputs: usize, tokens: Option<u64>) -> Room {
        Room {
            inputs,
            tokens,
            bytes: MAX_BATCH_BYTES,
        }
    }

    /// The same with not more than `most` tokens, where there is such a limit.
    pub fn with_tokens(self, most: Option<u64>) -> Room {
        let tokens = self.tokens.into_iter().chain(most).min();
        Room { tokens, ..self }
    }
}

/// A batch that is being filled.
#[derive(Clone, Debug)]
pub struct Filling {
    room: Room,
    inputs: usize,
    tokens: u64,
    bytes: usize,
}

impl Filling {
    /// An empty batch.
    pub fn new(room: Room) -> Filling {
        Filling {
            room,
            inputs: 0,
            tokens: 0,
            bytes: 0,
        }
    }

    /// Adds an input of `tokens` estimated tokens (0 where they do not matter) and `bytes` bytes;
    /// `false` where it does not fit and the batch is to be sent without it. The first one fits.
    pub fn add(&mut self, tokens: u64, bytes: usize) -> bool {
        let inputs = self.inputs + 1;
        let tokens = self.tokens.saturating_add(tokens);
        let bytes = self.bytes.saturating_add(bytes);
        let fits = inputs <= self.room.inputs
            && self.room.tokens.is_none_or(|most| tokens <= most)
            && bytes <= self.room.bytes;
        if fits || self.inputs == 0 {
            (self.inputs, self.tokens, self.bytes) = (inputs, tokens, bytes);
            return true;
        }
        false
    }

    /// Inputs so far.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Estimated tokens so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }
}

/// How many of `sizes` (tokens and bytes of each text, oldest first) make the next batch: 0 only
/// where there are none.
pub fn take(room: Room, sizes: impl IntoIterator<Item = (u64, usize)>) -> usize {
    let mut filling = Filling::new(room);
    let sizes = sizes.into_iter();
    sizes
        .take_while(|(tokens, bytes)| filling.add(*tokens, *bytes))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room {
        inputs: 4,
        tokens: Some(100),
        bytes: 1_000,
    };

    #[test]
    fn a_batch_ends_at_the_first_limit_that_is_reached() {
        assert_eq!(take(ROOM, [(1, 1); 9]), 4, "inputs");
        assert_eq!(take(ROOM, [(40, 1); 9]), 2, "tokens");
        assert_eq!(take(ROOM, [(50, 1); 9]), 2, "tokens to the last one");
        assert_eq!(take(ROOM, [(1, 334); 9]), 2, "bytes");
        assert_eq!(take(ROOM, [(1, 1); 2]), 2);
        assert_eq!(take(ROOM, []), 0);
    }

    #[test]
    fn a_text_that_is_too_large_goes_alone_and_in_its_turn() {
        assert_eq!(take(ROOM, [(101, 1), (1, 1)]), 1);
        assert_eq!(take(ROOM, [(1, 5_000), (1, 1)]), 1);
        assert_eq!(take(ROOM, [(1, 1), (101, 1), (1, 1)]), 1);
        assert_eq!(take(ROOM, [(u64::MAX, usize::MAX), (1, 1)]), 1);
    }

    #[test]
    fn no_room_at_all_still_sends_one_at_a_time() {
        let none = Room {
            inputs: 0,
            tokens: Some(0),
            bytes: 0,
        };
        assert_eq!(take(none, [(1, 1); 3]), 1);
    }

    #[test]
    fn tokens_count_only_where_they_are_limited() {
        let room = Room::new(3, None);
        assert_eq!(take(room, [(u64::MAX, 1); 9]), 3);
        assert_eq!(take(room, [(0, MAX_BATCH_BYTES / 2); 9]), 2);
    }

    #[test]
    fn the_lower_limit_of_two_counts() {
        let tokens = |room: Option<u64>, most| Room::new(1, room).with_tokens(most).tokens;
        assert_eq!(tokens(None, None), None);
        assert_eq!(tokens(Some(5), None), Some(5));
        assert_eq!(tokens(None, Some(3)), Some(3));
        assert_eq!(tokens(Some(5), Some(3)), Some(3));
    }

    /// The law: cut by `take` again and again, any queue is used up in order, every batch fits or
    /// has one text, and no batch could have taken the next text, too.
    #[test]
    fn any_queue_is_cut_into_batches_that_are_full_and_fit() {
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        for _ in 0..200 {
            let count = random(40) as usize;
            let queue: Vec<(u64, usize)> = (0..count)
                .map(|_| (random(150), random(700) as usize))
                .collect();
            let mut rest = queue.as_slice();
            while !rest.is_empty() {
                let size = take(ROOM, rest.iter().copied());
                let fits = |batch: &[(u64, usize)]| {
                    batch.len() <= ROOM.inputs
                        && batch.iter().map(|(tokens, _)| tokens).sum::<u64>() <= 100
                        && batch.iter().map(|(_, bytes)| bytes).sum::<usize>() <= ROOM.bytes
                };
                assert!(size == 1 || fits(&rest[..size]));
                assert!(size == rest.len() || !fits(&rest[..=size]));
                rest = &rest[size..];
            }
        }
    }
}
