// server [PORT...]: answers with its slot and the client's port.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
)

func main() {
	http.HandleFunc("/", func(answer http.ResponseWriter, request *http.Request) {
		_, port, _ := net.SplitHostPort(request.RemoteAddr)
		fmt.Fprintf(answer, "slot %s peer %s", os.Getenv("ROUNDSMAN_SLOT"), port)
	})
	ports := os.Args[1:]
	if len(ports) == 0 {
		ports = []string{os.Getenv("PORT")}
	}
	for _, port := range ports[1:] {
		go serve(port)
	}
	serve(ports[0])
}

func serve(port string) {
	panic(http.ListenAndServe("127.0.0.1:"+port, nil))
}
