import javax.servlet.http.*;
import org.eclipse.jetty.server.*;
import org.eclipse.jetty.server.handler.AbstractHandler;

class Jetty {
    public static void main(String[] args) throws Exception {
        Server server = new Server(new java.net.InetSocketAddress("127.0.0.1", Integer.parseInt(args[0])));
        server.setHandler(new AbstractHandler() {
            public void handle(String target, Request base, HttpServletRequest request, HttpServletResponse response)
                    throws java.io.IOException {
                base.setHandled(true);
                response.getWriter().print("peer " + request.getRemotePort() + "\n");
            }
        });
        server.setStopAtShutdown(true);
        server.start();
        server.join();
    }
}
