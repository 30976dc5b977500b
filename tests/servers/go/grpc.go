// grpc server ADDRESS: answers with its slot and the client's port; a stop lets calls finish.
// grpc once ADDRESS COUNT: calls on connections of their own; prints the answers, and whether each named the client's port.
// grpc keep ADDRESS: one connection, a call for each line that is read; prints the answer.
// grpc load ADDRESS CLIENTS: calls without a pause until its input ends; prints what became of them.
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/golang/protobuf/ptypes/wrappers"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

const method = "/programs.Names/Peer"

func name(_ interface{}, ctx context.Context, decode func(interface{}) error, _ grpc.UnaryServerInterceptor) (interface{}, error) {
	if err := decode(new(wrappers.StringValue)); err != nil {
		return nil, err
	}
	client, _ := peer.FromContext(ctx)
	_, port, _ := net.SplitHostPort(client.Addr.String())
	return &wrappers.StringValue{Value: "slot " + os.Getenv("ROUNDSMAN_SLOT") + " peer " + port}, nil
}

func serve(address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	pings := keepalive.ServerParameters{Time: time.Second, Timeout: time.Second}
	server := grpc.NewServer(grpc.KeepaliveParams(pings))
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "programs.Names",
		HandlerType: (*interface{})(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Peer", Handler: name}},
	}, struct{}{})
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		server.GracefulStop()
	}()
	return server.Serve(listener)
}

// A channel that notes the port of its last connection.
func dial(address string, port *int64) *grpc.ClientConn {
	dialer := func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err == nil {
			atomic.StoreInt64(port, int64(conn.LocalAddr().(*net.TCPAddr).Port))
		}
		return conn, err
	}
	channel, err := grpc.Dial(address, grpc.WithInsecure(), grpc.WithContextDialer(dialer))
	if err != nil {
		panic(err)
	}
	return channel
}

func call(channel *grpc.ClientConn) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	answer := new(wrappers.StringValue)
	err := channel.Invoke(ctx, method, new(wrappers.StringValue), answer, grpc.WaitForReady(true))
	return answer.Value, err
}

func say(channel *grpc.ClientConn, port *int64) {
	answer, err := call(channel)
	fmt.Printf("%s own %d error %v\n", answer, atomic.LoadInt64(port), err)
}

func load(address string, clients int) {
	var served, unavailable, late, other int64
	var over int32
	var all sync.WaitGroup
	for i := 0; i < clients; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			channel := dial(address, new(int64))
			defer channel.Close()
			for atomic.LoadInt32(&over) == 0 {
				counter := &other
				_, err := call(channel)
				switch status.Code(err) {
				case codes.OK:
					counter = &served
				case codes.Unavailable:
					counter = &unavailable
				case codes.DeadlineExceeded:
					counter = &late
				default:
					fmt.Fprintln(os.Stderr, err)
				}
				atomic.AddInt64(counter, 1)
			}
		}()
	}
	io.Copy(io.Discard, os.Stdin)
	atomic.StoreInt32(&over, 1)
	all.Wait()
	fmt.Printf("served %d unavailable %d late %d other %d\n", served, unavailable, late, other)
}

func main() {
	mode, address := os.Args[1], os.Args[2]
	var port int64
	switch mode {
	case "server":
		if err := serve(address); err != nil {
			panic(err)
		}
	case "once":
		count, _ := strconv.Atoi(os.Args[3])
		for i := 0; i < count; i++ {
			channel := dial(address, &port)
			say(channel, &port)
			channel.Close()
		}
	case "keep":
		channel := dial(address, &port)
		lines := bufio.NewScanner(os.Stdin)
		for lines.Scan() {
			say(channel, &port)
		}
	case "load":
		clients, _ := strconv.Atoi(os.Args[3])
		load(address, clients)
	}
}
