SELECT p.id, d.jobs, d.oldest
  FROM recsync.pipeline p
  CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS jobs, pg_catalog.min(q.created_at) AS oldest
                        FROM (SELECT created_at FROM recsync.job WHERE pipeline_id = p.id AND leased_until IS NULL
                               ORDER BY available_at, record_key LIMIT $1 + 1) q) d
