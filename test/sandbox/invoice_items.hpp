// Invoice items: amounts on a draft that they name, or that wait for a customer's next invoice, of their subscription if they
// name one.
#pragma once

#include <functional>

#include "test/sandbox/catalog.hpp"
#include "test/sandbox/store.hpp"

namespace pg_billing::sandbox {

// Puts an item on a draft.
using AddToDraft = std::function<void(const std::string &invoice, json &item)>;

void model_invoice_items(Catalog &catalog, Store &store, AddToDraft add_to_draft);

// What an item is among the spans of an invoice.
json span_of_item(const json &item);

// Returns what waits for the subscription's next invoice, as spans of one (see invoices.hpp).
json pending_spans(Store &store, const json &subscription);

// Takes the items among an invoice's spans from waiting to that invoice.
void attach_items(Store &store, const json &invoice);

// The line that an item's span makes.
json line_of_item(const json &invoice, const json &span, std::size_t number);

}  // namespace pg_billing::sandbox
