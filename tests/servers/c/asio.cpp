// asio.cpp PORT: answers with the client's port.
#define ASIO_STANDALONE
#include <asio.hpp>
#include <memory>
#include <string>

using asio::ip::tcp;

static void serve(tcp::socket socket) {
    auto client = std::make_shared<tcp::socket>(std::move(socket));
    auto head = std::make_shared<std::string>();
    asio::async_read_until(*client, asio::dynamic_buffer(*head), "\r\n\r\n", [client, head](std::error_code error, std::size_t) {
        if (error) return;
        auto body = "peer " + std::to_string(client->remote_endpoint().port()) + "\n";
        auto answer = std::make_shared<std::string>(
            "HTTP/1.1 200 OK\r\nContent-Length: " + std::to_string(body.size()) + "\r\nConnection: close\r\n\r\n" + body);
        asio::async_write(*client, asio::buffer(*answer), [client, answer](std::error_code, std::size_t) {});
    });
}

static void accept_next(tcp::acceptor &acceptor) {
    acceptor.async_accept([&](std::error_code error, tcp::socket socket) {
        if (!error) serve(std::move(socket));
        accept_next(acceptor);
    });
}

int main(int, char **argv) {
    asio::io_context context;
    tcp::acceptor acceptor(context, tcp::endpoint(asio::ip::address_v4::loopback(), std::stoi(argv[1])));
    accept_next(acceptor);
    context.run();
}
