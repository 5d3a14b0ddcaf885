//! The index of a pipeline's vectors, which recsync builds after the load. It never makes one.

use std::time::{Duration, Instant};

use postgres::Client;

use crate::support::{Sql, wait_until};

const PATIENCE: Duration = Duration::from_secs(3600);

/// Waits until the table of vectors has a valid HNSW index and nobody builds one any more; how long that took.
pub fn wait_for_index(client: &mut Client, vectors: &str) -> Duration {
    let started = Instant::now();
    let there = format!(
        "SELECT EXISTS (SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am a ON a.oid = x.relam
                         WHERE i.indrelid = '{vectors}'::regclass AND i.indisvalid AND a.amname = 'hnsw')
            AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'recsync indexer')"
    );
    wait_until(PATIENCE, "the index is there", || client.one(&there));
    started.elapsed()
}

/// Bytes of its HNSW indexes.
pub fn size(client: &mut Client, vectors: &str) -> i64 {
    client.one(&format!(
        "SELECT sum(pg_relation_size(x.oid))::bigint FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am a ON a.oid = x.relam
          WHERE i.indrelid = '{vectors}'::regclass AND a.amname = 'hnsw'"
    ))
}
