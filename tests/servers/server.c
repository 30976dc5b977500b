// One small HTTP server in many ways of accepting: server MODE PORT. Each answers with its slot and the client's port as
// accept(2) gave it. Built with glibc and with musl.
#include "serve.h"
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/un.h>
#include <sys/wait.h>

// As Asio: the socket is registered, edge-triggered, before it is bound, and never again.
static void asio(void) {
    int ep = epoll_create1(EPOLL_CLOEXEC), fd = make_socket(AF_INET, SOCK_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN | EPOLLERR | EPOLLHUP | EPOLLET, .data.u64 = 0xfeedbeefcafe0123};
    if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
    bind_it(fd, AF_INET);
    if (listen(fd, 512)) die("listen");
    for (;;) {
        struct sockaddr_storage peer;
        int c;
        if (epoll_wait(ep, &event, 1, -1) == 1 && event.data.u64 != 0xfeedbeefcafe0123) die("event data");
        while ((c = take(fd, &peer)) >= 0) serve(c, &peer);
        if (errno != EAGAIN && errno != ECONNABORTED) die("accept");
    }
}

static void level(int family) {
    int ep = epoll_create1(EPOLL_CLOEXEC), fd = listener(family, SOCK_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
    for (;;) {
        struct sockaddr_storage peer;
        if (epoll_wait(ep, &event, 1, -1) != 1) continue;
        int c = take(fd, &peer);
        if (c >= 0) serve(c, &peer);
    }
}

static void prefork(int reuseport) {
    int on = 1, fd = -1;
    if (!reuseport) fd = listener(AF_INET, 0);
    for (int n = 0; n < 3; n++) {
        if (fork()) continue;
        if (reuseport) {
            fd = make_socket(AF_INET, 0);
            setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
            bind_it(fd, AF_INET);
            if (listen(fd, 512)) die("listen");
        }
        accept_loop((void *)(long)fd);
    }
    signal(SIGTERM, SIG_DFL);
    while (wait(NULL) > 0);
}

// A process per connection.
static void forking(void) {
    int fd = listener(AF_INET, 0);
    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        struct sockaddr_storage peer;
        int c = take(fd, &peer);
        if (c < 0) continue;
        if (!fork()) { close(fd); serve(c, &peer); _exit(0); }
        close(c);
    }
}

// The listening descriptor goes to a new image: itself by exec, or another process over a Unix socket.
static void handed_on(char **argv, int by_message) {
    char number[20];
    if (!by_message) {
        int fd = listener(AF_INET, 0);
        snprintf(number, sizeof number, "%d", fd);
        execl("/proc/self/exe", argv[0], "on", argv[2], number, NULL);
        die("exec");
    }
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) die("socketpair");
    if (!fork()) {
        snprintf(number, sizeof number, "-%d", pair[1]);
        execl("/proc/self/exe", argv[0], "on", argv[2], number, NULL);
        die("exec");
    }
    int fd = listener(AF_INET, 0);
    char byte = 0, control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec iov = {&byte, 1};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    if (sendmsg(pair[0], &message, 0) != 1) die("sendmsg");
    while (wait(NULL) > 0);
}

static void on(int number) {
    int fd = number;
    if (number < 0) {
        char byte, control[CMSG_SPACE(sizeof fd)];
        struct iovec iov = {&byte, 1};
        struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        if (recvmsg(-number, &message, 0) != 1) die("recvmsg");
        memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    }
    struct sockaddr_in own;
    socklen_t len = sizeof own;
    if (getsockname(fd, (void *)&own, &len) || own.sin_family != AF_INET || ntohs(own.sin_port) != port) die("getsockname");
    accept_loop((void *)(long)fd);
}

// Two sockets on one port; a listener that is closed and opened again after every 50 connections.
static void twice(void) {
    int on = 1, fds[2];
    for (int n = 0; n < 2; n++) {
        fds[n] = make_socket(AF_INET, SOCK_NONBLOCK);
        setsockopt(fds[n], SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
        bind_it(fds[n], AF_INET);
        if (listen(fds[n], 512)) die("listen");
    }
    for (int served = 1;; served++) {
        struct pollfd wait[2] = {{fds[0], POLLIN, 0}, {fds[1], POLLIN, 0}};
        struct sockaddr_storage peer;
        poll(wait, 2, -1);
        int c = take(fds[served % 2], &peer);
        if (c >= 0) serve(c, &peer);
        // One of the two closed: the other goes on.
        if (served == 100) { close(fds[1]); fds[1] = fds[0]; }
    }
}

static void reopen(void) {
    for (;;) {
        int fd = listener(AF_INET, 0);
        for (int served = 0; served < 50; served++) {
            struct sockaddr_storage peer;
            int c = take(fd, &peer);
            if (c >= 0) serve(c, &peer);
        }
        close(fd);
    }
}

// accept by the system call itself: nothing can stand in front of that.
static void raw(void) {
    int fd = listener(AF_INET, 0);
    for (;;) {
        register long nr __asm__("rax") = 43;
        register long a __asm__("rdi") = fd;
        register long b __asm__("rsi") = 0;
        register long c __asm__("rdx") = 0;
        __asm__ volatile("syscall" : "+r"(nr) : "r"(a), "r"(b), "r"(c) : "rcx", "r11", "memory");
        if (nr < 0) usleep(10000);
    }
}

// Tries to do harm with what it was given: fills its counters page with nonsense, tries to shorten it.
static void hostile(void) {
    int fd = listener(AF_INET, 0);
    char line[500];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, maps)) {
        unsigned long start, end;
        if (!strstr(line, "roundsman-counters") || sscanf(line, "%lx-%lx", &start, &end) != 2) continue;
        char path[100];
        snprintf(path, sizeof path, "/proc/self/map_files/%lx-%lx", start, end);
        int page = open(path, O_RDWR);
        if (page >= 0 && ftruncate(page, 0) == 0) die("the page could be cut");
        for (unsigned char *at = (void *)start; at < (unsigned char *)end; at++) *at = (unsigned char)(long)at * 37 + 1;
        memset((void *)start, 0, 8);
        memset((char *)start, 0xff, 4);
        fprintf(stderr, "scribbled\n");
    }
    fclose(maps);
    accept_loop((void *)(long)fd);
}

// The next client may be there already: it is non-blocking if accept ever says that there is none.
static void non_blocking(int fd, const char *by) {
    struct sockaddr_storage peer;
    int c;
    while ((c = take(fd, &peer)) >= 0) serve(c, &peer);
    if (errno != EAGAIN) die(by);
}

// Blocking and non-blocking by every way to say it. A socket that processes share may be non-blocking whatever they say.
static void modes(int shared) {
    int fd = listener(AF_INET, SOCK_NONBLOCK), off = 0, yes = 1;
    struct sockaddr_storage peer;
    non_blocking(fd, "non-blocking by socket()");
    ioctl(fd, FIONBIO, &off);
    if (!shared && fcntl(fd, F_GETFL) & O_NONBLOCK) die("F_GETFL after FIONBIO 0");
    int c = take(fd, &peer);
    if (c < 0) die("blocking by FIONBIO");
    serve(c, &peer);
    ioctl(fd, FIONBIO, &yes);
    non_blocking(fd, "non-blocking by FIONBIO");
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    if ((c = take(fd, &peer)) < 0) die("blocking by F_SETFL");
    serve(c, &peer);
    fprintf(stderr, "every mode was tried\n");
    accept_loop((void *)(long)fd);
}

static void *shut_later(void *arg) {
    usleep(200000);
    shutdown((int)(long)arg, SHUT_RDWR);
    return NULL;
}

static void shut(void) {
    int fd = listener(AF_INET, 0);
    pthread_t thread;
    struct sockaddr_storage peer;
    for (int n = 0; n < 2; n++) {
        int c = take(fd, &peer);
        if (c >= 0) serve(c, &peer);
    }
    pthread_create(&thread, NULL, shut_later, (void *)(long)fd);
    if (take(fd, &peer) >= 0 || errno != EINVAL) die("accept after shutdown");
    fprintf(stderr, "accept woke up\n");
    close(fd);
    accept_loop((void *)(long)listener(AF_INET, 0));
}

#ifdef __GLIBC__
// close_range ends what it closes.
static void ranges(void) {
    int low = open("/dev/null", O_RDONLY);
    int fd = listener(AF_INET, 0);
    struct sockaddr_storage peer;
    for (int served = 0;; served++) {
        int c = take(fd, &peer);
        if (c < 0) die("accept");
        int copy = fcntl(c, F_DUPFD, 500);
        serve(copy, &peer);
        if (close_range(c, c, 0)) die("close_range");
        if (served == 20) {
            close_range(low, ~0U, 0);
            fd = listener(AF_INET, 0);
        }
    }
}
#endif

/* Lines of 100 bytes, `port` megabytes of them a second; each ends with its number. */
static void flood(void) {
    static char lines[10000 * 100 + 1];
    long number = 0;
    for (;;) {
        struct timespec begin, end;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        for (int n = 0; n < 10000; n++) snprintf(lines + n * 100, 101, "%-79s%20ld\n", "flood", number++);
        for (long done = 0; done < (long)sizeof lines - 1;) {
            long n = write(1, lines + done, sizeof lines - 1 - done);
            if (n > 0) done += n;
        }
        clock_gettime(CLOCK_MONOTONIC, &end);
        long rest = 1000000 / port - ((end.tv_sec - begin.tv_sec) * 1000000 + (end.tv_nsec - begin.tv_nsec) / 1000);
        if (rest > 0) usleep(rest);
    }
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    port = argc > 2 ? atoi(argv[2]) : 0;
    signal(SIGPIPE, SIG_IGN);
    if (!strcmp(mode, "asio")) asio();
    if (!strcmp(mode, "level")) level(AF_INET);
    if (!strcmp(mode, "dual")) level(AF_INET6);
    if (!strcmp(mode, "prefork")) prefork(0);
    if (!strcmp(mode, "reuseport")) prefork(1);
    if (!strcmp(mode, "fork")) forking();
    if (!strcmp(mode, "exec")) handed_on(argv, 0);
    if (!strcmp(mode, "message")) handed_on(argv, 1);
    if (!strcmp(mode, "on")) on(atoi(argv[3]));
    if (!strcmp(mode, "twice")) twice();
    if (!strcmp(mode, "reopen")) reopen();
    if (!strcmp(mode, "raw")) raw();
    if (!strcmp(mode, "hostile")) hostile();
    if (!strcmp(mode, "modes")) modes(0);
    if (!strcmp(mode, "shared-modes")) modes(1);
    if (!strcmp(mode, "shut")) shut();
    if (!strcmp(mode, "flood")) flood();
#ifdef __GLIBC__
    if (!strcmp(mode, "ranges")) ranges();
#endif
    if (!strcmp(mode, "daemon")) { if (daemon(1, 1)) die("daemon"); accept_loop((void *)(long)listener(AF_INET, 0)); }
    if (!strcmp(mode, "late-daemon")) { int fd = listener(AF_INET, 0); if (daemon(1, 1)) die("daemon"); accept_loop((void *)(long)fd); }
    if (!strcmp(mode, "threads")) {
        long fd = listener(AF_INET, 0);
        pthread_t thread;
        for (int n = 0; n < 3; n++) pthread_create(&thread, NULL, accept_loop, (void *)fd);
        accept_loop((void *)fd);
    }
    fprintf(stderr, "server: unknown mode %s\n", mode);
    return 2;
}
