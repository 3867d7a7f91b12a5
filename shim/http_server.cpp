#include "shim/http_server.hpp"

#include <algorithm>
#include <array>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl/ssl_stream.hpp>
#include <cctype>
#include <list>

namespace pg_billing::http {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace bhttp = boost::beast::http;
using asio::awaitable;
using asio::use_awaitable;
using asio::ip::tcp;
using boost::system::error_code;
using std::chrono::milliseconds;

namespace {

using TlsStream = beast::ssl_stream<beast::tcp_stream>;

// What stop() must know of a connection: where its socket is, and whether it is between two requests.
struct Connection {
    tcp::socket *socket;
    std::string peer;
    bool idle = true;
};

auto with_error(error_code &error) {
    return asio::redirect_error(use_awaitable, error);
}

std::string lower(std::string_view text) {
    std::string result(text);
    std::transform(result.begin(), result.end(), result.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return result;
}

Request to_request(bhttp::request<bhttp::string_body> &&message, const std::string &peer) {
    Request request;
    request.method = message.method_string();
    const std::string_view target = message.target();
    const auto question = target.find('?');
    request.path = target.substr(0, question);
    if (question != std::string_view::npos)
        request.query = target.substr(question + 1);
    for (const auto &field : message)
        request.fields.emplace_back(lower(field.name_string()), field.value());
    request.body = std::move(message.body());
    request.peer = peer;
    return request;
}

// The status that answers a request Beast could not read, or 0 when nobody is there to be answered.
unsigned refusal(const error_code &error) {
    if (error == bhttp::error::body_limit)
        return 413;
    if (error == bhttp::error::header_limit)
        return 431;
    if (error == bhttp::error::end_of_stream || error == bhttp::error::partial_message)
        return 0;
    return error.category() == bhttp::make_error_code(bhttp::error::bad_method).category() ? 400 : 0;
}

asio::ssl::context make_tls(const Options &options) {
    asio::ssl::context tls(asio::ssl::context::tls_server);
    tls.set_options(asio::ssl::context::default_workarounds | asio::ssl::context::no_compression);
    SSL_CTX_set_min_proto_version(tls.native_handle(), TLS1_2_VERSION);
    tls.use_certificate_chain_file(options.certificate_file);
    tls.use_private_key_file(options.key_file, asio::ssl::context::pem);
    return tls;
}

}  // namespace

struct Server::Impl : std::enable_shared_from_this<Impl> {
    Impl(asio::io_context &context, Options given, Handler handle)
        : options(std::move(given)), handler(std::move(handle)), acceptor(context), changed(context) {
        if (!options.certificate_file.empty())
            tls.emplace(make_tls(options));
        const tcp::endpoint endpoint(asio::ip::make_address(options.address), options.port);
        acceptor.open(endpoint.protocol());
        acceptor.set_option(tcp::acceptor::reuse_address(true));
        acceptor.bind(endpoint);
        acceptor.listen();
        changed.expires_at(asio::steady_timer::time_point::max());
    }

    Options options;
    Handler handler;
    tcp::acceptor acceptor;
    asio::steady_timer changed;  // never expires; cancelled, that is signalled, when a connection ends
    std::optional<asio::ssl::context> tls;
    std::list<Connection> connections;
    std::size_t bodies = 0;  // bytes of room that requests have taken for their bodies
    bool stopping = false;

    awaitable<void> until_changed() {
        error_code cancelled;
        co_await changed.async_wait(with_error(cancelled));
    }

    Response refuse(unsigned status) const {
        Response response;
        if (options.refuse)
            response = options.refuse(status);
        response.status = status;
        return response;
    }

    // A few hundred connections are counted in no time.
    bool has_enough(const std::string &peer) const {
        return options.max_connections_of_peer > 0 && !(options.unlimited && options.unlimited(peer)) &&
               static_cast<std::size_t>(std::ranges::count(connections, peer, &Connection::peer)) >=
                   options.max_connections_of_peer;
    }

    awaitable<void> accept_loop() {
        while (!stopping) {
            if (connections.size() >= options.max_connections) {
                co_await until_changed();
                continue;
            }
            error_code error;
            tcp::socket socket = co_await acceptor.async_accept(with_error(error));
            if (!error) {
                asio::co_spawn(acceptor.get_executor(), connection(shared_from_this(), std::move(socket)),
                               asio::detached);
            } else if (!stopping) {
                // Out of file descriptors, most likely: accepting again at once would only spin.
                asio::steady_timer pause(acceptor.get_executor(), milliseconds(50));
                co_await pause.async_wait(with_error(error));
            }
        }
    }

    // Serves one connection. Static with a shared pointer: it may outlive the Server.
    static awaitable<void> connection(std::shared_ptr<Impl> self, tcp::socket socket) {
        error_code error;
        socket.set_option(tcp::no_delay(true), error);
        const auto remote = socket.remote_endpoint(error);
        const std::string peer = error ? std::string() : remote.address().to_string();
        if (self->has_enough(peer))
            co_return;
        beast::tcp_stream stream(std::move(socket));
        const auto entry =
            self->connections.insert(self->connections.end(), Connection{&stream.socket(), peer});
        const std::shared_ptr<void> at_end(nullptr, [self, entry](void *) {
            self->connections.erase(entry);
            self->changed.cancel();
        });
        if (!self->tls) {
            co_await self->serve(stream, *entry);
            stream.socket().shutdown(tcp::socket::shutdown_send, error);
        } else {
            TlsStream secure(std::move(stream), *self->tls);
            entry->socket = &secure.next_layer().socket();
            secure.next_layer().expires_after(self->options.timeout);
            co_await secure.async_handshake(asio::ssl::stream_base::server, with_error(error));
            if (!error) {
                co_await self->serve(secure, *entry);
                secure.next_layer().expires_after(milliseconds(1000));
                co_await secure.async_shutdown(with_error(error));
            }
        }
    }

    template <class Stream>
    awaitable<void> serve(Stream &stream, Connection &entry) {
        beast::flat_buffer buffer;
        while (!stopping) {
            auto &lowest = beast::get_lowest_layer(stream);
            lowest.expires_after(options.timeout);
            error_code error;
            if (buffer.size() == 0) {
                // Waits for the first byte apart from the rest, so that stop() can tell idle from busy.
                entry.idle = true;
                const std::size_t n =
                    co_await stream.async_read_some(buffer.prepare(4096), with_error(error));
                if (error)
                    co_return;
                buffer.commit(n);
                entry.idle = false;
                lowest.expires_after(options.timeout);
            }
            bhttp::request_parser<bhttp::string_body> parser;
            parser.header_limit(static_cast<std::uint32_t>(options.header_limit));
            parser.body_limit(options.body_limit);
            co_await bhttp::async_read_header(stream, buffer, parser, with_error(error));
            const std::size_t room = error ? 0 : expected_body(parser);
            if (bodies + room > options.bodies_limit) {
                lowest.expires_after(options.timeout);
                co_await write(stream, refuse(503), 11, false, false);
                co_await discard(stream);
                co_return;
            }
            bodies += room;
            const std::shared_ptr<void> at_end(nullptr, [this, room](void *) { bodies -= room; });
            if (!error && beast::iequals(parser.get()[bhttp::field::expect], "100-continue")) {
                bhttp::response<bhttp::empty_body> go_on(bhttp::status::continue_, 11);
                co_await bhttp::async_write(stream, go_on, with_error(error));
            }
            if (!error)
                co_await bhttp::async_read(stream, buffer, parser, with_error(error));
            // RFC 9112 §3.2: a request without Host, or with two, is refused.
            if (!error && parser.get().version() == 11 && parser.get().count(bhttp::field::host) != 1)
                error = bhttp::make_error_code(bhttp::error::bad_field);
            if (error) {
                if (const unsigned status = refusal(error)) {
                    lowest.expires_after(options.timeout);
                    co_await write(stream, refuse(status), 11, false, false);
                    co_await discard(stream);
                }
                co_return;
            }

            const auto &head = parser.get();
            const unsigned version = head.version();
            const bool no_body = head.method() == bhttp::verb::head;
            bool keep_alive = head.keep_alive();
            lowest.expires_never();
            Response response = co_await answer(to_request(parser.release(), entry.peer));
            if (response.hang_up) {
                lowest.close();
                co_return;
            }
            lowest.expires_after(options.timeout);
            keep_alive = keep_alive && !stopping;
            if (!co_await write(stream, std::move(response), version, keep_alive, no_body) || !keep_alive)
                co_return;
        }
    }

    // How long the body may become: that of a chunked one is not known before.
    std::size_t expected_body(const bhttp::request_parser<bhttp::string_body> &parser) const {
        if (parser.chunked())
            return options.body_limit;
        return static_cast<std::size_t>(parser.content_length().value_or(0));
    }

    awaitable<Response> answer(Request request) {
        try {
            co_return co_await handler(std::move(request));
        } catch (const std::exception &) {
            // Fall through: co_await is not allowed in a handler, and the cause is the handler's to log.
        }
        co_return refuse(500);
    }

    template <class Stream>
    awaitable<bool> write(Stream &stream, Response response, unsigned version, bool keep_alive,
                          bool no_body) {
        bhttp::response<bhttp::string_body> message;
        message.version(version);
        message.result(response.status);
        for (const auto &[name, value] : response.fields)
            message.insert(name, value);
        message.keep_alive(keep_alive);
        message.body() = std::move(response.body);
        if (response.status != 204 && response.status != 304)
            message.content_length(message.body().size());
        if (no_body)
            message.body().clear();
        error_code error;
        co_await bhttp::async_write(stream, message, with_error(error));
        co_return !error;
    }

    // Reads on for a moment after a refusal: closing with unread data resets the connection, and the client
    // would never see why.
    template <class Stream>
    awaitable<void> discard(Stream &stream) {
        auto &lowest = beast::get_lowest_layer(stream);
        error_code error;
        lowest.socket().shutdown(tcp::socket::shutdown_send, error);
        lowest.expires_after(std::min(options.timeout, milliseconds(2000)));
        std::array<char, 16384> unread;
        while (!error)
            co_await lowest.async_read_some(asio::buffer(unread), with_error(error));
    }
};

Server::Server(asio::io_context &context, Options options, Handler handler)
    : impl_(std::make_shared<Impl>(context, std::move(options), std::move(handler))) {
    asio::co_spawn(
        context, [impl = impl_]() { return impl->accept_loop(); }, asio::detached);
}

Server::~Server() {
    stop();
}

std::uint16_t Server::port() const {
    return impl_->acceptor.local_endpoint().port();
}

void Server::reload() {
    if (impl_->tls)
        impl_->tls = make_tls(impl_->options);
}

void Server::stop() {
    if (std::exchange(impl_->stopping, true))
        return;
    error_code ignored;
    impl_->acceptor.close(ignored);
    for (const Connection &connection : impl_->connections)
        if (connection.idle)
            connection.socket->cancel(ignored);
    impl_->changed.cancel();
}

awaitable<void> Server::drained() {
    const auto impl = impl_;
    while (!impl->connections.empty())
        co_await impl->until_changed();
}

}  // namespace pg_billing::http
