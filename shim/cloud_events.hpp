// CloudEvents 1.0 as usage: `type` is the metric, `source` and `id` together the idempotency key, `subject` the tenant
// where the caller's credential and X-Tenant-Id leave it open, `time` when it occurred. `data` is an object: its member
// `quantity` is the quantity, whatever else it has the properties.
//
// All three content modes of the HTTP binding (§3) with the JSON format. Context attributes are held to the
// specification (§3.1): names, types, and the required ones not empty. Extensions and `dataschema` are checked and not
// kept.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "shim/events.hpp"

namespace pg_billing::shim {

enum class CloudEventsMode { none, structured, batched, binary };

// Returns how a request carries CloudEvents, by its content type and its ce- headers. Throws Problem 415 for a format other
// than JSON.
CloudEventsMode cloud_events_mode(const http::Request &request);

// Read one event. Throw a Problem that names the attribute, in binary mode its header.
Event read_cloud_event(const Json &json);
Event read_binary_cloud_event(const http::Request &request);

// Returns the idempotency key of an event that may be wrong in other ways.
std::optional<std::string> cloud_event_key(const Json &json);

// Returns the attribute that a member of our own events comes from, to name what is at fault as the client knows it.
std::string cloud_event_attribute(const std::string &field);

}  // namespace pg_billing::shim
