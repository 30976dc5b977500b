import jakarta.servlet.http.*;
import org.apache.catalina.startup.Tomcat;

class Main {
    public static void main(String[] args) throws Exception {
        Tomcat tomcat = new Tomcat();
        tomcat.setBaseDir(args[1]);
        tomcat.setPort(Integer.parseInt(args[0]));
        tomcat.getConnector();
        var context = tomcat.addContext("", args[1]);
        Tomcat.addServlet(context, "it", new HttpServlet() {
            protected void doGet(HttpServletRequest request, HttpServletResponse response) throws java.io.IOException {
                response.getWriter().print("peer " + request.getRemotePort() + "\n");
            }
        });
        context.addServletMappingDecoded("/", "it");
        tomcat.start();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try { tomcat.stop(); tomcat.destroy(); } catch (Exception e) { e.printStackTrace(); }
        }));
        tomcat.getServer().await();
    }
}
