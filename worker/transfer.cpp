#include "worker/transfer.hpp"

#include <curl/curl.h>

#include <csignal>
#include <cstring>
#include <stdexcept>
#include <unordered_map>
#include <utility>

namespace pg_billing {
namespace {

constexpr std::size_t kLargestAnswer = 8 << 20;
constexpr const char *kUserAgent = "pg_billing/" PG_BILLING_VERSION;

class SignalsBlocked {
  public:
    SignalsBlocked() {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

  private:
    sigset_t before_;
};

template <auto release>
struct Releaser {
    void operator()(auto *object) const { release(object); }
};
using Easy = std::unique_ptr<CURL, Releaser<curl_easy_cleanup>>;
using Multi = std::unique_ptr<CURLM, Releaser<curl_multi_cleanup>>;
using Url = std::unique_ptr<CURLU, Releaser<curl_url_cleanup>>;

// A header line may hold the key.
void wipe_headers(curl_slist *list) {
    for (curl_slist *line = list; line; line = line->next)
        explicit_bzero(line->data, strlen(line->data));
    curl_slist_free_all(list);
}
using Headers = std::unique_ptr<curl_slist, Releaser<wipe_headers>>;

void check(CURLcode code) {
    if (code != CURLE_OK)
        throw std::runtime_error(std::string("libcurl: ") + curl_easy_strerror(code));
}

void check(CURLMcode code) {
    if (code != CURLM_OK)
        throw std::runtime_error(std::string("libcurl: ") + curl_multi_strerror(code));
}

template <class T>
void set(CURL *handle, CURLoption option, T value) {
    check(curl_easy_setopt(handle, option, value));
}

void add(Headers &headers, const std::string &line) {
    curl_slist *longer = curl_slist_append(headers.get(), line.c_str());
    if (!longer)
        throw std::bad_alloc();
    headers.release();
    headers.reset(longer);
}

std::string part(CURLU *url, CURLUPart which) {
    char *text = nullptr;
    if (curl_url_get(url, which, &text, 0) != CURLUE_OK)
        return {};
    std::string copy = text;
    curl_free(text);
    return copy;
}

bool is_loopback(const std::string &host) {
    return host == "localhost" || host == "[::1]" || host.starts_with("127.");
}

// Checks where the key would be sent; returns the scheme.
std::string check_base(const std::string &base) {
    const Url url(curl_url());
    const auto refuse = [&](const char *reason) {
        throw std::invalid_argument("pg_billing.stripe_api_base \"" + base + "\" " + reason);
    };
    if (curl_url_set(url.get(), CURLUPART_URL, base.c_str(), 0) != CURLUE_OK)
        refuse("is not a URL");
    const std::string scheme = part(url.get(), CURLUPART_SCHEME);
    if (scheme != "https" && !(scheme == "http" && is_loopback(part(url.get(), CURLUPART_HOST))))
        refuse("must use https (http only to this machine)");
    const std::string path = part(url.get(), CURLUPART_PATH);
    if ((!path.empty() && path != "/") || base.find_first_of("?#@") != std::string::npos)
        refuse("must be a scheme, a host and perhaps a port only");
    return scheme;
}

}  // namespace

struct Transfers::Transfer {
    std::size_t tag;
    Easy handle;
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
    std::string scheme;
    Multi multi;
    std::unordered_map<CURL *, std::unique_ptr<Transfer>> running;

    Impl(TransferOptions given, const ApiKey &api_key) : options(std::move(given)), key(api_key) {}
    ~Impl() {
        for (const auto &[handle, transfer] : running)
            curl_multi_remove_handle(multi.get(), handle);
    }

    void configure(Transfer &transfer, const Request &request);
    Finished finish(CURL *handle, CURLcode code);
};

void Transfers::Impl::configure(Transfer &transfer, const Request &request) {
    CURL *handle = transfer.handle.get();
    const bool posts = request.method == "POST";
    std::string url = options.base;
    if (url.ends_with('/'))
        url.pop_back();
    url += request.path;
    if (!posts && !request.form.empty())
        url += "?" + request.form;

    std::string authorization = std::string("Authorization: Bearer ") + key.text();
    add(transfer.headers, authorization);
    explicit_bzero(authorization.data(), authorization.size());
    add(transfer.headers, "Stripe-Version: " + options.version);
    if (posts) {
        add(transfer.headers, "Idempotency-Key: " + request.idempotency_key);
        add(transfer.headers, "Expect:");
        set(handle, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request.form.size()));
        set(handle, CURLOPT_COPYPOSTFIELDS, request.form.c_str());
    } else {
        set(handle, CURLOPT_CUSTOMREQUEST, request.method.c_str());
    }
    const long milliseconds = std::chrono::milliseconds(options.timeout).count();
    set(handle, CURLOPT_URL, url.c_str());
    set(handle, CURLOPT_HTTPHEADER, transfer.headers.get());
    set(handle, CURLOPT_USERAGENT, kUserAgent);
    set(handle, CURLOPT_PROTOCOLS_STR, scheme.c_str());
    set(handle, CURLOPT_FOLLOWLOCATION, 0L);
    set(handle, CURLOPT_NOSIGNAL, 1L);
    set(handle, CURLOPT_SSLVERSION, static_cast<long>(CURL_SSLVERSION_TLSv1_2));
    set(handle, CURLOPT_SSL_VERIFYPEER, 1L);
    set(handle, CURLOPT_SSL_VERIFYHOST, 2L);
    if (!options.ca_file.empty())
        set(handle, CURLOPT_CAINFO, options.ca_file.c_str());
    // Plain http is for a server on this machine: a proxy would carry the key elsewhere unencrypted.
    if (scheme == "http")
        set(handle, CURLOPT_NOPROXY, "*");
    set(handle, CURLOPT_CONNECTTIMEOUT_MS, milliseconds);
    set(handle, CURLOPT_TIMEOUT_MS, milliseconds);
    set(handle, CURLOPT_ERRORBUFFER, transfer.error);
    set(handle, CURLOPT_WRITEFUNCTION, &Transfer::on_body);
    set(handle, CURLOPT_WRITEDATA, static_cast<void *>(&transfer));
    set(handle, CURLOPT_HEADERFUNCTION, &Transfer::on_header);
    set(handle, CURLOPT_HEADERDATA, static_cast<void *>(&transfer));
}

Finished Transfers::Impl::finish(CURL *handle, CURLcode code) {
    curl_multi_remove_handle(multi.get(), handle);
    const auto transfer = std::move(running.extract(handle).mapped());
    stripe::Answer answer = std::move(transfer->answer);
    if (code == CURLE_OK) {
        long status = 0;
        curl_easy_getinfo(handle, CURLINFO_RESPONSE_CODE, &status);
        answer.status = static_cast<int>(status);
    } else {
        // The answer may have been cut off, so even its status says nothing of the effect.
        answer = {};
        answer.network_error = transfer->too_long ? "the answer is longer than 8 MiB"
                               : *transfer->error ? transfer->error
                                                  : curl_easy_strerror(code);
    }
    return {transfer->tag, std::move(answer)};
}

Transfers::Transfers(TransferOptions options, const ApiKey &key) {
    const SignalsBlocked blocked;
    static const CURLcode ready = curl_global_init(CURL_GLOBAL_DEFAULT);
    check(ready);
    impl_ = std::make_unique<Impl>(std::move(options), key);
    impl_->scheme = check_base(impl_->options.base);
    impl_->multi.reset(curl_multi_init());
    if (!impl_->multi)
        throw std::bad_alloc();
}

Transfers::~Transfers() = default;

void Transfers::start(const Request &request) {
    auto transfer = std::make_unique<Transfer>();
    transfer->tag = request.tag;
    transfer->handle.reset(curl_easy_init());
    if (!transfer->handle)
        throw std::bad_alloc();
    impl_->configure(*transfer, request);
    CURL *handle = transfer->handle.get();
    impl_->running.emplace(handle, std::move(transfer));
    check(curl_multi_add_handle(impl_->multi.get(), handle));
}

std::size_t Transfers::in_flight() const {
    return impl_->running.size();
}

std::vector<Finished> Transfers::poll(std::chrono::milliseconds slice) {
    const auto perform = [&] {
        const SignalsBlocked blocked;
        int running;
        check(curl_multi_perform(impl_->multi.get(), &running));
        std::vector<Finished> finished;
        int left;
        while (const CURLMsg *message = curl_multi_info_read(impl_->multi.get(), &left))
            if (message->msg == CURLMSG_DONE)
                finished.push_back(impl_->finish(message->easy_handle, message->data.result));
        return finished;
    };
    std::vector<Finished> finished = perform();
    if (finished.empty()) {
        // Signals stay unblocked: one that arrives ends the wait.
        check(curl_multi_poll(impl_->multi.get(), nullptr, 0, static_cast<int>(slice.count()), nullptr));
        finished = perform();
    }
    return finished;
}

}  // namespace pg_billing
