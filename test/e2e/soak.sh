#!/usr/bin/env bash
# Random life cycles, the short form, always of one seed (SEED=N: another); `make soak` is the long one.
source "$(dirname "$0")/../soak/soak.sh"

soak "${SEED:-24}" 10 3 110 0.5
is 'ledger = sent = Stripe = invoices' "$(<"$RUN/differences")" ''
done_testing
