SELECT l.transaction_id::text::bigint, l.sequence, l.changes, l.source_id, l.op::text, l.record_keys::text, l.old_keys::text, l.changed_at
  FROM recsync.log l
 WHERE (l.transaction_id, l.sequence) > ($1::text::xid8, $2) AND l.transaction_id < $3::text::xid8
   AND NOT l.audit_only AND pg_catalog.pg_visible_in_snapshot(l.transaction_id, (SELECT $4::pg_snapshot))
 ORDER BY l.transaction_id, l.sequence LIMIT $5
