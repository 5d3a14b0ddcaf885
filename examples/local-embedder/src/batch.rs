//! One thread that turns waiting requests into forward passes: each round takes a fair share of
//! every request that waits, and cuts it into a pass for each thread. It never waits for more to
//! come: what arrives during a round makes up the next one.

use std::collections::VecDeque;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use rayon::prelude::*;

use crate::bert::Bert;

/// The most texts of one forward pass: more gain nothing, and keep other requests waiting.
const MAX_TEXTS: usize = 32;

/// The most tokens of one forward pass: what it computes stays within a core's cache.
const MAX_TOKENS: usize = 1024;

type Reply = Result<Vec<Vec<f32>>, String>;

/// The way to the thread that embeds.
pub struct Batcher {
    jobs: Sender<Job>,
}

/// One request: its texts as tokens, and where its embeddings go.
struct Job {
    texts: Vec<Vec<u32>>,
    /// The embeddings of the first texts.
    done: Vec<Vec<f32>>,
    reply: Sender<Reply>,
}

impl Batcher {
    /// Starts the thread, and `threads` more for the forward passes.
    pub fn start(bert: Bert, threads: usize) -> Result<Self, String> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|e| format!("cannot start {threads} threads: {e}"))?;
        Ok(Self::with(threads * MAX_TEXTS, move |texts| {
            pool.install(|| embed(&bert, texts, threads))
        }))
    }

    fn with(round_size: usize, embed: impl Fn(&[&[u32]]) -> Reply + Send + 'static) -> Self {
        let (jobs, arriving) = mpsc::channel();
        thread::spawn(move || run(&arriving, round_size, embed));
        Self { jobs }
    }

    /// Waits for the embeddings of `texts`, in their order.
    pub fn embed(&self, texts: Vec<Vec<u32>>) -> Reply {
        let (reply, answer) = mpsc::channel();
        let job = Job {
            done: Vec::with_capacity(texts.len()),
            texts,
            reply,
        };
        let gone = || "the embedding thread has ended".to_owned();
        self.jobs.send(job).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

/// Runs rounds until no [`Batcher`] is left.
fn run(arriving: &Receiver<Job>, round_size: usize, embed: impl Fn(&[&[u32]]) -> Reply) {
    let mut waiting = VecDeque::new();
    loop {
        if waiting.is_empty() {
            match arriving.recv() {
                Ok(job) => waiting.push_back(job),
                Err(_) => return,
            }
        }
        waiting.extend(arriving.try_iter());
        run_round(&mut waiting, round_size, &embed);
    }
}

/// Embeds up to `round_size` texts of the waiting jobs, and answers the jobs that this ends.
fn run_round(waiting: &mut VecDeque<Job>, round_size: usize, embed: impl Fn(&[&[u32]]) -> Reply) {
    let shares = share(waiting.iter().map(Job::left), round_size);
    let texts: Vec<&[u32]> = waiting
        .iter()
        .zip(&shares)
        .flat_map(|(job, share)| job.texts[job.done.len()..].iter().take(*share))
        .map(Vec::as_slice)
        .collect();
    match embed(&texts) {
        Ok(embeddings) => {
            let mut embeddings = embeddings.into_iter();
            for (job, share) in waiting.iter_mut().zip(&shares) {
                job.done.extend(embeddings.by_ref().take(*share));
            }
            // First come, first served where a round is too small for all.
            for _ in 0..waiting.len() {
                match waiting.pop_front() {
                    Some(job) if job.left() == 0 => job.answer(),
                    Some(job) => waiting.push_back(job),
                    None => {}
                }
            }
        }
        Err(message) => {
            for job in waiting.drain(..) {
                // The client may have gone.
                let _ = job.reply.send(Err(message.clone()));
            }
        }
    }
}

impl Job {
    fn left(&self) -> usize {
        self.texts.len() - self.done.len()
    }

    fn answer(self) {
        // The client may have gone.
        let _ = self.reply.send(Ok(self.done));
    }
}

/// How many of `available` places each job gets that has `left` texts: the same for all, and what
/// short jobs leave over goes to the first ones.
fn share(left: impl Iterator<Item = usize>, available: usize) -> Vec<usize> {
    let left: Vec<usize> = left.collect();
    let even = (available / left.len().max(1)).max(1);
    let mut available = available;
    let mut shares = vec![0; left.len()];
    for limit in [even, usize::MAX] {
        for (share, left) in shares.iter_mut().zip(&left) {
            let more = (left - *share).min(limit).min(available);
            *share += more;
            available -= more;
        }
    }
    shares
}

fn embed(bert: &Bert, texts: &[&[u32]], threads: usize) -> Reply {
    let passes: Result<Vec<_>, _> = cut(texts, threads)
        .into_par_iter()
        .map(|texts| bert.embed(texts))
        .collect();
    Ok(passes.map_err(|e| e.to_string())?.concat())
}

/// Cuts `texts` into passes of about the same number of tokens, one for each thread or more.
fn cut<'a, 'b>(texts: &'a [&'b [u32]], threads: usize) -> Vec<&'a [&'b [u32]]> {
    let tokens: usize = texts.iter().map(|text| text.len()).sum();
    let enough = tokens.div_ceil(threads).min(MAX_TOKENS);
    let mut passes = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (index, text) in texts.iter().enumerate() {
        tokens += text.len();
        if tokens >= enough || index + 1 - start == MAX_TEXTS {
            passes.push(&texts[start..=index]);
            (start, tokens) = (index + 1, 0);
        }
    }
    if start < texts.len() {
        passes.push(&texts[start..]);
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "Embeds" a text as its first token.
    fn first_tokens(texts: &[&[u32]]) -> Reply {
        Ok(texts.iter().map(|text| vec![text[0] as f32]).collect())
    }

    #[test]
    fn every_request_gets_its_own_embeddings_in_order() {
        let batcher = Batcher::with(8, first_tokens);
        thread::scope(|scope| {
            for client in 0..10 {
                let batcher = &batcher;
                scope.spawn(move || {
                    let ids = client * 100..client * 100 + 50;
                    let texts = ids.clone().map(|id| vec![id]).collect();
                    let expected: Vec<_> = ids.map(|id| vec![id as f32]).collect();
                    assert_eq!(batcher.embed(texts), Ok(expected));
                });
            }
        });
    }

    #[test]
    fn a_failed_pass_reaches_the_client_and_the_next_request_is_served() {
        let batcher = Batcher::with(8, |texts| match texts[0][0] {
            0 => Err("broken".to_owned()),
            _ => first_tokens(texts),
        });
        assert_eq!(batcher.embed(vec![vec![0]]), Err("broken".to_owned()));
        assert_eq!(batcher.embed(vec![vec![1]]), Ok(vec![vec![1.0]]));
    }

    #[test]
    fn a_short_request_does_not_wait_for_a_long_one() {
        assert_eq!(share([2000, 1].into_iter(), 64), [63, 1]);
        assert_eq!(share([2000, 2000].into_iter(), 64), [32, 32]);
        assert_eq!(share([1, 1, 1].into_iter(), 2), [1, 1, 0]);
        assert_eq!(share([3, 5].into_iter(), 64), [3, 5]);
    }

    #[test]
    fn texts_are_cut_into_a_pass_for_each_thread() {
        let (text, long) = (&[7; 10][..], &[7; 256][..]);
        let lengths = |texts: &[&[u32]], threads| {
            let passes = cut(texts, threads);
            passes.iter().map(|pass| pass.len()).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&[text; 1], 2), [1]);
        assert_eq!(lengths(&[text; 20], 2), [10, 10]);
        assert_eq!(lengths(&[text; 70], 1), [32, 32, 6]);
        assert_eq!(lengths(&[long; 10], 2), [4, 4, 2]);
        assert_eq!(lengths(&[long, text, text], 2), [1, 2]);
    }
}
