//! A short text in shared memory that one process writes and others read.
//!
//! It never blocks: a reader that meets a writer looks again, and gives up rather than wait.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::SeqCst};

/// How often a reader looks.
const LOOKS: usize = 100;

#[repr(C)]
pub struct Text<const N: usize> {
    /// Odd while it is being written.
    version: AtomicU32,
    length: AtomicU32,
    bytes: [AtomicU8; N],
}

impl<const N: usize> Text<N> {
    /// What does not fit is cut off at a character.
    pub fn set(&self, text: &str) {
        let text = &text[..text.floor_char_boundary(N)];
        if self.get() == text {
            return;
        }
        self.version.fetch_or(1, SeqCst);
        for (to, from) in self.bytes.iter().zip(text.bytes()) {
            to.store(from, SeqCst);
        }
        self.length.store(text.len() as u32, SeqCst);
        self.version.fetch_add(1, SeqCst);
    }

    pub fn get(&self) -> String {
        for _ in 0..LOOKS {
            let version = self.version.load(SeqCst);
            let length = (self.length.load(SeqCst) as usize).min(N);
            let bytes = self.bytes[..length].iter();
            let bytes: Vec<u8> = bytes.map(|byte| byte.load(SeqCst)).collect();
            if version & 1 == 0 && self.version.load(SeqCst) == version {
                return String::from_utf8_lossy(&bytes).into_owned();
            }
            std::hint::spin_loop();
        }
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_was_set_last_and_never_half_of_it() {
        let text = Text::<8> {
            version: AtomicU32::new(0),
            length: AtomicU32::new(0),
            bytes: [const { AtomicU8::new(0) }; 8],
        };
        assert_eq!(text.get(), "");
        text.set("ärger ßx");
        assert_eq!(text.get(), "ärger ", "cut at a character");
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for round in 0..10_000 {
                    text.set(["aaaaaaaa", "bbbb"][round % 2]);
                }
            });
            while !writer.is_finished() {
                let got = text.get();
                assert!(
                    ["", "ärger ", "aaaaaaaa", "bbbb"].contains(&got.as_str()),
                    "{got}"
                );
            }
        });
    }
}
