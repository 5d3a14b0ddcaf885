-- The register of applied events, a ring of four tables. A row is an event that was applied, or a key of a table with the
-- sequence of the last event that was applied to it; both by a digest of whose it is, so that no value of anybody's
-- stands here. Written by apply_events as recsync's owner; nobody else has rights on it. Not dumped: what it names is
-- named by numbers of this database.
CREATE TABLE event_0 (
    digest   uuid PRIMARY KEY,
    sequence bigint,                  -- of a key
    previous bigint                   -- that before the last change
) WITH (fillfactor = 80);
CREATE TABLE event_1 (LIKE event_0 INCLUDING ALL) WITH (fillfactor = 80);
CREATE TABLE event_2 (LIKE event_0 INCLUDING ALL) WITH (fillfactor = 80);
CREATE TABLE event_3 (LIKE event_0 INCLUDING ALL) WITH (fillfactor = 80);

-- Which of them is written: the one that is open. Those that are closed are read; one that has been emptied is neither.
CREATE TABLE event_register (
    number    integer PRIMARY KEY,
    opened_at timestamptz,
    closed_at timestamptz,
    CHECK (opened_at IS NOT NULL OR closed_at IS NULL)
);
INSERT INTO event_register (number, opened_at)
SELECT n, CASE n WHEN 0 THEN pg_catalog.now() END FROM pg_catalog.generate_series(0, 3) AS n;

-- Events that could not be applied and were put aside. They hold what was sent.
CREATE TABLE event_dead_letter (
    digest     uuid PRIMARY KEY,      -- of who sent what: one that comes again is counted
    event_id   text,
    event      jsonb NOT NULL,
    sent_by    text NOT NULL,
    sqlstate   text NOT NULL,
    message    text NOT NULL,
    attempts   integer NOT NULL DEFAULT 1,
    failed_at  timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
COMMENT ON TABLE event_dead_letter IS 'Events that apply_events(…, on_error => ''dead_letter'') could not apply, with the reason. They hold what was sent: readable by recsync_admin only, who may delete them, too.';
GRANT SELECT, DELETE ON event_dead_letter TO recsync_admin;
SELECT pg_catalog.pg_extension_config_dump('event_dead_letter', '');
