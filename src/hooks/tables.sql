-- What listens, and what it has not been told yet.

-- A hook. Its id is one of the pipelines' numbers: dead letters and the worker's counters know all by one number. It
-- belongs to a role by name, since nothing else of it is an object that a role could own.
CREATE TABLE hook (
    id             integer PRIMARY KEY DEFAULT pg_catalog.nextval('@extschema@.pipeline_id_seq'),
    name           text NOT NULL UNIQUE,            -- qualified and quoted
    owner          text NOT NULL,                   -- a role, quoted
    event          text NOT NULL CHECK (event IN ('embedded', 'invalidated', 'generation', 'dead_letter', 'budget')),
    pipeline_id    integer REFERENCES pipeline ON DELETE CASCADE,    -- of which it hears
    recommender_id integer REFERENCES recommender ON DELETE CASCADE, -- or of this; neither: of all that its owner owns
    server         text,                            -- where its letters go; NULL: nowhere, it is NOTIFY only
    path           text NOT NULL,
    method         text NOT NULL CHECK (method IN ('POST', 'PUT', 'PATCH')),
    body           jsonb,                           -- with placeholders; NULL: the usual one
    channel        text UNIQUE,                     -- of NOTIFY; NULL: none
    paused         boolean NOT NULL DEFAULT false,
    paused_reason  text,
    paused_by_server boolean NOT NULL DEFAULT false, -- a change of the server ends the pause
    overflowed     boolean NOT NULL DEFAULT false,  -- too much has not arrived: nothing is written for it until it is resumed
    created_at     timestamptz NOT NULL DEFAULT pg_catalog.now(),
    CHECK (pipeline_id IS NULL OR recommender_id IS NULL),
    CHECK (server IS NOT NULL OR channel IS NOT NULL),
    CHECK (paused OR paused_reason IS NULL AND NOT paused_by_server AND NOT overflowed)
);
COMMENT ON TABLE hook IS 'What listens to events of pipelines and recommenders: made by create_hook.';

-- What a hook has not been told yet: written in the transaction that makes it true, deleted when it is told. Who writes
-- holds a lock on the sequence until it commits: numbers are in the order of the commits, so that the worker reads from
-- the last one on and meets no dead entry twice. No foreign key: what makes it true waits for nobody who drops a hook.
CREATE SEQUENCE delivery_number AS bigint;
CREATE TABLE delivery (
    hook_id         integer NOT NULL,
    number          bigint NOT NULL DEFAULT pg_catalog.nextval('@extschema@.delivery_number'),
    message_id      uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(), -- the same whenever it is sent
    source          text NOT NULL,                  -- the name of what it is of
    keys            json NOT NULL,                  -- of rows, or scopes
    data            json NOT NULL,                  -- what else its event says
    created_at      timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    attempt         integer NOT NULL DEFAULT 0,
    available_at    timestamptz NOT NULL DEFAULT '-infinity', -- not before this; infinity: given up
    last_attempt_at timestamptz,
    PRIMARY KEY (hook_id, number)
);
COMMENT ON TABLE delivery IS 'What hooks have not been told yet. Not dumped: a restored copy says nothing of what it did not do.';

-- Items that are watched while a hook hears which lists are old: one that is gone has to go from lists that others keep.
CREATE TABLE watched_items (
    recommender_id integer PRIMARY KEY REFERENCES recommender ON DELETE CASCADE,
    source_id      integer NOT NULL REFERENCES source ON DELETE CASCADE, -- the items
    used_columns   text[] NOT NULL,                 -- of the recommender's eligible
    altered        boolean NOT NULL DEFAULT false   -- so was the recommender, and nobody has been told yet
);
COMMENT ON TABLE watched_items IS 'Recommenders whose items are watched, because a hook of event invalidated hears of them.';

SELECT pg_catalog.pg_extension_config_dump('hook', '');
SELECT pg_catalog.pg_extension_config_dump('watched_items', '');
