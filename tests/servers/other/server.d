// server PORT: answers with the client's port.
import std.conv, std.socket, std.format;

void main(string[] words) {
    auto server = new TcpSocket();
    server.setOption(SocketOptionLevel.SOCKET, SocketOption.REUSEADDR, true);
    server.bind(new InternetAddress("127.0.0.1", words[1].to!ushort));
    server.listen(100);
    while (true) {
        auto client = server.accept();
        ubyte[4096] head;
        client.receive(head);
        auto port = (cast(InternetAddress) client.remoteAddress).port;
        client.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\npeer %d\n".format(port));
        client.close();
    }
}
