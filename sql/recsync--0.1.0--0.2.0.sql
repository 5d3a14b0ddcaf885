-- ALTER EXTENSION recsync UPDATE: from 0.1.0 to 0.2.0.
-- A test compares what this makes with what recsync--0.2.0.sql makes.

-- Where this database is at home.
CREATE TABLE site (
    name       text NOT NULL,
    adopted_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (name, adopted_at)
);
COMMENT ON TABLE site IS 'The recsync.site at which this database is at home; see adopt_site().';
INSERT INTO site (name) SELECT COALESCE(pg_catalog.current_setting('recsync.site', true), '');
SELECT pg_catalog.pg_extension_config_dump('site', '');
CREATE FUNCTION adopt_site() RETURNS text LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'adopt_site_wrapper';
COMMENT ON FUNCTION adopt_site() IS
'Makes this database, a copy that was started or restored under another recsync.site, one of the site where it is now: from its commit on the worker sends and stores, and embed and search ask. Returns the site. No row is paid for that has the vector of its text. Errors: 42501 for others than superusers and members of recsync_admin, 25006 on a standby.';

-- Dead letters move with the database.
SELECT pg_catalog.pg_extension_config_dump('dead_letter_log', '');
