// Server.exe KIND PORT: answers with the client's port.
using System;
using System.Net;
using System.Net.Sockets;
using System.Text;
using System.Threading;

class Server {
    static void Main(string[] words) {
        int port = int.Parse(words[1]);
        if (words[0] == "http") Http(port); else Sockets(port);
    }

    static void Http(int port) {
        var server = new HttpListener();
        server.Prefixes.Add("http://127.0.0.1:" + port + "/");
        server.Start();
        while (true) {
            var context = server.GetContext();
            byte[] body = Encoding.ASCII.GetBytes("peer " + context.Request.RemoteEndPoint.Port + "\n");
            context.Response.ContentLength64 = body.Length;
            context.Response.OutputStream.Write(body, 0, body.Length);
            context.Response.Close();
        }
    }

    static void Sockets(int port) {
        var server = new TcpListener(IPAddress.Loopback, port);
        server.Start();
        while (true) {
            var client = server.AcceptTcpClient();
            ThreadPool.QueueUserWorkItem(_ => {
                using (client) {
                    var stream = client.GetStream();
                    stream.Read(new byte[4096], 0, 4096);
                    int peer = ((IPEndPoint)client.Client.RemoteEndPoint).Port;
                    byte[] text = Encoding.ASCII.GetBytes("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\npeer " + peer + "\n");
                    stream.Write(text, 0, text.Length);
                }
            });
        }
    }
}
