// graceful PORT: a server as Go's documentation has it: SIGTERM lets requests finish, and each process may bind the port.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

const soReusePort = 15

func main() {
	control := func(_, _ string, socket syscall.RawConn) (err error) {
		failed := socket.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, soReusePort, 1)
		})
		if failed != nil {
			return failed
		}
		return err
	}
	config := net.ListenConfig{Control: control}
	listener, err := config.Listen(context.Background(), "tcp", ":"+os.Args[1])
	if err != nil {
		panic(err)
	}
	server := http.Server{Handler: http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
		_, port, _ := net.SplitHostPort(request.RemoteAddr)
		fmt.Fprintf(answer, "slot %s peer %s", os.Getenv("ROUNDSMAN_SLOT"), port)
	})}
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	ended := make(chan error)
	go func() {
		<-stop.Done()
		ended <- server.Shutdown(context.Background())
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		panic(err)
	}
	if err := <-ended; err != nil {
		panic(err)
	}
	fmt.Fprintln(os.Stderr, "all requests are finished")
}
