import io.netty.bootstrap.ServerBootstrap;
import io.netty.buffer.Unpooled;
import io.netty.channel.*;
import io.netty.channel.nio.NioEventLoopGroup;
import io.netty.channel.socket.SocketChannel;
import io.netty.channel.socket.nio.NioServerSocketChannel;
import java.net.InetSocketAddress;

class Netty {
    static class Answer extends ChannelInboundHandlerAdapter {
        public void channelRead(ChannelHandlerContext context, Object message) {
            String body = "peer " + ((InetSocketAddress) context.channel().remoteAddress()).getPort() + "\n";
            String head = "HTTP/1.1 200 OK\r\nContent-Length: " + body.length() + "\r\nConnection: close\r\n\r\n";
            context.writeAndFlush(Unpooled.wrappedBuffer((head + body).getBytes())).addListener(ChannelFutureListener.CLOSE);
        }
    }

    public static void main(String[] args) throws Exception {
        ServerBootstrap server = new ServerBootstrap();
        server.group(new NioEventLoopGroup(1), new NioEventLoopGroup(1)).channel(NioServerSocketChannel.class);
        server.childHandler(new ChannelInitializer<SocketChannel>() {
            protected void initChannel(SocketChannel channel) { channel.pipeline().addLast(new Answer()); }
        });
        server.bind("127.0.0.1", Integer.parseInt(args[0])).sync().channel().closeFuture().sync();
    }
}
