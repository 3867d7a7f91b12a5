#include "worker/transfer.hpp"

#include <stdexcept>
#include <utility>

#include "worker/curl.hpp"

namespace pg_billing {
namespace {

constexpr std::size_t kLargestAnswer = 8 << 20;

using namespace curl;

// Where requests go.
struct Base {
    std::string url, scheme;
};

// Checks where a secret would be sent.
Base check_base(const char *setting, const std::string &base) {
    const Url url(curl_url());
    const auto refuse = [&](const char *reason) {
        throw std::invalid_argument(std::string(setting) + " \"" + base + "\" " + reason);
    };
    if (curl_url_set(url.get(), CURLUPART_URL, base.c_str(), 0) != CURLUE_OK)
        refuse("is not a URL");
    const std::string scheme = part(url.get(), CURLUPART_SCHEME);
    if (scheme != "https" && !(scheme == "http" && is_loopback(part(url.get(), CURLUPART_HOST))))
        refuse("must use https (http only to this machine)");
    const std::string path = part(url.get(), CURLUPART_PATH);
    if ((!path.empty() && path != "/") || base.find_first_of("?#@") != std::string::npos)
        refuse("must be a scheme, a host and perhaps a port only");
    return {base.substr(0, base.size() - base.ends_with('/')), scheme};
}

}  // namespace

struct Transfers::Transfer {
    std::size_t tag;
    Easy handle = easy();
    Headers headers;
    stripe::Answer answer;
    bool too_long = false;
    char error[CURL_ERROR_SIZE] = "";

    // Called by libcurl, through whose frames nothing may be thrown.
    static std::size_t on_body(char *data, std::size_t, std::size_t size, void *self) noexcept {
        auto *transfer = static_cast<Transfer *>(self);
        transfer->too_long = transfer->answer.body.size() + size > kLargestAnswer;
        if (transfer->too_long)
            return 0;
        try {
            transfer->answer.body.append(data, size);
        } catch (...) {
            return 0;
        }
        return size;
    }

    static std::size_t on_header(char *data, std::size_t, std::size_t size, void *self) noexcept {
        try {
            static_cast<Transfer *>(self)->answer.read_header({data, size});
        } catch (...) {
            return 0;
        }
        return size;
    }
};

struct Transfers::Impl {
    TransferOptions options;
    const ApiKey &key;
    Base api, stream;
    Pool<Transfer> pool;

    Impl(TransferOptions given, const ApiKey &api_key)
        : options(std::move(given)),
          key(api_key),
          api(check_base("pg_billing.stripe_api_base", options.api_base)),
          stream(check_base("pg_billing.stripe_stream_base", options.stream_base)) {}

    void configure(Transfer &transfer, const Request &request);
    static Finished finish(Transfer &transfer, CURLcode code);
};

void Transfers::Impl::configure(Transfer &transfer, const Request &request) {
    CURL *handle = transfer.handle.get();
    const bool posts = request.method == "POST";
    const Base &base = request.token.empty() ? api : stream;
    std::string url = base.url + request.path;
    if (!posts && !request.body.empty())
        url += "?" + request.body;

    std::string authorization = "Authorization: Bearer ";
    authorization += request.token.empty() ? std::string_view(key.text()) : request.token;
    add(transfer.headers, authorization);
    explicit_bzero(authorization.data(), authorization.size());
    add(transfer.headers, "Stripe-Version: " + options.version);
    if (posts) {
        if (!request.idempotency_key.empty())
            add(transfer.headers, "Idempotency-Key: " + request.idempotency_key);
        if (request.json)
            add(transfer.headers, "Content-Type: application/json");
        add(transfer.headers, "Expect:");
        set(handle, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request.body.size()));
        set(handle, CURLOPT_COPYPOSTFIELDS, request.body.c_str());
    } else {
        set(handle, CURLOPT_CUSTOMREQUEST, request.method.c_str());
    }
    const long milliseconds = std::chrono::milliseconds(options.timeout).count();
    set(handle, CURLOPT_URL, url.c_str());
    set(handle, CURLOPT_HTTPHEADER, transfer.headers.get());
    set(handle, CURLOPT_USERAGENT, kUserAgent);
    set(handle, CURLOPT_PROTOCOLS_STR, base.scheme.c_str());
    set(handle, CURLOPT_FOLLOWLOCATION, 0L);
    set(handle, CURLOPT_NOSIGNAL, 1L);
    set(handle, CURLOPT_SSLVERSION, static_cast<long>(CURL_SSLVERSION_TLSv1_2));
    set(handle, CURLOPT_SSL_VERIFYPEER, 1L);
    set(handle, CURLOPT_SSL_VERIFYHOST, 2L);
    // Rather another request on a connection of HTTP/2 than a connection of its own for each.
    set(handle, CURLOPT_PIPEWAIT, 1L);
    if (!options.ca_file.empty())
        set(handle, CURLOPT_CAINFO, options.ca_file.c_str());
    // Plain http is for a server on this machine: a proxy would carry the key elsewhere unencrypted.
    if (base.scheme == "http")
        set(handle, CURLOPT_NOPROXY, "*");
    set(handle, CURLOPT_CONNECTTIMEOUT_MS, milliseconds);
    set(handle, CURLOPT_TIMEOUT_MS, milliseconds);
    set(handle, CURLOPT_ERRORBUFFER, transfer.error);
    set(handle, CURLOPT_WRITEFUNCTION, &Transfer::on_body);
    set(handle, CURLOPT_WRITEDATA, static_cast<void *>(&transfer));
    set(handle, CURLOPT_HEADERFUNCTION, &Transfer::on_header);
    set(handle, CURLOPT_HEADERDATA, static_cast<void *>(&transfer));
}

Finished Transfers::Impl::finish(Transfer &transfer, CURLcode code) {
    stripe::Answer answer = std::move(transfer.answer);
    if (code == CURLE_OK) {
        answer.status = status_of(transfer.handle.get());
    } else {
        // The answer may have been cut off, so even its status says nothing of the effect.
        answer = {};
        answer.network_error = transfer.too_long ? "the answer is longer than 8 MiB"
                               : *transfer.error ? transfer.error
                                                 : curl_easy_strerror(code);
    }
    return {transfer.tag, std::move(answer)};
}

Transfers::Transfers(TransferOptions options, const ApiKey &key)
    : impl_(std::make_unique<Impl>(std::move(options), key)) {}

Transfers::~Transfers() = default;

void Transfers::start(const Request &request) {
    auto transfer = std::make_unique<Transfer>();
    transfer->tag = request.tag;
    impl_->configure(*transfer, request);
    impl_->pool.start(std::move(transfer));
}

std::size_t Transfers::in_flight() const {
    return impl_->pool.in_flight();
}

std::vector<Finished> Transfers::poll(std::chrono::milliseconds slice) {
    return impl_->pool.poll(slice, Impl::finish);
}

}  // namespace pg_billing
