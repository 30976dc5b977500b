import java.net.*;

class Sockets {
    public static void main(String[] args) throws Exception {
        ServerSocket server = new ServerSocket(Integer.parseInt(args[0]), 100, InetAddress.getByName("127.0.0.1"));
        while (true) {
            Socket client = server.accept();
            new Thread(() -> {
                try (client) {
                    client.getInputStream().read(new byte[4096]);
                    String body = "peer " + client.getPort() + "\n";
                    String head = "HTTP/1.1 200 OK\r\nContent-Length: " + body.length() + "\r\nConnection: close\r\n\r\n";
                    client.getOutputStream().write((head + body).getBytes());
                } catch (java.io.IOException error) {
                    System.err.println(error);
                }
            }).start();
        }
    }
}
