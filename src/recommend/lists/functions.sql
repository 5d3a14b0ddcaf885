-- recommend, similar and popular by a recommender's name: for keys as text, bigint and uuid, so that literals and untyped
-- parameters of every driver find their function.

DO $make$
DECLARE
    key text;
BEGIN
    FOREACH key IN ARRAY '{text,bigint,uuid}'::text[] LOOP
        EXECUTE format($sql$
CREATE FUNCTION @extschema@.recommend(name text, user_id %1$s%2$s, k integer DEFAULT 10, filter jsonb DEFAULT NULL, exclude_seen boolean DEFAULT true,
    diversity double precision DEFAULT 0, max_per jsonb DEFAULT NULL, explore double precision DEFAULT 0, skip integer DEFAULT 0, session_items text[] DEFAULT NULL, explain boolean DEFAULT false)
RETURNS TABLE (item text, score double precision, rank integer, reason jsonb, list_id uuid) LANGUAGE sql STABLE PARALLEL SAFE COST 10000 ROWS 10 AS $$
SELECT r.item, r.score, r.rank, r.reason, r.list_id
  FROM @extschema@.recommend_of(@extschema@.recommender_number($1), $2::pg_catalog.text, pg_catalog.jsonb_build_object(
       'k', $3, 'filter', $4, 'exclude_seen', $5, 'diversity', $6, 'max_per', $7, 'explore', $8, 'skip', $9, 'session_items', $10, 'explain', $11)) r $$;
CREATE FUNCTION @extschema@."similar"(name text, item_id %1$s, k integer DEFAULT 10, filter jsonb DEFAULT NULL, by text DEFAULT NULL)
RETURNS TABLE (item text, score double precision, rank integer) LANGUAGE sql STABLE PARALLEL SAFE COST 10000 ROWS 10 AS $$
SELECT r.item, r.score, r.rank
  FROM @extschema@.similar_by_name($1, $2::pg_catalog.text, pg_catalog.jsonb_build_object('k', $3, 'filter', $4, 'by', $5)) r $$;
CREATE FUNCTION @extschema@.rank(name text, user_id %1$s, candidates text[])
RETURNS TABLE (item text, score double precision, rank integer) LANGUAGE sql STABLE PARALLEL SAFE COST 10000 ROWS 10 AS $$
SELECT r.item, r.score, r.rank FROM @extschema@.rank_of(@extschema@.recommender_number($1), $2::pg_catalog.text, $3) r $$;
$sql$, key, CASE WHEN key = 'text' THEN ' DEFAULT NULL' ELSE '' END);
    END LOOP;
END
$make$;

CREATE FUNCTION popular(name text, k integer DEFAULT 10, since interval DEFAULT NULL, filter jsonb DEFAULT NULL)
RETURNS TABLE (item text, score double precision, rank integer) LANGUAGE sql STABLE PARALLEL SAFE COST 10000 ROWS 10 AS $$
SELECT r.item, r.score, r.rank
  FROM @extschema@.popular_of(@extschema@.recommender_number($1), pg_catalog.jsonb_build_object(
       'k', $2, 'since', extract(epoch FROM $3)::pg_catalog.float8, 'filter', $4)) r $$;
COMMENT ON FUNCTION popular IS
'Items by their interactions'' weights, of which half is left after the recommender''s half_life; those without any come last, the latest first. name: a recommender; since: only interactions of so long count; filter: as in recommend. Returns item (the key as text), score (a share of the most popular one''s), rank; as many as pass, up to k. Needs EXECUTE on <name>_popular and SELECT on the items. Errors: as recommend.';

DO $comment$
DECLARE
    made record;
BEGIN
    FOR made IN SELECT p.oid::pg_catalog.regprocedure AS name, p.proname FROM pg_catalog.pg_proc p
                 WHERE p.pronamespace = '@extschema@'::pg_catalog.regnamespace AND p.proname IN ('recommend', 'similar', 'rank') LOOP
        EXECUTE format('COMMENT ON FUNCTION %s IS %L', made.name, CASE made.proname WHEN 'recommend' THEN
'k items for a user: what the models say and neighbours of what they have had to do with, what is near to the vector of their interests (where the items have vectors), the popular, the latest. name: a recommender; user_id: text, bigint or uuid; NULL, or one that nobody knows, gets what is popular, then the latest; filter: {"column": value | [any, of] | {"gte","gt","lte","lt","contains"} | null}, checked against the live row; exclude_seen: leave out what the user has seen, and session_items; diversity: 0 to 1, how much items whose vectors are alike are kept apart (0: by score alone); max_per: {"column": n}, at most n items that have the same value in a column of the items; explore: a share, 0 to 1, of the places for items with few interactions, chosen at random, but the same for the same list; skip: leave out so many from the beginning, for the next page; session_items: keys of items that count as seen a moment ago, without a user, too; explain: a longer reason. Returns item (the key as text), score, rank from 1, reason (the places that sources gave it: ease, als, neighbours, interest, popular, latest, explored; rest: what was left; with explain also scores by source, boost, and because: the items whose neighbour it is, if the caller may read those interactions) and list_id (the same for the same question, whatever skip). As many rows as pass, up to k. Needs EXECUTE on <name>_recommend and SELECT on the items. Errors: 42501 without the rights, 42704 unknown recommender, 42703 unknown column in filter, 22023 bad k or filter, 55000 where a table is gone.'
        WHEN 'rank' THEN
'Items that come from elsewhere, in the order in which recommend would list them for a user, seen or not. name: a recommender; user_id: text, bigint or uuid, may be NULL; candidates: up to 10000 keys of items. Returns item (the key as text), score, rank from 1: those of the candidates that are eligible and that the caller may see; what no source knows comes last, as given, with score 0. Needs EXECUTE on <name>_rank and SELECT on the items. Errors: as recommend, 22023 too many candidates.'
        ELSE
'Items like one. name: a recommender, or a pipeline; item_id: text, bigint or uuid (of a pipeline''s source with a key of several columns: a JSON object); filter: as in recommend; by: interactions (items that the users of the item have had to do with, too: by the cosine of their users, shrunk where these are few), content (their vectors, by the pipeline''s distance, scored as by search), or blend of both by reciprocal rank, the default where the items have vectors. Returns item (the key as text), score, rank; as many as there are, up to k. Needs EXECUTE on <name>_similar and SELECT on the items; of a pipeline, SELECT on its source and its relation. Errors: as recommend, 22023 bad by, or no vectors.'
        END);
    END LOOP;
END
$comment$;

CREATE FUNCTION recommend_batch(name text, users text, k integer DEFAULT 10)
RETURNS TABLE (user_id text, item text, score double precision, rank integer, reason jsonb, list_id uuid) LANGUAGE plpgsql STABLE PARALLEL UNSAFE ROWS 1000 AS $$
BEGIN
    -- The caller's query, with the caller's rights and search_path.
    -- Of what is selected, not of what is joined, PostgreSQL counts the cost for each user, by which it plans parallel workers.
    RETURN QUERY EXECUTE pg_catalog.format(
        'SELECT u.user_id, (u.listed).item, (u.listed).score, (u.listed).rank, (u.listed).reason, (u.listed).list_id
           FROM (SELECT q.user_id::pg_catalog.text AS user_id,
                        @extschema@.recommend_of(%L::pg_catalog.int4, q.user_id::pg_catalog.text, %L::pg_catalog.jsonb) AS listed
                   FROM (%s) AS q (user_id)) u',
        @extschema@.recommender_number(name), pg_catalog.jsonb_build_object('k', k), users);
END
$$;
COMMENT ON FUNCTION recommend_batch IS
'Lists for many users, for mail and the like. name: a recommender; users: a query of one column, the users, which is run with the rights of the caller, as SELECT id FROM customer WHERE newsletter; k: as in recommend. Returns user_id (as text), item, score, rank, reason, list_id: of each user as many rows as recommend gives. Needs what recommend and the query need. Errors: theirs.';
