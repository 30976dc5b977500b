// What the C servers have in common: a listener, and an answer to one request.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int port;

static void die(const char *what) { perror(what); exit(1); }

static int make_socket(int family, int options) {
    int on = 1, fd = socket(family, SOCK_STREAM | options, 0);
    if (fd < 0) die("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    return fd;
}

static void bind_it(int fd, int family) {
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_any};
    if (family == AF_INET ? bind(fd, (void *)&v4, sizeof v4) : bind(fd, (void *)&v6, sizeof v6)) die("bind");
}

static int listener(int family, int options) {
    int fd = make_socket(family, options);
    bind_it(fd, family);
    if (listen(fd, 512)) die("listen");
    return fd;
}

static void serve(int fd, struct sockaddr_storage *peer) {
    char request[4096], body[200], answer[500];
    size_t have = 0;
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    while (have < sizeof request - 1) {
        ssize_t n = read(fd, request + have, sizeof request - 1 - have);
        if (n <= 0) { close(fd); return; }
        have += n;
        request[have] = 0;
        if (strstr(request, "\r\n\r\n")) break;
    }
    int from = peer->ss_family == AF_INET6 ? ((struct sockaddr_in6 *)peer)->sin6_port : ((struct sockaddr_in *)peer)->sin_port;
    const char *slot = getenv("ROUNDSMAN_SLOT");
    snprintf(body, sizeof body, "slot %s peer %d", slot ? slot : "-", ntohs(from));
    int n = snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s", strlen(body), body);
    if (write(fd, answer, n) != n) { /* the client is gone */ }
    close(fd);
}

static int take(int fd, struct sockaddr_storage *peer) {
    socklen_t len = sizeof *peer;
    return accept4(fd, (void *)peer, &len, SOCK_CLOEXEC);
}

static void *accept_loop(void *arg) {
    int fd = (int)(long)arg;
    struct sockaddr_storage peer;
    for (;;) {
        int c = take(fd, &peer);
        if (c >= 0) serve(c, &peer);
        else if (errno != EINTR && errno != ECONNABORTED && errno != EAGAIN) die("accept");
    }
    return NULL;
}
