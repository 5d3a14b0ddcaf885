WITH month AS MATERIALIZED (
     SELECT pipeline_id, server, currency, pg_catalog.sum(tokens)::bigint AS tokens, pg_catalog.sum(cost)::float8 AS cost,
            pg_catalog.sum(spared_tokens)::bigint AS spared_tokens, COALESCE(pg_catalog.sum(spared_cost)::float8, 0) AS spared_cost
       FROM recsync.ledger_month
      WHERE month >= (SELECT pg_catalog.date_trunc('month', pg_catalog.clock_timestamp() AT TIME ZONE 'UTC')::date) GROUP BY pipeline_id, server, currency
), server AS MATERIALIZED (
     SELECT s.name, s.monthly_budget, s.currency, (SELECT pg_catalog.sum(o.cost) FROM month o WHERE o.server = s.name AND o.currency = s.currency) AS cost
       FROM (SELECT f.srvname::text AS name, pg_catalog.max(o.option_value) FILTER (WHERE o.option_name = 'monthly_budget')::float8 AS monthly_budget,
                    COALESCE(pg_catalog.max(o.option_value) FILTER (WHERE o.option_name = 'currency'), 'USD') AS currency
               FROM pg_catalog.pg_foreign_server f JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = f.srvfdw AND w.fdwname = 'recsync'
               LEFT JOIN LATERAL pg_catalog.pg_options_to_table(f.srvoptions) o ON true GROUP BY f.srvname) s
), of_pipeline AS (
     SELECT o.pipeline_id, o.currency, pg_catalog.sum(o.tokens)::bigint AS tokens, pg_catalog.sum(o.cost) AS cost,
            pg_catalog.sum(o.spared_tokens)::bigint AS spared_tokens, pg_catalog.sum(o.spared_cost) AS spared_cost
       FROM month o GROUP BY o.pipeline_id, o.currency
), dead AS MATERIALIZED (
     SELECT pipeline_id, pg_catalog.count(*) AS dead FROM recsync.dead_letter_log GROUP BY pipeline_id
)
SELECT p.id, 1, p.relation, p.server, CASE WHEN NOT p.paused THEN CASE WHEN g.stops THEN 3 ELSE 0 END WHEN p.paused_reason IS NULL THEN 1 ELSE 2 END, COALESCE(d.dead, 0), j.jobs, j.oldest, NULL::timestamptz,
       v.currency, m.tokens, m.cost, m.spared_tokens, m.spared_cost, p.monthly_budget::float8, v.cost, v.monthly_budget
  FROM recsync.pipeline p
  LEFT JOIN recsync.job_counts() j ON j.pipeline_id = p.id
  LEFT JOIN dead d ON d.pipeline_id = p.id
  LEFT JOIN recsync.budget_notice g ON g.pipeline_id = p.id AND g.month = pg_catalog.date_trunc('month', pg_catalog.clock_timestamp() AT TIME ZONE 'UTC')::date
  LEFT JOIN server v ON v.name = p.server
  LEFT JOIN of_pipeline m ON m.pipeline_id = COALESCE(p.account, p.id) AND m.currency = v.currency AND p.of_pipeline IS NULL
UNION ALL
SELECT m.id, 2, r.name, NULL, CASE WHEN NOT r.paused THEN 0 WHEN r.paused_reason IS NULL THEN 1 ELSE 2 END, COALESCE(d.dead, 0), 0, NULL, t.trained_at,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
  FROM recsync.member m
  JOIN recsync.recommender r ON r.id = m.recommender_id
  LEFT JOIN dead d ON d.pipeline_id = m.id
  CROSS JOIN LATERAL (SELECT pg_catalog.min(trained_at) AS trained_at FROM recsync.trained_model WHERE recommender_id = r.id) t
UNION ALL
SELECT h.id, 3, h.name, h.server, CASE WHEN NOT h.paused THEN 0 WHEN h.paused_reason IS NULL THEN 1 ELSE 2 END, COALESCE(d.dead, 0), q.waiting, q.oldest, NULL,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
  FROM recsync.hook h
  LEFT JOIN dead d ON d.pipeline_id = h.id
  CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS waiting, pg_catalog.min(created_at) AS oldest
                        FROM recsync.delivery WHERE hook_id = h.id AND available_at < 'infinity') q
