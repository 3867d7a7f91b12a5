// Everything the sandbox remembers: objects in Stripe's own shape, by kind, newest last.
//
// A stored object may carry members whose names start with '_': they are the sandbox's own and never leave.
// What Stripe shows only when asked (expand[]) or only in part (an invoice's lines) is applied by render(),
// so an answer and an event show the same thing.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

namespace pg_billing::sandbox {

using nlohmann::json;

// Returns the machine's time in seconds.
std::int64_t machine_time();

class Store {
  public:
    explicit Store(std::uint64_t seed) : random_(seed) {}

    // Returns a new id such as cus_4fXK….
    std::string new_id(const std::string &prefix, int length = 14);

    // Stores an object (its "id" set) under its "object" kind and returns it; references stay valid.
    json &add(json object);
    void remove(const std::string &kind, const std::string &id);
    json *find(const std::string &kind, const std::string &id);
    // Returns the object or throws Stripe's resource_missing for the parameter that named it.
    json &get(const std::string &kind, const std::string &id, const std::string &param = "id");
    std::deque<json> &all(const std::string &kind) { return tables_[kind].rows; }

    // The time a customer lives in: its test clock's, else the machine's.
    std::int64_t time_of(const json &object);

    // Answers a list request: newest first, limit / starting_after / ending_before, only what matches.
    json list(const std::string &kind, const std::string &url, const json &params,
              const std::function<bool(const json &)> &matches);

    // Returns the object as Stripe shows it, with the paths in expand; throws for a path that leads nowhere.
    json render(const json &object, const std::vector<std::string> &expand = {});

    // Records an event of this type about the object as it now is (and what changed since `before`).
    void emit(const std::string &type, const json &object, const json &before = nullptr);
    std::function<void(json &event)> on_event;  // told of every event
    // The request being carried out, as events name it; null members while time passes by itself.
    json request = {{"id", nullptr}, {"idempotency_key", nullptr}};
    json counts() const;  // objects by kind

  private:
    struct Table {
        std::deque<json> rows;
        std::unordered_map<std::string, json *> by_id;
    };
    struct ExpandTree;
    json render(const json &object, const ExpandTree &expand);

    std::mt19937_64 random_;
    std::map<std::string, Table> tables_;
};

// Returns one page of an already filtered and ordered sequence, as Stripe's list object.
json page_of(const std::vector<const json *> &newest_first, const std::string &url, const json &params);

// Whether value passes created=… or created[gte]=… and the like.
bool in_range(const json &filter, std::int64_t value);

// Merges metadata as Stripe does: keys are added or replaced, an empty value removes one, "" removes all.
void merge_metadata(json &object, const json &params);

}  // namespace pg_billing::sandbox
