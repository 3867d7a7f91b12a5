#include "worker/delivery.hpp"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <stdexcept>
#include <string_view>

#include "notify/address.hpp"
#include "notify/gateway.hpp"
#include "notify/mail.hpp"
#include "notify/signature.hpp"
#include "stripe/retry.hpp"
#include "worker/curl.hpp"
#include "worker/key_file.hpp"

namespace pg_billing {
namespace {

using namespace curl;

constexpr std::size_t kLongestText = 480;  // of a text message, in bytes: three or four parts
constexpr const char *kRefused = "the address is not public";

// Returns the scheme a URL may be used with: https, or http to this machine.
std::string web_scheme(const std::string &url) {
    const Url parsed(curl_url());
    if (curl_url_set(parsed.get(), CURLUPART_URL, url.c_str(), 0) != CURLUE_OK)
        throw std::invalid_argument("it is not a URL");
    const std::string scheme = part(parsed.get(), CURLUPART_SCHEME);
    if (scheme != "https" && !(scheme == "http" && is_loopback(part(parsed.get(), CURLUPART_HOST))))
        throw std::invalid_argument("the URL must use https (http only to this machine)");
    return scheme;
}

// Cuts a text of UTF-8 to so many bytes, between characters.
std::string shortened(std::string text, std::size_t limit) {
    if (text.size() > limit) {
        while (limit > 0 && (static_cast<unsigned char>(text[limit]) & 0xc0) == 0x80)
            limit--;
        text.resize(limit);
    }
    return text;
}

}  // namespace

struct Deliveries::Delivery {
    std::size_t tag;
    std::string kind;
    Easy handle = easy();
    Headers headers, recipients;
    std::string mail;                       // what is left of it to send
    bool refused = false, allowed = false;  // of the addresses that were about to be connected to
    stripe::Answer answer;                  // its Retry-After is what is read of headers
    char error[CURL_ERROR_SIZE] = "";

    // Called by libcurl, through whose frames nothing may be thrown.
    static std::size_t on_body(char *, std::size_t, std::size_t size, void *) noexcept { return size; }

    static std::size_t on_header(char *data, std::size_t, std::size_t size, void *self) noexcept {
        try {
            static_cast<Delivery *>(self)->answer.read_header({data, size});
        } catch (...) {
            return 0;
        }
        return size;
    }

    static std::size_t on_mail(char *buffer, std::size_t, std::size_t size, void *self) noexcept {
        std::string &mail = static_cast<Delivery *>(self)->mail;
        const std::size_t length = std::min(size, mail.size());
        std::copy_n(mail.data(), length, buffer);
        mail.erase(0, length);
        return length;
    }

    // The last moment to look at an address: the name was resolved, and is not resolved again.
    static curl_socket_t on_socket(void *self, curlsocktype, curl_sockaddr *address) noexcept {
        auto *delivery = static_cast<Delivery *>(self);
        const bool allowed = notify::is_public(&address->addr);
        (allowed ? delivery->allowed : delivery->refused) = true;
        return allowed ? socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol)
                       : CURL_SOCKET_BAD;
    }
};

struct Deliveries::Impl {
    DeliveryOptions options;
    Pool<Delivery> pool;

    void configure(Delivery &delivery, const Notification &notification);
    void webhook(Delivery &delivery, const Notification &notification);
    void mail(Delivery &delivery, const Notification &notification);
    void text_message(Delivery &delivery, const Notification &notification);
    void to_web(Delivery &delivery, const std::string &url);
    static Delivered finish(Delivery &delivery, CURLcode code);
};

void Deliveries::Impl::configure(Delivery &delivery, const Notification &notification) {
    CURL *handle = delivery.handle.get();
    const long milliseconds = std::chrono::milliseconds(options.timeout).count();
    set(handle, CURLOPT_USERAGENT, kUserAgent);
    set(handle, CURLOPT_FOLLOWLOCATION, 0L);
    set(handle, CURLOPT_NOSIGNAL, 1L);
    set(handle, CURLOPT_SSLVERSION, static_cast<long>(CURL_SSLVERSION_TLSv1_2));
    set(handle, CURLOPT_SSL_VERIFYPEER, 1L);
    set(handle, CURLOPT_SSL_VERIFYHOST, 2L);
    if (!options.ca_file.empty())
        set(handle, CURLOPT_CAINFO, options.ca_file.c_str());
    set(handle, CURLOPT_CONNECTTIMEOUT_MS, milliseconds);
    set(handle, CURLOPT_TIMEOUT_MS, milliseconds);
    set(handle, CURLOPT_ERRORBUFFER, delivery.error);
    set(handle, CURLOPT_WRITEFUNCTION, &Delivery::on_body);
    set(handle, CURLOPT_HEADERFUNCTION, &Delivery::on_header);
    set(handle, CURLOPT_HEADERDATA, static_cast<void *>(&delivery));
    if (notification.kind == "webhook")
        webhook(delivery, notification);
    else if (notification.kind == "email")
        mail(delivery, notification);
    else
        text_message(delivery, notification);
}

void Deliveries::Impl::to_web(Delivery &delivery, const std::string &url) {
    CURL *handle = delivery.handle.get();
    const std::string scheme = web_scheme(url);
    set(handle, CURLOPT_URL, url.c_str());
    set(handle, CURLOPT_PROTOCOLS_STR, scheme.c_str());
    if (scheme == "http")
        set(handle, CURLOPT_NOPROXY, "*");
    set(handle, CURLOPT_HTTPHEADER, delivery.headers.get());
}

void Deliveries::Impl::webhook(Delivery &delivery, const Notification &notification) {
    CURL *handle = delivery.handle.get();
    const std::int64_t now = time(nullptr);
    add(delivery.headers, "Content-Type: application/json");
    add(delivery.headers, "webhook-id: " + notification.id);
    add(delivery.headers, "webhook-timestamp: " + std::to_string(now));
    add(delivery.headers, "webhook-signature: " +
                              notify::sign(notification.secrets, notification.id, now, notification.payload));
    add(delivery.headers, "Expect:");
    set(handle, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(notification.payload.size()));
    set(handle, CURLOPT_COPYPOSTFIELDS, notification.payload.c_str());
    to_web(delivery, notification.address);
    if (notification.of_tenant && !options.private_addresses) {
        set(handle, CURLOPT_NOPROXY, "*");
        set(handle, CURLOPT_OPENSOCKETFUNCTION, &Delivery::on_socket);
        set(handle, CURLOPT_OPENSOCKETDATA, static_cast<void *>(&delivery));
    }
}

void Deliveries::Impl::mail(Delivery &delivery, const Notification &notification) {
    if (options.smtp_url.empty() || options.mail_from.empty())
        throw std::runtime_error("pg_billing.smtp_url and pg_billing.mail_from are not both set");
    CURL *handle = delivery.handle.get();
    const Url url(curl_url());
    if (curl_url_set(url.get(), CURLUPART_URL, options.smtp_url.c_str(), 0) != CURLUE_OK)
        throw std::invalid_argument("pg_billing.smtp_url is not a URL");
    const std::string scheme = part(url.get(), CURLUPART_SCHEME);
    if (scheme != "smtp" && scheme != "smtps")
        throw std::invalid_argument("pg_billing.smtp_url must use smtp or smtps");
    // On this machine as the server offers, elsewhere never without: neither password nor mail are for others' eyes.
    const bool local = is_loopback(part(url.get(), CURLUPART_HOST));
    set(handle, CURLOPT_URL, options.smtp_url.c_str());
    set(handle, CURLOPT_PROTOCOLS_STR, scheme.c_str());
    set(handle, CURLOPT_NOPROXY, "*");
    set(handle, CURLOPT_USE_SSL, static_cast<long>(local ? CURLUSESSL_TRY : CURLUSESSL_ALL));
    if (!options.smtp_user.empty()) {
        const ApiKey password(options.smtp_password_file, "SMTP password");
        set(handle, CURLOPT_USERNAME, options.smtp_user.c_str());
        set(handle, CURLOPT_PASSWORD, password.text());
    }
    const std::string from = notify::bare_address(options.mail_from);
    set(handle, CURLOPT_MAIL_FROM, from.c_str());
    add(delivery.recipients, notify::bare_address(notification.address));
    set(handle, CURLOPT_MAIL_RCPT, delivery.recipients.get());
    delivery.mail = notify::compose({options.mail_from, notification.address, notification.title,
                                     notification.message, notification.id, time(nullptr)});
    set(handle, CURLOPT_UPLOAD, 1L);
    set(handle, CURLOPT_READFUNCTION, &Delivery::on_mail);
    set(handle, CURLOPT_READDATA, static_cast<void *>(&delivery));
}

void Deliveries::Impl::text_message(Delivery &delivery, const Notification &notification) {
    if (options.sms_url.empty())
        throw std::runtime_error("pg_billing.sms_url is not set");
    CURL *handle = delivery.handle.get();
    const notify::GatewayRequest request =
        notify::fill(options.sms_url, options.sms_body, notification.address,
                     shortened(notification.message, kLongestText), notification.id);
    if (!options.sms_token_file.empty()) {
        const ApiKey token(options.sms_token_file, "text message gateway's token");
        std::string line = "Authorization: " + notify::authorization(token.text());
        add(delivery.headers, line);
        explicit_bzero(line.data(), line.size());
    }
    add(delivery.headers, "Idempotency-Key: " + notification.id);
    if (!request.content_type.empty()) {
        add(delivery.headers, "Content-Type: " + request.content_type);
        add(delivery.headers, "Expect:");
        set(handle, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request.body.size()));
        set(handle, CURLOPT_COPYPOSTFIELDS, request.body.c_str());
    }
    to_web(delivery, request.url);
}

Delivered Deliveries::Impl::finish(Delivery &delivery, CURLcode code) {
    const int status = status_of(delivery.handle.get());
    if (delivery.refused && !delivery.allowed)
        return {delivery.tag, {notify::Outcome::dead, kRefused}, 0, {}};
    const std::string trouble = code == CURLE_OK  ? ""
                                : *delivery.error ? delivery.error
                                                  : curl_easy_strerror(code);
    return {delivery.tag, notify::judge(delivery.kind, status, trouble), status, delivery.answer.retry_after};
}

Deliveries::Deliveries(DeliveryOptions options) : impl_(std::make_unique<Impl>()) {
    impl_->options = std::move(options);
}

Deliveries::~Deliveries() = default;

void Deliveries::start(const Notification &notification) {
    auto delivery = std::make_unique<Delivery>();
    delivery->tag = notification.tag;
    delivery->kind = notification.kind;
    impl_->configure(*delivery, notification);
    impl_->pool.start(std::move(delivery));
}

std::size_t Deliveries::in_flight() const {
    return impl_->pool.in_flight();
}

std::vector<Delivered> Deliveries::poll(std::chrono::milliseconds slice) {
    return impl_->pool.poll(slice, Impl::finish);
}

}  // namespace pg_billing
