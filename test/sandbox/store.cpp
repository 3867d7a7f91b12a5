#include "test/sandbox/store.hpp"

#include <algorithm>
#include <ctime>
#include <string_view>

#include "test/sandbox/errors.hpp"

namespace pg_billing::sandbox {
namespace {

constexpr std::size_t kEmbeddedLines = 10;

// Members that hold an id and can be expanded into the object of that kind.
const std::map<std::string, std::string> kExpandable = {{"customer", "customer"},
                                                        {"product", "product"},
                                                        {"price", "price"},
                                                        {"invoice", "invoice"},
                                                        {"subscription", "subscription"},
                                                        {"latest_invoice", "invoice"},
                                                        {"test_clock", "test_helpers.test_clock"}};

// Members shown only when expanded.
bool hidden(const std::string &kind, const std::string &member) {
    return (kind == "price" && member == "tiers") || (kind == "invoice" && member == "confirmation_secret");
}

json embedded_lines(const json &invoice, const std::string &id) {
    const json &lines = invoice.at("_lines");
    json data = json::array();
    for (std::size_t i = 0; i < std::min(lines.size(), kEmbeddedLines); ++i)
        data.push_back(lines[i]);
    return {{"object", "list"},
            {"data", std::move(data)},
            {"has_more", lines.size() > kEmbeddedLines},
            {"total_count", lines.size()},
            {"url", "/v1/invoices/" + id + "/lines"}};
}

}  // namespace

struct Store::ExpandTree {
    std::map<std::string, ExpandTree> members;
};

std::int64_t machine_time() {
    return static_cast<std::int64_t>(std::time(nullptr));
}

std::string Store::new_id(const std::string &prefix, int length) {
    static constexpr std::string_view kAlphabet =
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    std::string id = prefix + "_";
    std::uniform_int_distribution<std::size_t> any(0, kAlphabet.size() - 1);
    for (int i = 0; i < length; ++i)
        id += kAlphabet[any(random_)];
    return id;
}

json &Store::add(json object) {
    Table &table = tables_[object.at("object").get<std::string>()];
    table.rows.push_back(std::move(object));
    json &row = table.rows.back();
    table.by_id[row.at("id").get<std::string>()] = &row;
    return row;
}

void Store::remove(const std::string &kind, const std::string &id) {
    Table &table = tables_[kind];
    std::erase_if(table.rows, [&](const json &row) { return row.at("id") == id; });
    table.by_id.clear();
    for (json &row : table.rows)
        table.by_id[row.at("id").get<std::string>()] = &row;
}

json *Store::find(const std::string &kind, const std::string &id) {
    Table &table = tables_[kind];
    const auto row = table.by_id.find(id);
    return row == table.by_id.end() ? nullptr : row->second;
}

json &Store::get(const std::string &kind, const std::string &id, const std::string &param) {
    if (json *object = find(kind, id))
        return *object;
    throw no_such(kind.substr(kind.find('.') + 1), id, param);
}

std::int64_t Store::time_of(const json &object) {
    const auto clock = object.find("test_clock");
    if (clock == object.end() || clock->is_null())
        return machine_time();
    return get("test_helpers.test_clock", *clock).at("frozen_time");
}

json Store::list(const std::string &kind, const std::string &url, const json &params,
                 const std::function<bool(const json &)> &matches) {
    std::vector<const json *> found;
    const auto &rows = tables_[kind].rows;
    for (auto row = rows.rbegin(); row != rows.rend(); ++row)
        if (matches(*row))
            found.push_back(&*row);
    return page_of(found, url, params);
}

json Store::render(const json &object, const std::vector<std::string> &expand) {
    ExpandTree tree;
    for (const std::string &path : expand) {
        ExpandTree *node = &tree;
        for (std::size_t at = 0; at <= path.size();) {
            const std::size_t dot = std::min(path.find('.', at), path.size());
            node = &node->members[path.substr(at, dot - at)];
            at = dot + 1;
        }
    }
    return render(object, tree);
}

json Store::render(const json &object, const ExpandTree &expand) {
    static const ExpandTree kNothing;
    // In an event's data the member of that name is the object itself.
    const auto kind_member = object.find("object");
    const std::string kind =
        kind_member != object.end() && kind_member->is_string() ? kind_member->get<std::string>() : "";
    json out = json::object();
    for (const auto &[name, value] : object.items()) {
        const auto wanted = expand.members.find(name);
        const bool asked = wanted != expand.members.end();
        const ExpandTree &below = asked ? wanted->second : kNothing;
        if (name.starts_with('_') || (hidden(kind, name) && !asked))
            continue;
        // A subscription item shows its price whole; elsewhere an id becomes an object only on request.
        const bool embeds = asked || (kind == "subscription_item" && name == "price");
        const auto expandable = kExpandable.find(name);
        if (value.is_string() && embeds && expandable != kExpandable.end()) {
            out[name] = render(get(expandable->second, value), below);
        } else if (value.is_object()) {
            out[name] = render(value, below);
        } else if (value.is_array()) {
            json &array = out[name] = json::array();
            for (const json &element : value)
                array.push_back(element.is_object() ? render(element, below) : element);
        } else if (asked && !value.is_null()) {
            throw invalid("This property cannot be expanded (" + name + ").", "expand");
        } else {
            out[name] = value;
        }
    }
    if (object.contains("_lines"))
        out["lines"] = render(embedded_lines(object, object.value("id", "")), kNothing);
    for (const auto &[name, below] : expand.members)
        if (!out.contains(name) && !hidden(kind, name))
            throw invalid("This property cannot be expanded (" + name + ").", "expand");
    return out;
}

void Store::emit(const std::string &type, const json &object, const json &before) {
    json data = {{"object", render(object)}};
    if (before.is_object()) {
        const json old = render(before);
        json &previous = data["previous_attributes"] = json::object();
        for (const auto &[name, value] : old.items())
            if (data["object"].value(name, json()) != value)
                previous[name] = value;
    }
    json &event = add({{"id", new_id("evt", 24)},
                       {"object", "event"},
                       {"api_version", "2026-10-28.endive"},
                       {"created", time_of(object)},
                       {"data", std::move(data)},
                       {"livemode", false},
                       {"pending_webhooks", 0},
                       {"request", request},
                       {"type", type}});
    if (on_event)
        on_event(event);
}

json Store::counts() const {
    json out = json::object();
    for (const auto &[kind, table] : tables_)
        out[kind] = table.rows.size();
    return out;
}

json page_of(const std::vector<const json *> &newest_first, const std::string &url, const json &params) {
    const std::int64_t limit = params.value("limit", std::int64_t{10});
    if (limit < 1 || limit > 100)
        throw invalid(
            "This value must be between 1 and 100 (it currently is '" + std::to_string(limit) + "').",
            "limit", "parameter_invalid_integer");
    if (params.contains("starting_after") && params.contains("ending_before"))
        throw invalid("You cannot parameterize the query with both ending_before and starting_after.");
    const auto position = [&](const char *cursor) {
        const std::string id = params.at(cursor);
        const auto at = std::find_if(newest_first.begin(), newest_first.end(),
                                     [&](const json *row) { return row->at("id") == id; });
        if (at == newest_first.end())
            throw no_such("object", id, cursor);
        return at - newest_first.begin();
    };
    std::ptrdiff_t first = 0, last = static_cast<std::ptrdiff_t>(newest_first.size());
    bool more = false;
    if (params.contains("ending_before")) {
        last = position("ending_before");
        first = std::max<std::ptrdiff_t>(0, last - limit);
        more = first > 0;
    } else {
        if (params.contains("starting_after"))
            first = position("starting_after") + 1;
        more = last - first > limit;
        last = std::min<std::ptrdiff_t>(last, first + limit);
    }
    json data = json::array();
    for (std::ptrdiff_t i = first; i < last; ++i)
        data.push_back(*newest_first[static_cast<std::size_t>(i)]);
    return {{"object", "list"}, {"data", std::move(data)}, {"has_more", more}, {"url", url}};
}

bool in_range(const json &filter, std::int64_t value) {
    if (filter.is_null())
        return true;
    if (filter.is_number())
        return value == filter.get<std::int64_t>();
    return (!filter.contains("gt") || value > filter["gt"].get<std::int64_t>()) &&
           (!filter.contains("gte") || value >= filter["gte"].get<std::int64_t>()) &&
           (!filter.contains("lt") || value < filter["lt"].get<std::int64_t>()) &&
           (!filter.contains("lte") || value <= filter["lte"].get<std::int64_t>());
}

void merge_metadata(json &object, const json &params) {
    const auto given = params.find("metadata");
    if (given == params.end())
        return;
    json &metadata = object["metadata"];
    if (given->is_string()) {
        metadata = json::object();
        return;
    }
    for (const auto &[key, value] : given->items())
        if (value == "")
            metadata.erase(key);
        else
            metadata[key] = value;
}

}  // namespace pg_billing::sandbox
