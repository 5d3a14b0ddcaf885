//! What there is to do for hooks beside telling them: items that have gone, and hooks for which too much is kept.
//!
//! It never sends anything.

use std::time::{Duration, Instant};

use pgrx::prelude::*;

use crate::catalog::recommender;
use crate::dispatch::read::Block;
use crate::error::Result;
use crate::hooks::{bound, outbox, watched};
use crate::settings;
use crate::worker::leader::{Leader, report};
use crate::worker::process::{Failed, guard_user_code, release_user_code, transaction};

/// How often it is looked how much is kept.
const LOOK: Duration = Duration::from_secs(10);

impl Leader {
    /// Items that may be listed no more: written before the checkpoint may pass.
    pub(in crate::worker) fn tell_of_gone_items(
        &mut self,
        blocks: &[Block],
    ) -> std::result::Result<(), Failed> {
        let of_blocks = |(source, _): &&(i32, i32)| {
            let mut blocks = blocks.iter();
            blocks.any(|block| block.source_id == *source)
        };
        let watched: Vec<(i32, i32)> = self
            .hooks
            .watched
            .iter()
            .filter(of_blocks)
            .copied()
            .collect();
        for (source, recommender) in watched {
            let blocks = blocks.iter().filter(|block| block.source_id == source);
            let (mut gone, mut changed) = (false, Vec::new());
            for block in blocks {
                gone |= matches!(block.op, 'D' | 'T' | 'R') || !block.old_keys.is_empty();
                if block.op == 'U' {
                    changed.extend(block.keys.iter().flat_map(|key| key.first().cloned()));
                }
            }
            if gone || !changed.is_empty() && has_gone(recommender, &changed) {
                transaction(|| outbox::invalidated_neighbours(recommender))?;
            }
        }
        Ok(())
    }

    /// Hooks for which too much is kept are stopped.
    pub(in crate::worker) fn bound_hooks(&mut self) -> std::result::Result<(), Failed> {
        let most = settings::hook_limit();
        let looked = self.hooks.bounded_at;
        let is_early = looked.is_some_and(|at| at.elapsed() < LOOK);
        if most == 0 || self.hooks.declared.is_empty() || is_early {
            return Ok(());
        }
        self.hooks.bounded_at = Some(Instant::now());
        let (ids, names) = transaction(|| bound::stop_full(most))?;
        for name in names {
            log!("recsync worker: hook {name} is paused, see recsync.status");
        }
        for id in ids {
            self.hooks.listening.remove(&id);
        }
        Ok(())
    }
}

/// An `eligible` that fails hides what it is asked of.
fn has_gone(recommender: i32, changed: &[String]) -> bool {
    let gone = transaction(|| {
        guard_user_code()?;
        let gone: Result<bool> = match recommender::by_id(recommender)? {
            Some(r) => watched::has_gone(&r, changed),
            None => Ok(false),
        };
        release_user_code();
        gone
    });
    gone.unwrap_or_else(|failed| {
        report(None, &failed);
        true
    })
}
