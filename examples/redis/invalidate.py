#!/usr/bin/env python3
"""Deletes from Redis what a hook of event `invalidated` says is old: user_recs:<id>, and all of collab_recs:*.

    pip install "psycopg[binary]" redis
    ./invalidate.py "dbname=shop" redis://localhost:6379/0 recsync_invalidated

It begins by deleting everything of both scopes, and does so again after each connection that was lost: what is said
while nobody listens is not heard. It never writes to the database, and never deletes another key.
"""

import json
import sys
import time

import psycopg
import redis
from psycopg import sql


def delete(cache, scope):
    """A scope is the name of a key, but for that of all collaborative lists (and, here, of all users)."""
    if scope not in ("collab_recs:*", "user_recs:*"):
        cache.unlink(scope)
        return
    some = []
    for key in cache.scan_iter(match=scope, count=1000):
        some.append(key)
        if len(some) == 1000:
            cache.unlink(*some)
            some = []
    if some:
        cache.unlink(*some)


def follow(database, cache, channel):
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        # Listening first: what is said from here on is heard.
        delete(cache, "user_recs:*")
        delete(cache, "collab_recs:*")
        print("listening", flush=True)
        for notification in connection.notifies():
            said = json.loads(notification.payload)
            if said.get("omitted"):
                delete(cache, "user_recs:*")
            for scope in said["keys"]:
                delete(cache, scope)


def main():
    database, url, channel = sys.argv[1:4]
    cache = redis.Redis.from_url(url)
    while True:
        try:
            follow(database, cache, channel)
        except (psycopg.OperationalError, redis.ConnectionError, redis.TimeoutError) as error:
            print(f"again in a second: {error}", file=sys.stderr, flush=True)
            time.sleep(1)


if __name__ == "__main__":
    main()
