WITH statistics AS MATERIALIZED (
     SELECT s.n_distinct, s.most_common_vals::text::int4[] AS ids, s.most_common_freqs AS shares,
            CASE WHEN c.relpages > 0 THEN c.reltuples::float8 / c.relpages * (pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::float8) ELSE 0 END AS rows
       FROM pg_catalog.pg_class c
       JOIN pg_catalog.pg_stats s ON s.schemaname = 'recsync' AND s.tablename = 'job' AND s.attname = 'pipeline_id'
      WHERE c.oid = 'recsync.job'::regclass
), common AS MATERIALIZED (
     SELECT c.id, c.share FROM statistics s CROSS JOIN LATERAL ROWS FROM (pg_catalog.unnest(s.ids), pg_catalog.unnest(s.shares)) AS c (id, share)
), rest AS MATERIALIZED (
     SELECT s.rows, GREATEST(1 - COALESCE((SELECT pg_catalog.sum(share) FROM common), 0), 0)
                    / GREATEST(CASE WHEN s.n_distinct < 0 THEN -s.n_distinct * s.rows ELSE s.n_distinct END - (SELECT pg_catalog.count(*) FROM common), 1) AS share
       FROM statistics s
), leased AS MATERIALIZED ( -- by a worker: few
     SELECT pipeline_id AS id, pg_catalog.count(*) AS jobs, pg_catalog.min(created_at) AS oldest FROM recsync.job WHERE leased_until IS NOT NULL GROUP BY pipeline_id
)
SELECT p.id,
       CASE WHEN d.jobs <= $1 THEN d.jobs + COALESCE(l.jobs, 0)
            ELSE GREATEST(d.jobs + COALESCE(l.jobs, 0), (COALESCE(c.share, r.share) * r.rows)::bigint) END,
       LEAST(d.oldest, l.oldest)
  FROM recsync.pipeline p
  LEFT JOIN rest r ON true LEFT JOIN common c ON c.id = p.id
  LEFT JOIN leased l ON l.id = p.id
  CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS jobs, pg_catalog.min(q.created_at) AS oldest
                        FROM (SELECT created_at FROM recsync.job WHERE pipeline_id = p.id AND leased_until IS NULL
                               ORDER BY available_at, record_key LIMIT $1 + 1) q) d
 WHERE d.jobs > 0 OR l.jobs > 0
