// What all uses of libcurl share: its handles, owned and checked, and a pool of transfers under way on the multi interface.
//
// Invariants:
//   - Nothing here blocks for longer than the slice given to poll(): the caller serves interrupts in between.
//   - Threads that libcurl starts (name resolution) never receive a signal meant for the process.
#pragma once

#include <curl/curl.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace pg_billing::curl {

inline constexpr const char *kUserAgent = "pg_billing/" PG_BILLING_VERSION;

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
inline void wipe_headers(curl_slist *list) {
    for (curl_slist *line = list; line; line = line->next)
        explicit_bzero(line->data, strlen(line->data));
    curl_slist_free_all(list);
}
using Headers = std::unique_ptr<curl_slist, Releaser<wipe_headers>>;

inline void check(CURLcode code) {
    if (code != CURLE_OK)
        throw std::runtime_error(std::string("libcurl: ") + curl_easy_strerror(code));
}

inline void check(CURLMcode code) {
    if (code != CURLM_OK)
        throw std::runtime_error(std::string("libcurl: ") + curl_multi_strerror(code));
}

template <class T>
void set(CURL *handle, CURLoption option, T value) {
    check(curl_easy_setopt(handle, option, value));
}

inline void add(Headers &headers, const std::string &line) {
    curl_slist *longer = curl_slist_append(headers.get(), line.c_str());
    if (!longer)
        throw std::bad_alloc();
    headers.release();
    headers.reset(longer);
}

inline std::string part(CURLU *url, CURLUPart which) {
    char *text = nullptr;
    if (curl_url_get(url, which, &text, 0) != CURLUE_OK)
        return {};
    std::string copy = text;
    curl_free(text);
    return copy;
}

inline bool is_loopback(const std::string &host) {
    return host == "localhost" || host == "[::1]" ||
           (host.starts_with("127.") && host.find_first_not_of("0123456789.") == std::string::npos);
}

inline int status_of(CURL *handle) {
    long status = 0;
    curl_easy_getinfo(handle, CURLINFO_RESPONSE_CODE, &status);
    return static_cast<int>(status);
}

inline Easy easy() {
    Easy handle(curl_easy_init());
    if (!handle)
        throw std::bad_alloc();
    return handle;
}

// Transfers under way, each with a member `handle`; `finish` makes a result of one that has ended.
template <class Transfer>
class Pool {
  public:
    Pool() {
        const SignalsBlocked blocked;
        static const CURLcode ready = curl_global_init(CURL_GLOBAL_DEFAULT);
        check(ready);
        multi_.reset(curl_multi_init());
        if (!multi_)
            throw std::bad_alloc();
    }
    ~Pool() {
        for (const auto &[handle, transfer] : running_)
            curl_multi_remove_handle(multi_.get(), handle);
    }
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    void start(std::unique_ptr<Transfer> transfer) {
        CURL *handle = transfer->handle.get();
        running_.emplace(handle, std::move(transfer));
        check(curl_multi_add_handle(multi_.get(), handle));
    }

    std::size_t in_flight() const { return running_.size(); }

    // Moves every transfer on, waiting for at most the slice if nothing happens (there may be none), and returns what
    // became of those that ended.
    template <class Finish>
    auto poll(std::chrono::milliseconds slice, Finish finish) {
        auto finished = perform(finish);
        if (finished.empty()) {
            // Signals stay unblocked: one that arrives ends the wait.
            check(curl_multi_poll(multi_.get(), nullptr, 0, static_cast<int>(slice.count()), nullptr));
            finished = perform(finish);
        }
        return finished;
    }

  private:
    Multi multi_;
    std::unordered_map<CURL *, std::unique_ptr<Transfer>> running_;

    template <class Finish>
    auto perform(Finish finish) {
        const SignalsBlocked blocked;
        int running;
        check(curl_multi_perform(multi_.get(), &running));
        std::vector<decltype(finish(std::declval<Transfer &>(), CURLE_OK))> finished;
        int left;
        while (const CURLMsg *message = curl_multi_info_read(multi_.get(), &left)) {
            if (message->msg != CURLMSG_DONE)
                continue;
            const CURLcode code = message->data.result;
            CURL *handle = message->easy_handle;
            curl_multi_remove_handle(multi_.get(), handle);
            const auto transfer = std::move(running_.extract(handle).mapped());
            finished.push_back(finish(*transfer, code));
        }
        return finished;
    }
};

}  // namespace pg_billing::curl
