# server.tcl PORT: answers with the client's port.
proc accept {client address port} {
    fconfigure $client -blocking 0 -translation crlf
    fileevent $client readable [list head $client $port]
}
proc head {client port} {
    if {[gets $client line] > 0} return
    if {[fblocked $client]} return
    puts $client "HTTP/1.1 200 OK\nConnection: close\n\npeer $port"
    close $client
}
socket -server accept -myaddr 127.0.0.1 [lindex $argv 0]
vwait forever
