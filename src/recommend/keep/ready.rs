//! Lists that are ready for users: those of users about whom something is known that was not when they were made go, in
//! the transaction in which it becomes known.
//!
//! It never makes one: see lists/warm.rs.

use pgrx::spi::SpiClient;

use crate::catalog::recommender::{Recommender, tables};
use crate::error::Result;
use crate::statement::Statement;

/// The statement of one recommender.
pub struct Ready {
    remove: Statement,
}

impl Ready {
    pub fn of(r: &Recommender) -> Result<Ready> {
        let user = r.user_key()?;
        Ok(Ready {
            remove: Statement::by_key(format!(
                "DELETE FROM {} l WHERE l.user_id {} ANY ($1::text[]::{}[])",
                tables::lists(r.of),
                user.equals,
                user.type_name,
            )),
        })
    }

    /// As the owner of the items.
    pub fn remove(&self, client: &mut SpiClient, users: &[String]) -> Result<()> {
        if !users.is_empty() {
            self.remove.update(client, &[users.to_vec().into()])?;
        }
        Ok(())
    }
}
