// cgo PORT: linked against libc; answers with its slot and the client's port.
package main

// #include <unistd.h>
import "C"

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
	fmt.Println("process", C.getpid())
	panic(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
