# pg_billing: the extension (PGXS). `make demo` and `make check` do all set-up themselves.
EXTENSION = pg_billing
VERSION   = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" pg_billing.control)

# The order matters: later parts use what earlier ones define.
SQL_PARTS = schema types settings catalog customers subscriptions quotas usage summary rollup partitions \
            stripe stripe_plan stripe_settle webhooks api_keys security install
DATA_built = pg_billing--$(VERSION).sql
DATA       = $(wildcard sql/upgrades/*.sql)

EXTENSION_OBJS = $(patsubst %.cpp,%.o,$(wildcard extension/*.cpp))
WORKER_OBJS    = $(patsubst %.cpp,%.o,$(wildcard worker/*.cpp))
STRIPE_OBJS    = $(patsubst %.cpp,%.o,$(wildcard stripe/*.cpp))

MODULE_big = pg_billing
OBJS = $(EXTENSION_OBJS)

PG_CONFIG ?= pg_config
# Bitcode buys nothing here, and clang rejects some server headers as C++20.
override with_llvm := no
PG_CXXFLAGS = -std=c++20 -Wall -Wextra -Wno-register -Wno-missing-field-initializers -fvisibility=hidden \
              -D'PGDLLEXPORT=__attribute__((visibility("default")))' \
              -isystem $(shell $(PG_CONFIG) --includedir-server) -I. -MMD -MP
EXTRA_CLEAN = pg_billing_worker.so $(WORKER_OBJS) $(STRIPE_OBJS) $(patsubst %.o,%.d,$(OBJS) $(WORKER_OBJS) $(STRIPE_OBJS))

PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)
COMPILER = $(CXX) $(CXXFLAGS)

-include $(patsubst %.o,%.d,$(OBJS) $(WORKER_OBJS) $(STRIPE_OBJS))

pg_billing--$(VERSION).sql: $(SQL_PARTS:%=sql/%.sql)
	cat $^ > $@
