//! list_id: a UUID that says of which recommender a list is, and whose it is without saying who that is.
//!
//! | bytes | |
//! |---|---|
//! | 0 to 3 | the recommender's number |
//! | 4 to 9 | a hash of generation, user and arguments, but for version and variant (version 8 of RFC 9562) |
//! | 10 to 15 | a keyed hash of the user; zeros: nobody's |
//!
//! So what was shown of a list can be compared with what its user has done since, and nothing has to be written where
//! lists are made, on a standby, too. It never holds a user: nobody without the key finds out by trying whose a list is.

use pgrx::datum::Uuid;
use pgrx::prelude::*;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::question::Question;
use crate::catalog::recommender::Recommender;
use crate::catalog::rights::As;
use crate::error::{Error, Result};
use crate::statement::{Finds, Statement};

/// The keyed hash of a user.
type Whose = [u8; 6];

const NOBODY: Whose = [0; 6];

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ListId([u8; 16]);

impl ListId {
    /// The same for the same recommender, generation, user and arguments; for each page of a list.
    pub fn of(
        recommender: &Recommender,
        user: Option<&str>,
        question: &Question,
    ) -> Result<ListId> {
        let whose = match user {
            Some(user) => whose(recommender, user)?,
            None => NOBODY,
        };
        let asked = json!([
            recommender.backfill_round,
            recommender.trained_us,
            whose,
            question
        ]);
        Ok(ListId::made_of(
            recommender.id,
            &Sha256::digest(asked.to_string()),
            whose,
        ))
    }

    fn made_of(recommender: i32, hash: &[u8], whose: Whose) -> ListId {
        let mut bytes = [0; 16];
        let [of, rest] = [&recommender.to_be_bytes(), hash];
        let parts = of.iter().chain(rest.iter().take(6)).chain(&whose);
        for (byte, part) in bytes.iter_mut().zip(parts) {
            *byte = *part;
        }
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        ListId(bytes)
    }

    /// `None`: no list of a recommender's has this one.
    pub fn read(bytes: &[u8; 16]) -> Option<ListId> {
        let list = ListId(*bytes);
        (bytes[6] >> 4 == 8 && bytes[8] >> 6 == 2 && list.recommender() > 0).then_some(list)
    }

    /// The recommender's number.
    pub fn recommender(&self) -> i32 {
        let [a, b, c, d, ..] = self.0;
        i32::from_be_bytes([a, b, c, d])
    }

    pub fn uuid(&self) -> Uuid {
        Uuid::from_bytes(self.0)
    }

    /// What chance begins with: two lists are tried out with different items, one always with the same.
    pub fn seed(&self) -> i64 {
        let mut seed = [0; 8];
        for (byte, from) in seed.iter_mut().zip(Sha256::digest(self.0)) {
            *byte = from;
        }
        i64::from_ne_bytes(seed)
    }
}

/// SQL: the hash of `user`, SQL of any type, by `key`, SQL of a bytea.
pub fn hash_of(user: &str, key: &str) -> String {
    format!(
        "pg_catalog.substring(pg_catalog.sha256({key} || pg_catalog.convert_to(({user})::text, 'UTF8')), 1, 6)"
    )
}

/// SQL: whose a list is, by its `list_id`; NULL: nobody's.
pub fn whose_of(list_id: &str) -> String {
    format!(
        r"NULLIF(pg_catalog.substring(pg_catalog.uuid_send({list_id}), 11), '\x000000000000'::bytea)"
    )
}

/// SQL: whether a uuid is the list_id of one of a recommender's lists, so that an index finds them.
pub fn is_of(list_id: &str, recommender: i32) -> String {
    format!(
        "{list_id} BETWEEN '{recommender:08x}-0000-8000-8000-000000000000' AND '{recommender:08x}-ffff-8fff-bfff-ffffffffffff'
     AND pg_catalog.get_byte(pg_catalog.uuid_send({list_id}), 6) >> 4 = 8 AND pg_catalog.get_byte(pg_catalog.uuid_send({list_id}), 8) >> 6 = 2"
    )
}

/// What users are hashed by. It is made of the database's secret, which a dump carries along.
pub fn key() -> Result<Vec<u8>> {
    const KEY: &str = "SELECT pg_catalog.sha256(key || 'list_id'::bytea) FROM recsync.secret ORDER BY created_at LIMIT 1";
    thread_local! {
        static STATEMENT: Statement = Statement::new(KEY);
    }
    let _as = As::extension();
    let key = Spi::connect(|client| {
        let rows = STATEMENT.with(|statement| statement.select(client, &[]))?;
        let row = rows.into_iter().next();
        let key = row.map(|row| row.get::<Vec<u8>>(1)).transpose()?;
        Ok::<_, Error>(key.flatten())
    })?;
    key.ok_or_else(|| Error::Internal("recsync.secret is empty".into()))
}

/// The hash of a user, however the text is written that means them. As the owner of the items, whose type it may be.
pub fn whose(recommender: &Recommender, user: &str) -> Result<Whose> {
    let kind = &recommender.user_key()?.type_name;
    let hash = hash_of(&format!("$1::{kind}"), "$2");
    let key = key()?;
    let _as = As::owner(recommender.owner());
    Spi::connect(|client| {
        let statement = Statement::kept(&format!("SELECT {hash}"), Finds::ByKey);
        let rows = statement.select(client, &[user.into(), key.into()])?;
        let row = rows.into_iter().next();
        let hash = row.map(|row| row.get::<Vec<u8>>(1)).transpose()?;
        let hash = hash.flatten().unwrap_or_default();
        Whose::try_from(hash).map_err(|_| Error::Internal("a hash has another length".into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_id_says_of_which_recommender_and_whose_it_is() {
        let whose = [1, 2, 3, 4, 5, 6];
        for (recommender, hash) in [(7, [0xff; 32]), (i32::MAX, [0; 32])] {
            let list = ListId::made_of(recommender, &hash, whose);
            assert_eq!(ListId::read(&list.0), Some(list));
            assert_eq!(list.recommender(), recommender);
            assert_eq!(list.0[10..], whose);
        }
    }

    #[test]
    fn what_no_recommender_has_made_is_no_list_id() {
        assert_eq!(ListId::read(&[0; 16]), None);
        assert_eq!(ListId::read(&[0xff; 16]), None);
        let mut list = ListId::made_of(1, &[7; 32], NOBODY).0;
        list[6] = 0x40 | list[6] & 0x0f; // a random one, version 4
        assert_eq!(ListId::read(&list), None);
        list[0] = 0x80;
        list[6] = 0x80;
        assert_eq!(ListId::read(&list), None);
    }

    #[test]
    fn lists_of_two_users_are_tried_out_with_different_items() {
        let [one, other] = [1, 2].map(|user| ListId::made_of(1, &[7; 32], [user; 6]));
        assert_ne!(one.seed(), other.seed());
    }
}
