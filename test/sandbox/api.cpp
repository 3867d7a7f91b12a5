#include "test/sandbox/api.hpp"

#include <openssl/evp.h>

#include <algorithm>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>

#include "stripe/form.hpp"
#include "test/sandbox/errors.hpp"

namespace pg_billing::sandbox {
namespace {

namespace asio = boost::asio;

constexpr std::int64_t kKeyMemory = 86'400;
constexpr std::size_t kLogSize = 1'000'000, kMaxKey = 255;
constexpr std::chrono::minutes kNever{5};  // by then nobody waits for the answer any more
constexpr const char *kVersion = "2026-10-28.endive";

// Holds a name in a set while it lives; `free` is false if it was taken.
class Held {
  public:
    Held(std::set<std::string> &names, const std::string &name)
        : names_(names), name_(name), free(name.empty() || names.insert(name).second) {}
    Held(const Held &) = delete;
    ~Held() {
        if (free && !name_.empty())
            names_.erase(name_);
    }

  private:
    std::set<std::string> &names_;
    std::string name_;

  public:
    const bool free;
};

json decode_params(const http::Request &request) {
    try {
        if (request.path.starts_with("/v2/") && !request.body.empty()) {
            json params = json::parse(request.body, nullptr, false);
            if (!params.is_object())
                throw invalid("The body must be a JSON object.");
            return params;
        }
        json params = stripe::decode_form(request.query.empty() || request.body.empty()
                                              ? request.query + request.body
                                              : request.query + "&" + request.body);
        params.dump();  // throws for text that is not UTF-8
        return params;
    } catch (const stripe::FormError &e) {
        throw invalid(e.what());
    } catch (const json::exception &) {
        throw invalid("Invalid UTF-8 in the parameters.");
    }
}

// Reads the key from "Bearer KEY" or, as curl -u KEY: sends it, from "Basic base64(KEY:)"; "" if there is none.
std::string api_key_of(std::string_view header) {
    if (header.starts_with("Bearer "))
        return std::string(header.substr(7));
    if (!header.starts_with("Basic ") || header.size() > 1024)
        return {};
    const std::string_view encoded = header.substr(6);
    std::string decoded(encoded.size(), '\0');
    const int length = EVP_DecodeBlock(reinterpret_cast<unsigned char *>(decoded.data()),
                                       reinterpret_cast<const unsigned char *>(encoded.data()),
                                       static_cast<int>(encoded.size()));
    decoded.resize(static_cast<std::size_t>(std::max(length, 0)));
    return decoded.substr(0, decoded.find(':'));
}

ApiError rate_limit(const std::string &message, const std::string &reason) {
    ApiError error(429, "invalid_request_error", message, "rate_limit");
    error.fields.emplace_back("stripe-rate-limited-reason", reason);
    return error;
}

ApiError failure_of(const Fault &fault) {
    ApiError error = fault.kind == "429"
                         ? rate_limit("Request rate limit exceeded (on demand).", "global-rate")
                     : fault.kind == "409"
                         ? ApiError(409, "invalid_request_error", "Another request conflicts (on demand).")
                         : ApiError(500, "api_error", "An unknown error occurred (on demand).");
    if (fault.retry_after)
        error.fields.emplace_back("retry-after", std::to_string(*fault.retry_after));
    if (fault.should_retry)
        error.fields.emplace_back("stripe-should-retry", *fault.should_retry ? "true" : "false");
    return error;
}

std::vector<std::string> expand_of(const json &params) {
    return params.value("expand", std::vector<std::string>());
}

http::Response json_response(int status, const json &body) {
    http::Response response;
    response.status = static_cast<unsigned>(status);
    response.fields.emplace_back("content-type", "application/json");
    response.body = body.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
    return response;
}

}  // namespace

void Api::authenticate(const http::Request &request) const {
    const std::string key = api_key_of(request.field("authorization").value_or(""));
    if (key.empty())
        throw ApiError(401, "invalid_request_error", "You did not provide an API key.");
    if (request.path == EventStream::kPath)
        return stream_token(key);
    if (!(key.starts_with("sk_test_") || key.starts_with("rk_test_")) || key == "sk_test_invalid")
        throw ApiError(401, "invalid_request_error",
                       "Invalid API Key provided: " + key.substr(0, 8) + "****");
    if (key == "rk_test_readonly" && request.method != "GET")
        throw ApiError(
            403, "invalid_request_error",
            "The provided key 'rk_test_****only' does not have the required permissions for this endpoint.");
}

const Api::Remembered *Api::recall(const Keyed &keyed) {
    const auto found = remembered_.find(keyed.key);
    if (found == remembered_.end() || found->second.expires <= machine_time())
        return nullptr;
    if (found->second.fingerprint != keyed.fingerprint)
        throw ApiError(
            400, "idempotency_error",
            "Keys for idempotent requests can only be used with the same parameters they were first used "
            "with. Try using a key other than '" +
                keyed.key + "' if you meant to execute a different request.");
    return &found->second;
}

Api::Result Api::execute(const http::Request &request, const json &params) {
    Call call;
    const Endpoint *endpoint = catalog_.find(request.method, request.path, call.args);
    if (endpoint && !endpoint->removed_in.empty())
        throw ApiError(404, "invalid_request_error",
                       request.method + " " + endpoint->path + " was removed in API version " +
                           endpoint->removed_in +
                           (endpoint->replaced_by.empty() ? "." : "; use " + endpoint->replaced_by + "."));
    if (!endpoint)
        throw ApiError(404, "invalid_request_error",
                       "Unrecognized request URL (" + request.method + ": " + request.path + ").");
    if (!endpoint->handler)
        throw not_modelled(request.method + " " + endpoint->path);
    call.params = Catalog::check(*endpoint, params);
    Result result;
    try {
        result.body = store_.render(endpoint->handler(call), expand_of(call.params));
    } catch (const ApiError &error) {
        result = {error.status, error.body(), error.fields};
    }
    return result;
}

Api::Result Api::execute_once(const http::Request &request, const json &params, const Keyed &keyed) {
    if (keyed.key.empty())
        return execute(request, params);
    if (const Remembered *earlier = recall(keyed)) {
        Result replay = earlier->result;
        replay.replayed = true;
        replay.fields.emplace_back("idempotent-replayed", "true");
        replay.fields.emplace_back("original-request", earlier->request_id);
        return replay;
    }
    Result result = execute(request, params);  // throws, and so remembers nothing, where no handler began
    remembered_[keyed.key] = {keyed.fingerprint, keyed.request_id, result, machine_time() + kKeyMemory};
    return result;
}

bool Api::within_rate() {
    if (rate_ == 0)
        return true;
    const auto now = std::chrono::steady_clock::now();
    tokens_ = std::min(rate_, tokens_ + rate_ * std::chrono::duration<double>(now - filled_).count());
    filled_ = now;
    if (tokens_ < 1) {
        ++too_many_;
        return false;
    }
    tokens_ -= 1;
    return true;
}

asio::awaitable<Api::Result> Api::serve(const http::Request &request, json &entry) {
    const json params = decode_params(request);
    entry["params"] = params;
    authenticate(request);
    if (request.path != EventStream::kPath && !within_rate())  // the stream has limits of its own
        throw rate_limit("Request rate limit exceeded.", "global-rate");
    const Keyed keyed{
        request.method == "POST" ? std::string(request.field("idempotency-key").value_or("")) : "",
        request.method + " " + request.path + "\n" + params.dump(), entry["request_id"]};
    if (keyed.key.size() > kMaxKey)
        throw invalid("Idempotency keys may have up to 255 characters.");

    const Held one_key(under_way_, keyed.key.empty() ? "" : "key " + keyed.key);
    if (!one_key.free)
        throw ApiError(409, "idempotency_error",
                       "There is currently another in-progress request using this Idempotent Key.",
                       "idempotency_key_in_use");
    const std::string meter_of_customer = Meters::exclusive_key(request.method, request.path, params);
    const Held one_call(under_way_, meter_of_customer.empty() ? "" : "meter " + meter_of_customer);
    if (!one_call.free) {
        ++overlaps_;
        throw rate_limit("Another meter event for this customer and meter is being processed.",
                         "resource-specific");
    }

    const auto fault = request.field("sandbox-faults").value_or("") == "none"
                           ? std::nullopt
                           : faults_.next(request.method, request.path);
    if (fault) {
        entry["fault"] = fault->kind;
        asio::steady_timer pause(co_await asio::this_coro::executor, fault->delay);
        co_await pause.async_wait(asio::use_awaitable);
    }
    const bool remembers = fault && fault->stored && !keyed.key.empty() && !recall(keyed);
    store_.request = {{"id", keyed.request_id},
                      {"idempotency_key", keyed.key.empty() ? json() : json(keyed.key)}};
    Result result;
    if (!fault || fault->kind == "slow" || fault->effect)
        result = execute_once(request, params, keyed);
    store_.request = {{"id", nullptr}, {"idempotency_key", nullptr}};
    if (request.method != "GET" && result.status == 200 && result.body.is_object() && !result.replayed) {
        entry["effect"] = result.body.value("id", json());
        entry["time"] = store_.time_of(result.body);
    }
    if (remembers)
        remembered_[keyed.key] = {keyed.fingerprint,
                                  keyed.request_id,
                                  {500, failure_of(*fault).body(), failure_of(*fault).fields},
                                  machine_time() + kKeyMemory};
    if (!fault || fault->kind == "slow")
        co_return result;
    if (fault->kind == "409" || fault->kind == "429" || fault->kind == "500")
        throw failure_of(*fault);
    result.hang_up = true;
    co_return result;
}

asio::awaitable<http::Response> Api::handle(http::Request request) {
    if (request.path.starts_with("/_sandbox/"))
        co_return control(request);
    if (log_.size() == kLogSize)
        log_.pop_front();
    json entry = {{"at", machine_time()},
                  {"method", request.method},
                  {"path", request.path},
                  {"host", request.field("host").value_or("")},
                  {"idempotency_key", request.field("idempotency-key").value_or("")},
                  {"version", request.field("stripe-version").value_or("")},
                  {"request_id", store_.new_id("req")}};
    Result result;
    try {
        result = co_await serve(request, entry);
    } catch (const ApiError &error) {
        result = {error.status, error.body(), error.fields};
    }
    entry["status"] = result.hang_up ? 0 : result.status;
    log_.push_back(entry);
    if (result.hang_up && entry["fault"] == "timeout") {
        asio::steady_timer never(co_await asio::this_coro::executor, kNever);
        co_await never.async_wait(asio::use_awaitable);
    }
    http::Response response = json_response(result.status, result.body);
    response.hang_up = result.hang_up;
    response.fields.emplace_back("request-id", entry["request_id"]);
    response.fields.emplace_back("stripe-version",
                                 entry["version"] == "" ? json(kVersion) : entry["version"]);
    if (entry["idempotency_key"] != "")
        response.fields.emplace_back("idempotency-key", entry["idempotency_key"]);
    for (const auto &field : result.fields)
        response.fields.push_back(field);
    co_return response;
}

json Api::state() {
    return {{"counts", store_.counts()},
            {"meters", meters_.state()},
            {"overlapping_meter_calls", overlaps_},
            {"requests", log_.size()},
            {"refused_for_rate", too_many_}};
}

json Api::requests_under(const std::string &query) const {
    const std::string prefix = stripe::decode_form(query).value("path_prefix", "");
    json out = json::array();
    for (const json &entry : log_)
        if (entry["path"].get_ref<const std::string &>().starts_with(prefix))
            out.push_back(entry);
    return out;
}

http::Response Api::control(const http::Request &request) {
    const std::string what = request.method + " " + request.path;
    try {
        if (what == "POST /_sandbox/faults") {
            const json description = json::parse(request.body, nullptr, false);
            if (!description.is_object())
                throw invalid("the body must be a JSON object");
            faults_.add(description);
            return json_response(200, description);
        }
        if (what == "POST /_sandbox/checkout")
            return json_response(200, complete_checkout(json::parse(request.body, nullptr, false)));
        if (what == "DELETE /_sandbox/faults") {
            faults_.clear();
            return json_response(200, json::object());
        }
        if (what == "POST /_sandbox/usage") {
            const json wish = json::parse(request.body);
            meters_.tamper(wish);
            return json_response(200, wish);
        }
        if (what == "GET /_sandbox/state")
            return json_response(200, state());
        if (what == "GET /_sandbox/requests")
            return json_response(200, requests_under(request.query));
        if (what == "GET /_sandbox/pending")
            return json_response(200, {{"deliveries", pending_deliveries()}});
        if (what == "GET /_sandbox/objects")
            return json_response(200, store_.all(stripe::decode_form(request.query).value("kind", "")));
        if (const auto more = controls.find(what); more != controls.end()) {
            const json description = json::parse(request.body, nullptr, false);
            if (!description.is_object())
                throw invalid("the body must be a JSON object");
            return json_response(200, more->second(description));
        }
        throw ApiError(404, "invalid_request_error", "The sandbox has no control " + what);
    } catch (const ApiError &error) {
        return json_response(error.status, error.body());
    } catch (const stripe::FormError &error) {
        return json_response(400, invalid(error.what()).body());
    } catch (const json::exception &error) {
        return json_response(400, invalid(error.what()).body());
    } catch (const std::invalid_argument &error) {
        return json_response(400, invalid(error.what()).body());
    }
}

}  // namespace pg_billing::sandbox
