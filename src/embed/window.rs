//! How many requests a server gets at a time: as many as it is allowed, fewer while it is overloaded.
//!
//! It is a value computed from what is reported; it never sends, waits or reads a clock.
//!
//! Source: additive increase, multiplicative decrease (Chiu and Jain 1989), as TCP has it; the latency part as in
//! TCP Vegas (Brakmo and Peterson 1995): no more requests while they only wait for each other.

use std::time::Duration;

/// What an overload leaves of the window.
const DECREASE: f64 = 0.5;
/// An answer that takes this many times the usual one says that requests queue at the server.
const SLOW: u32 = 3;
/// The share of the newest answer in what is usual.
const SHARE: f64 = 0.02;

#[derive(Clone, Debug)]
pub struct Window {
    size: f64,
    most: f64,
    /// Seconds that an answer usually takes.
    usual: Option<f64>,
}

impl Window {
    /// All that is allowed, until the server says otherwise.
    pub fn new(most: usize) -> Window {
        let most = most.max(1) as f64;
        Window {
            size: most,
            most,
            usual: None,
        }
    }

    /// Requests that may be in flight together.
    pub fn size(&self) -> usize {
        self.size as usize
    }

    /// An answer: one request more for each full window of them, unless it was slow.
    pub fn success(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        let usual = *self.usual.get_or_insert(took);
        self.usual = Some(usual + SHARE * (took.min(usual * f64::from(SLOW)) - usual));
        if took <= usual * f64::from(SLOW) {
            self.size = (self.size + 1.0 / self.size).min(self.most);
        }
    }

    /// A 429, a timeout, or another failure of the provider. Those of requests that were in flight together count
    /// once: the caller reports the first.
    pub fn overload(&mut self) {
        self.size = (self.size * DECREASE).max(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Duration = Duration::from_millis(20);

    #[test]
    fn an_overload_halves_the_window_and_answers_open_it_again_one_by_one() {
        let mut window = Window::new(16);
        assert_eq!(window.size(), 16);
        window.overload();
        assert_eq!(window.size(), 8);
        for _ in 0..9 {
            window.success(USUAL);
        }
        assert_eq!(window.size(), 9);
        for _ in 0..500 {
            window.success(USUAL);
        }
        assert_eq!(window.size(), 16, "never more than is allowed");
    }

    #[test]
    fn the_window_never_closes() {
        let mut window = Window::new(4);
        for _ in 0..10 {
            window.overload();
        }
        assert_eq!(window.size(), 1);
        assert_eq!(Window::new(0).size(), 1);
    }

    #[test]
    fn slow_answers_do_not_open_it() {
        let mut window = Window::new(8);
        window.success(USUAL);
        window.overload();
        for _ in 0..20 {
            window.success(USUAL * 10);
        }
        assert!(window.size() < 6, "{window:?}");
        // Until they are what is usual.
        for _ in 0..200 {
            window.success(USUAL * 10);
        }
        assert_eq!(window.size(), 8);
    }
}
