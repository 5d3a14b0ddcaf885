# The work is done by the scripts in tests/setup/; `make help` lists the commands.

.DEFAULT_GOAL := help
.PHONY: help build install uninstall test demo bench schema clean

# Passed through to the scripts when they are given on the command line or in the environment.
export PG PG_CONFIG DESTDIR KEEP RECSYNC_CACHE DATA

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

build: ## build recsync for your own PostgreSQL: PG_CONFIG=/path/to/pg_config (15 to 18)
	@tests/setup/install.sh build

install: ## build it and put it into that PostgreSQL: PG_CONFIG=…, DESTDIR=…
	@tests/setup/install.sh install

uninstall: ## remove it from there: PG_CONFIG=…, DESTDIR=…
	@tests/setup/install.sh uninstall

test: ## everything that CI runs, in a PostgreSQL of its own: PG=16 (15, 16, 18, all) or PG_CONFIG=…
	@tests/setup/test.sh

demo: ## the main job on real data, in a PostgreSQL of its own; KEEP=1 leaves it running
	@tests/setup/demo.sh demo

bench: ## one measurement: BENCH=latency, capture, embed, index, cost, recommend, events, observe, quality (DATA=…)
	@tests/setup/demo.sh bench $(BENCH)

schema: ## write the install script under sql/ from the code
	@tests/setup/schema.sh

clean: ## remove target/ (the cache of downloads stays)
	rm -rf target
