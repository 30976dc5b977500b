// The server of the `static` scenario: net/http, on $PORT; with $SHARED several processes bind it by SO_REUSEPORT.
package main

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"syscall"
)

func main() {
	if count := os.Getenv("PROCESSES"); count == "2" {
		os.Setenv("PROCESSES", "1")
		other := exec.Command(os.Args[0])
		other.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
		if err := other.Start(); err != nil {
			panic(err)
		}
	}
	config := net.ListenConfig{}
	if os.Getenv("SHARED") != "" {
		config.Control = func(_, _ string, raw syscall.RawConn) error {
			const reusePort = 15
			return raw.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, reusePort, 1) })
		}
	}
	listener, err := config.Listen(context.Background(), "tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		panic(err)
	}
	body := []byte("hello, world\n")
	http.Serve(listener, http.HandlerFunc(func(to http.ResponseWriter, _ *http.Request) { to.Write(body) }))
}
