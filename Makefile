# pg_billing. `make demo` and `make check` do all set-up themselves; `make && make install` builds the extension
# alone, with PGXS.

# These goals must work before PostgreSQL's build files are there: they install them first.
DRIVER_GOALS = setup demo demo-stop check check-% sanitize sanitize-% bench proof soak fuzz
ifneq ($(filter $(DRIVER_GOALS),$(MAKECMDGOALS)),)

.PHONY: setup demo demo-stop check sanitize bench proof soak fuzz
setup:
	test/setup.sh check

# make demo [TRACE=file.csv]
demo:
	test/demo/demo.sh $(if $(TRACE),'$(TRACE)')

demo-stop:
	test/demo/demo.sh --stop

# make check: everything; make check-NAME: the suite of that name in test/run.sh
check:
	test/run.sh
check-%:
	test/run.sh $*

# make sanitize: the suites on a PostgreSQL with assertions, ASan and UBSan, which is built first, once
sanitize:
	test/sanitize.sh
sanitize-%:
	test/sanitize.sh $*

# make bench [ROWS='hot check …']: see docs/benchmarks.md
bench:
	bench/run.sh $(ROWS)

# make proof [PROOF='--seed 1 …']: the overshoot proof in its long form, five minutes
proof:
	test/proof/proof.sh 32 --seconds 300 --kills 20 $(PROOF)

# make soak [SOAK='SEED']: a year in the life of 200 tenants against the sandbox Stripe, some 20 minutes
soak:
	test/soak/soak.sh $(SOAK)

# make fuzz [FUZZ='-max_total_time=600 …']: what reads bytes from outside, with libFuzzer; needs clang
fuzz:
	test/fuzz/run.sh $(FUZZ)

else

EXTENSION = pg_billing
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" pg_billing.control)

# The order matters: later parts use what earlier ones define.
SQL_PARTS = schema types settings stats catalog prices audit customers subscriptions lifecycle tenant_prices quotas usage reservations \
            corrections rollup rollup_kinds alerts summary billable history standing rating credits credits_apply \
            explain partitions retention stripe export export_figures export_deltas export_stream export_items export_file stripe_catalog stripe_prices stripe_plan \
            stripe_changes price_changes stripe_settle stripe_repair stripe_credits sync_plans sessions webhook_objects webhooks \
            webhook_missed meter_errors invoices invoice_preview change_preview \
            reconcile reconcile_compare reconcile_late reconcile_repair notifications events channels quota_cache api_keys health exposition security install
DATA_built = pg_billing--$(EXTVERSION).sql
DATA       = $(wildcard sql/upgrades/*.sql)

EXTENSION_OBJS = $(patsubst %.cpp,%.o,$(wildcard extension/*.cpp))
WORKER_OBJS    = $(patsubst %.cpp,%.o,$(wildcard worker/*.cpp))
# What the worker library takes of plain C++, without PostgreSQL.
PLAIN_OBJS     = $(patsubst %.cpp,%.o,$(wildcard stripe/*.cpp notify/*.cpp))

WORKER_LIB     = pg_billing_worker.so

MODULE_big = pg_billing
OBJS = $(EXTENSION_OBJS)

PG_CONFIG ?= pg_config
# Bitcode buys nothing here, and clang rejects some server headers as C++20.
override with_llvm := no
PG_CXXFLAGS = -std=c++20 -Wall -Wextra -Wno-register -Wno-missing-field-initializers -fvisibility=hidden \
              -D'PGDLLEXPORT=__attribute__((visibility("default")))' \
              -D'PG_BILLING_VERSION="$(EXTVERSION)"' \
              -isystem $(shell $(PG_CONFIG) --includedir-server) -I. -MMD -MP
EXTRA_CLEAN = $(WORKER_LIB) $(WORKER_OBJS) $(PLAIN_OBJS) $(patsubst %.o,%.d,$(OBJS) $(WORKER_OBJS) $(PLAIN_OBJS)) \
              build/cmake build/root

# Tests against the installed extension, with a server of their own.
NO_INSTALLCHECK = 1

PGXS := $(shell $(PG_CONFIG) --pgxs)
ifeq ($(wildcard $(PGXS)),)
$(error PostgreSQL's server headers are missing: run test/setup.sh, or set PG_CONFIG)
endif
include $(PGXS)
COMPILER = $(CXX) $(CXXFLAGS)

# SANITIZE=undefined (or address,undefined): what that sanitizer finds ends the process. Overflows are defined for
# PostgreSQL's own sources (-fwrapv); here they are errors, as nothing means to wrap.
ifdef SANITIZE
override CXXFLAGS := $(filter-out -fwrapv,$(CXXFLAGS)) -fsanitize=$(SANITIZE) -fno-sanitize-recover=all
endif

-include $(patsubst %.o,%.d,$(OBJS) $(WORKER_OBJS) $(PLAIN_OBJS))

# The library that only background workers load: it alone links libcurl and hiredis.
all: $(WORKER_LIB)
$(WORKER_LIB): $(WORKER_OBJS) $(PLAIN_OBJS)
	$(COMPILER) -shared -o $@ $^ $(LDFLAGS) -lcurl -lcrypto -lhiredis
$(OBJS) $(WORKER_OBJS): pg_billing.control
install: install-worker
uninstall: uninstall-worker
.PHONY: install-worker uninstall-worker
install-worker: $(WORKER_LIB) installdirs
	$(INSTALL_SHLIB) $(WORKER_LIB) '$(DESTDIR)$(pkglibdir)/$(WORKER_LIB)'
uninstall-worker:
	rm -f '$(DESTDIR)$(pkglibdir)/$(WORKER_LIB)'

pg_billing--$(EXTVERSION).sql: $(SQL_PARTS:%=sql/%.sql)
	cat $^ > $@

.PHONY: installcheck
installcheck:
	PG_BILLING_ROOT= PG_CONFIG=$(PG_CONFIG) test/run.sh regress isolation

endif
