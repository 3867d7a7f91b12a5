#!/usr/bin/env bash
# Random life cycles, the short form; `make soak` is the long one.
source "$(dirname "$0")/../soak/soak.sh"

soak "${SEED:-$RANDOM$RANDOM}" 10 3 110 0.5
is 'ledger = sent = Stripe = invoices' "$(<"$RUN/differences")" ''
done_testing
