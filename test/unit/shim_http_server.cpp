// The HTTP server over a real socket: limits, keep-alive, draining, and what a client sees of a failing
// handler.
#include "shim/http_server.hpp"

#include <gtest/gtest.h>
#include <poll.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <future>
#include <thread>

namespace pg_billing::http {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;

asio::awaitable<Response> echo(Request request) {
    if (request.path == "/throw")
        throw std::runtime_error("secret");
    Response response;
    response.hang_up = request.path == "/hang-up";
    response.fields.emplace_back("content-type", "text/plain");
    response.body = request.method + " " + request.path + " [" + request.query + "] " + request.body;
    co_return response;
}

class HttpServer : public testing::Test {
  protected:
    void start(Options options = {}) {
        options.refuse = [](unsigned status) {
            Response response;
            response.body = "refused " + std::to_string(status);
            return response;
        };
        server_.emplace(context_, options, echo);
        port_ = server_->port();
        thread_ = std::thread([this] { context_.run(); });
    }

    void TearDown() override {
        asio::post(context_, [this] { server_->stop(); });
        thread_.join();
    }

    tcp::socket connect() {
        tcp::socket socket(client_);
        socket.connect({asio::ip::address_v4::loopback(), port_});
        return socket;
    }

    // Sends bytes and returns everything the server says until it closes the connection.
    std::string exchange(const std::string &bytes) {
        tcp::socket socket = connect();
        boost::system::error_code error;
        asio::write(socket, asio::buffer(bytes), error);
        return rest(socket);
    }

    template <class Stream>
    static std::string rest(Stream &stream) {
        std::string answer;
        boost::system::error_code error;
        asio::read(stream, asio::dynamic_buffer(answer), error);
        return answer;
    }

    static std::string status_of(const std::string &answer) { return answer.substr(0, 12); }

    asio::io_context context_, client_;
    std::optional<Server> server_;
    std::uint16_t port_ = 0;
    std::thread thread_;
};

TEST_F(HttpServer, SplitsTheTargetAndAnswers) {
    start();
    const std::string answer =
        exchange("POST /a%20b?x=1&y HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi");
    EXPECT_EQ(status_of(answer), "HTTP/1.1 200");
    EXPECT_NE(answer.find("\r\n\r\nPOST /a%20b [x=1&y] hi"), std::string::npos) << answer;
}

TEST_F(HttpServer, KeepsTheConnectionForPipelinedRequests) {
    start();
    const std::string answer =
        exchange("GET /1 HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    EXPECT_NE(answer.find("GET /1 []"), std::string::npos) << answer;
    EXPECT_NE(answer.find("GET /2 []"), std::string::npos) << answer;
}

TEST_F(HttpServer, ReadsChunkedBodies) {
    start();
    const std::string answer = exchange(
        "POST /c HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    EXPECT_NE(answer.find("POST /c [] abcde"), std::string::npos) << answer;
}

TEST_F(HttpServer, ReadsABodyOnlyIfThereIsRoom) {
    Options options;
    options.bodies_limit = 10;
    options.body_limit = 8;
    start(options);
    const std::string head = "POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n";
    tcp::socket first = connect();
    asio::write(first, asio::buffer(head + "Expect: 100-continue\r\nContent-Length: 8\r\n\r\n"));
    std::string go_on(25, '\0');  // the room is taken once it says so
    asio::read(first, asio::buffer(go_on));
    EXPECT_EQ(status_of(go_on), "HTTP/1.1 100");
    EXPECT_EQ(status_of(exchange(head + "Content-Length: 3\r\n\r\nabc")), "HTTP/1.1 503");
    EXPECT_EQ(status_of(exchange(head + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")), "HTTP/1.1 503");
    EXPECT_EQ(status_of(exchange(head + "Content-Length: 2\r\n\r\nab")), "HTTP/1.1 200");
    asio::write(first, asio::buffer(std::string("12345678")));
    EXPECT_NE(rest(first).find("12345678"), std::string::npos);
    EXPECT_EQ(status_of(exchange(head + "Content-Length: 8\r\n\r\nabcdefgh")), "HTTP/1.1 200");
}

TEST_F(HttpServer, HeadHasNoBody) {
    start();
    const std::string answer = exchange("HEAD /h HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    EXPECT_NE(answer.find("Content-Length: 11"), std::string::npos) << answer;
    EXPECT_TRUE(answer.ends_with("\r\n\r\n")) << answer;
}

TEST_F(HttpServer, AThrowingHandlerCostsItsRequestOnly) {
    start();
    const std::string answer = exchange(
        "GET /throw HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    EXPECT_EQ(status_of(answer), "HTTP/1.1 500");
    EXPECT_EQ(answer.find("secret"), std::string::npos);
    EXPECT_NE(answer.find("GET /2"), std::string::npos);
}

TEST_F(HttpServer, HangsUpWhenToldTo) {
    start();
    EXPECT_EQ(exchange("GET /hang-up HTTP/1.1\r\nHost: h\r\n\r\n"), "");
}

TEST_F(HttpServer, RefusesAnOversizedBodyAndTheClientSeesWhy) {
    Options options;
    options.body_limit = 1000;
    start(options);
    // More than the sockets' buffers hold: a server that closes at once would break the client's write.
    tcp::socket socket = connect();
    boost::system::error_code broken;
    const std::string head = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 30000000\r\n\r\n";
    asio::write(socket, asio::buffer(head + std::string(30'000'000, 'x')), broken);
    EXPECT_FALSE(broken) << broken.message();
    socket.shutdown(tcp::socket::shutdown_send, broken);
    const std::string announced = rest(socket);
    EXPECT_EQ(status_of(announced), "HTTP/1.1 413");
    EXPECT_NE(announced.find("refused 413"), std::string::npos);
    std::string chunked = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (int i = 0; i < 30; ++i)
        chunked += "64\r\n" + std::string(100, 'x') + "\r\n";
    EXPECT_EQ(status_of(exchange(chunked)), "HTTP/1.1 413");
    const std::string fits =
        exchange("POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n" +
                 std::string(1000, 'x'));
    EXPECT_EQ(status_of(fits), "HTTP/1.1 200");
}

TEST_F(HttpServer, RefusesOversizedHeaders) {
    Options options;
    options.header_limit = 500;
    start(options);
    EXPECT_EQ(status_of(exchange("GET / HTTP/1.1\r\nHost: h\r\nX: " + std::string(600, 'x') + "\r\n\r\n")),
              "HTTP/1.1 431");
}

TEST_F(HttpServer, RefusesWhatIsNotHttp) {
    start();
    for (const char *bytes : {
             "nonsense\r\n\r\n",
             "GET / HTTP/1.1\r\n\r\n",                        // no Host
             "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",  // two
             "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
             "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
         })
        EXPECT_EQ(status_of(exchange(bytes)), "HTTP/1.1 400") << bytes;
}

TEST_F(HttpServer, AsksForTheBodyWhenTheClientWaits) {
    start();
    tcp::socket socket = connect();
    asio::write(socket, asio::buffer(std::string("PUT / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
                                                 "Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")));
    std::string go_on(25, '\0');
    asio::read(socket, asio::buffer(go_on));
    EXPECT_EQ(go_on, "HTTP/1.1 100 Continue\r\n\r\n");
    asio::write(socket, asio::buffer(std::string("ok")));
    EXPECT_NE(rest(socket).find("PUT / [] ok"), std::string::npos);
}

TEST_F(HttpServer, ClosesASlowRequest) {
    Options options;
    options.timeout = std::chrono::milliseconds(100);
    start(options);
    EXPECT_EQ(exchange("GET / HTTP/1.1\r\nHo"), "");
}

TEST_F(HttpServer, ClosesARequestThatTricklesIn) {
    Options options;
    options.timeout = std::chrono::milliseconds(100);
    start(options);
    tcp::socket socket = connect();
    boost::system::error_code error;
    asio::write(socket, asio::buffer(std::string("GET / HTTP/1.1\r\nHost: ")));
    // A byte, and another when there is no answer to it: ends by the limit of time, or else by that of the size, which is answered.
    pollfd closed{socket.native_handle(), POLLIN, 0};
    do
        asio::write(socket, asio::buffer("h", 1), error);
    while (!error && poll(&closed, 1, 1) == 0);
    EXPECT_EQ(rest(socket), "");
}

TEST_F(HttpServer, OneAddressGetsNotAllConnections) {
    Options options;
    options.max_connections_of_peer = 1;
    options.unlimited = [](const std::string &peer) { return peer != "127.0.0.1"; };
    start(options);
    const std::string request = "GET /1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    tcp::socket first = connect();
    std::string answer(12, '\0');
    asio::write(first, asio::buffer(std::string("GET /1 HTTP/1.1\r\nHost: h\r\n\r\n")));
    asio::read(first, asio::buffer(answer));
    EXPECT_EQ(exchange(request), "");
    tcp::socket other(client_, {asio::ip::make_address_v4("127.0.0.2"), 0});
    other.connect({asio::ip::address_v4::loopback(), port_});
    asio::write(other, asio::buffer(request));
    EXPECT_EQ(status_of(rest(other)), "HTTP/1.1 200");
    asio::write(first, asio::buffer(request));  // one that it has goes on
    EXPECT_NE(rest(first).find("GET /1"), std::string::npos);
    std::string again;
    while (again.empty())  // the place is free once the server has noticed
        again = exchange(request);
    EXPECT_EQ(status_of(again), "HTTP/1.1 200");
}

TEST_F(HttpServer, MoreConnectionsThanAllowedWaitTheirTurn) {
    Options options;
    options.max_connections = 1;
    start(options);
    std::optional<tcp::socket> first = connect();
    asio::write(*first, asio::buffer(std::string("GET /1 HTTP/1.1\r\nHost: h\r\n\r\n")));
    std::string answer(12, '\0');
    asio::read(*first, asio::buffer(answer));
    auto second = std::async(std::launch::async, [&] {
        return exchange("GET /2 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    });
    EXPECT_EQ(second.wait_for(std::chrono::milliseconds(100)), std::future_status::timeout);
    first.reset();
    EXPECT_EQ(status_of(second.get()), "HTTP/1.1 200");
}

TEST_F(HttpServer, StopClosesIdleConnectionsAndDrains) {
    start();
    tcp::socket idle = connect();
    asio::write(idle, asio::buffer(std::string("GET /1 HTTP/1.1\r\nHost: h\r\n\r\n")));
    std::string answer(12, '\0');
    asio::read(idle, asio::buffer(answer));
    std::promise<void> drained;
    asio::co_spawn(
        context_,
        [&]() -> asio::awaitable<void> {
            server_->stop();
            co_await server_->drained();
        },
        [&](std::exception_ptr) { drained.set_value(); });
    EXPECT_EQ(drained.get_future().wait_for(std::chrono::seconds(5)), std::future_status::ready);
    rest(idle);  // returns: the connection was closed
    tcp::socket late(client_);
    boost::system::error_code refused;
    late.connect({asio::ip::address_v4::loopback(), port_}, refused);
    EXPECT_TRUE(refused);
}

TEST(PercentDecode, DecodesOrRefuses) {
    EXPECT_EQ(percent_decode("a%20b+c"), "a b+c");
    EXPECT_EQ(percent_decode("a%20b+c", true), "a b c");
    EXPECT_EQ(percent_decode("%C3%a9"), "\xc3\xa9");
    EXPECT_EQ(percent_decode(""), "");
    EXPECT_EQ(percent_decode("%41"), "A");
    for (const char *malformed : {"%", "%4", "%zz", "a%4g", "%%41"})
        EXPECT_EQ(percent_decode(malformed), std::nullopt) << malformed;
}

}  // namespace
}  // namespace pg_billing::http
