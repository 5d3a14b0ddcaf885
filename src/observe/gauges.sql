SELECT p.id, 1, p.relation, p.server, CASE WHEN NOT p.paused THEN 0 WHEN p.paused_reason IS NULL THEN 1 ELSE 2 END, d.dead, j.jobs, j.since, NULL::timestamptz
  FROM recsync.pipeline p
  CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS dead FROM recsync.dead_letter_log WHERE pipeline_id = p.id) d
  CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS jobs, pg_catalog.min(created_at) AS since FROM recsync.job WHERE pipeline_id = p.id) j
UNION ALL
SELECT m.id, 2, r.name, NULL, CASE WHEN NOT r.paused THEN 0 WHEN r.paused_reason IS NULL THEN 1 ELSE 2 END, d.dead, 0, NULL, t.trained_at
  FROM recsync.member m
  JOIN recsync.recommender r ON r.id = m.recommender_id
  CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS dead FROM recsync.dead_letter_log WHERE pipeline_id = m.id) d
  CROSS JOIN LATERAL (SELECT pg_catalog.min(trained_at) AS trained_at FROM recsync.trained_model WHERE recommender_id = r.id) t
UNION ALL
SELECT h.id, 3, h.name, h.server, CASE WHEN NOT h.paused THEN 0 WHEN h.paused_reason IS NULL THEN 1 ELSE 2 END, d.dead, q.letters, q.since, NULL
  FROM recsync.hook h
  CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS dead FROM recsync.dead_letter_log WHERE pipeline_id = h.id) d
  CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS letters, pg_catalog.min(created_at) AS since FROM recsync.delivery
                       WHERE hook_id = h.id AND available_at < 'infinity') q
