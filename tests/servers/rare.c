// Servers that do what few do, but may: rare MODE PORT. Linked statically, so that each system call is their own.
#include "serve.h"
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

static void *with_own_files(void *unused) {
    (void)unused;
    if (unshare(CLONE_FILES)) die("unshare");
    // The numbers differ from those of the first thread's table.
    for (int n = 0; n < 5; n++) open("/dev/null", O_RDONLY);
    return accept_loop((void *)(long)listener(AF_INET, 0));
}

// The thread that listens has descriptors of its own.
static void own_files(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, with_own_files, NULL);
    pthread_join(thread, NULL);
}

static void *when_alone(void *unused) {
    (void)unused;
    char path[64], status = 'R';
    // Until the first thread has ended.
    for (snprintf(path, sizeof path, "/proc/%d/stat", getpid()); status != 'Z'; usleep(1000)) {
        FILE *stat = fopen(path, "r");
        if (!stat || fscanf(stat, "%*d (%*[^)]) %c", &status) != 1) die("stat");
        fclose(stat);
    }
    return accept_loop((void *)(long)listener(AF_INET, 0));
}

static void first_ended(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, when_alone, NULL);
    pthread_exit(NULL);
}

// More listeners than are compared one by one: one for each of some addresses of the machine, each with two threads; and others
// whose numbers are taken over.
static void many(void) {
    long fds[8];
    pthread_t thread;
    for (int n = 0; n < 8; n++) {
        struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK + n)};
        fds[n] = make_socket(AF_INET, 0);
        if (bind(fds[n], (void *)&own, sizeof own) || listen(fds[n], 512)) die("bind, listen");
    }
    for (int n = 0; n < 8; n++) {
        struct sockaddr_in own;
        socklen_t len = sizeof own;
        if (getsockname(fds[n], (void *)&own, &len) || own.sin_addr.s_addr != htonl(INADDR_LOOPBACK + n)) die("getsockname");
    }
    // Another stand-in at the number of the last, and no stand-in at that of the one before.
    int file = open("/dev/null", O_RDONLY), pair[2];
    if (dup2(fds[0], fds[7]) != fds[7] || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || dup2(pair[0], fds[6]) != fds[6]) die("dup2");
    if (accept(fds[6], NULL, NULL) >= 0 || errno != EINVAL) die("accept on another socket");
    if (dup2(file, fds[6]) != fds[6] || accept(fds[6], NULL, NULL) >= 0 || errno != ENOTSOCK) die("accept on a file");
    fds[6] = fds[7];
    fprintf(stderr, "many listen\n");
    for (int n = 0; n < 16; n++) pthread_create(&thread, NULL, accept_loop, (void *)fds[n / 2]);
    pthread_join(thread, NULL);
}

// No descriptor is free: a connection waits until there is one.
static void full(void) {
    int fd = listener(AF_INET, SOCK_NONBLOCK), last, next;
    struct pollfd wait = {fd, POLLIN, 0};
    struct rlimit few = {40, 40};
    setrlimit(RLIMIT_NOFILE, &few);
    for (;;) {
        struct sockaddr_storage peer;
        for (last = fd; (next = open("/dev/null", O_RDONLY)) >= 0; last = next) {}
        poll(&wait, 1, -1);
        if (take(fd, &peer) >= 0 || errno != EMFILE) { if (errno == EAGAIN || errno == ECONNABORTED) continue; die("accept with no descriptor"); }
        if (poll(&wait, 1, 5000) != 1) die("poll");
        close(last);
        int c = take(fd, &peer);
        if (c >= 0) serve(c, &peer);
    }
}

// A listener that is closed after every 20 connections, and never taken out of the epoll instance: closing does that.
static void closed(void) {
    int ep = epoll_create1(EPOLL_CLOEXEC);
    for (;;) {
        int fd = listener(AF_INET, SOCK_NONBLOCK);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
        for (int served = 0; served < 20;) {
            struct sockaddr_storage peer;
            if (epoll_wait(ep, &event, 1, -1) != 1) continue;
            int c = take(fd, &peer);
            if (c >= 0) serve(c, &peer), served++;
        }
        close(fd);
    }
}

static void ignore(int signal) { (void)signal; }

// Repeats what a signal has ended, which the kernel does by itself with SA_RESTART.
#define AGAIN(call) ({ long result_; do result_ = (call); while (result_ < 0 && errno == EINTR); result_; })

// Interrupted by a signal ten thousand times a second, in all that it does; after every 20 connections it listens anew.
static void signals(int flags) {
    struct sigaction action = {.sa_handler = ignore, .sa_flags = flags};
    struct itimerval interval = {{0, 100}, {0, 100}};
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &interval, NULL);
    for (int round = 0;; round++) {
        int fd = make_socket(AF_INET, round % 2 ? SOCK_NONBLOCK : 0);
        socklen_t len = sizeof own;
        if (AGAIN(bind(fd, (void *)&own, sizeof own))) die("bind");
        if (AGAIN(listen(fd, 512))) die("listen");
        if (AGAIN(listen(fd, 100))) die("listen again");
        if (AGAIN(getsockname(fd, (void *)&own, &len)) || ntohs(own.sin_port) != port) die("getsockname");
        for (int served = 0; served < 20;) {
            struct sockaddr_storage peer;
            int c = AGAIN(take(fd, &peer));
            if (c < 0 && errno == EAGAIN) { struct pollfd wait = {fd, POLLIN, 0}; poll(&wait, 1, -1); continue; }
            if (c < 0) die("accept");
            // It reads without being interrupted.
            sigset_t all, before;
            sigfillset(&all);
            sigprocmask(SIG_SETMASK, &all, &before);
            serve(c, &peer);
            sigprocmask(SIG_SETMASK, &before, NULL);
            served++;
        }
        if (round % 3 == 0 && AGAIN(shutdown(fd, SHUT_RDWR))) die("shutdown");
        close(fd);
    }
}

// A handler without SA_RESTART ends a wait in accept.
static void ended_wait(void) {
    struct sigaction action = {.sa_handler = ignore};
    int fd = listener(AF_INET, 0);
    struct sockaddr_storage peer;
    sigaction(SIGALRM, &action, NULL);
    ualarm(100000, 0);
    if (take(fd, &peer) >= 0 || errno != EINTR) die("accept was not interrupted");
    fprintf(stderr, "accept was interrupted\n");
    accept_loop((void *)(long)fd);
}

// Tries a ring, and does without.
static void ring(void) {
    char parameters[120] = {0};
    long fd = syscall(SYS_io_uring_setup, 8, parameters);
    fprintf(stderr, fd >= 0 ? "a ring was given\n" : errno == ENOSYS ? "no rings\n" : "another error\n");
    accept_loop((void *)(long)listener(AF_INET, 0));
}

static int option(int fd, int name) {
    int value = -1;
    socklen_t len = sizeof value;
    if (getsockopt(fd, SOL_SOCKET, name, &value, &len) || len != sizeof value) die("getsockopt");
    return value;
}

// What a listening socket says of itself, and options of its own.
static void options(void) {
    int fd = make_socket(AF_INET, 0), seconds = 1;
    bind_it(fd, AF_INET);
    if (option(fd, SO_ACCEPTCONN) != 0) die("SO_ACCEPTCONN before listen");
    if (listen(fd, 512)) die("listen");
    if (option(fd, SO_TYPE) != SOCK_STREAM || option(fd, SO_ACCEPTCONN) != 1) die("SO_TYPE, SO_ACCEPTCONN");
    if (option(fd, SO_DOMAIN) != AF_INET || option(fd, SO_PROTOCOL) != IPPROTO_TCP) die("SO_DOMAIN, SO_PROTOCOL");
    if (setsockopt(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof seconds)) die("TCP_DEFER_ACCEPT");
    if (setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN, &seconds, sizeof seconds)) die("TCP_FASTOPEN");
    unsigned char byte = 99;
    socklen_t len = 1;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &byte, &len) || len != 1 || byte != SOCK_STREAM) die("a short buffer");
    len = -1;
    if (!getsockopt(fd, SOL_SOCKET, SO_TYPE, &byte, &len) || errno != EINVAL) die("a negative length");
    int unix_socket = socket(AF_UNIX, SOCK_DGRAM, 0);
    if (option(unix_socket, SO_TYPE) != SOCK_DGRAM || option(unix_socket, SO_DOMAIN) != AF_UNIX) die("another socket");
    fprintf(stderr, "all options\n");
    accept_loop((void *)(long)fd);
}

// The server ends and its children do not, one of them in a session of its own.
static void orphans(void) {
    int fd = listener(AF_INET, 0);
    for (int n = 0; n < 3; n++) {
        if (fork()) continue;
        if (n == 0) setsid();
        struct sockaddr_storage peer;
        for (;;) {
            int c = take(fd, &peer);
            if (c >= 0) serve(c, &peer);
        }
    }
    wait(NULL);
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    port = argc > 2 ? atoi(argv[2]) : 0;
    signal(SIGPIPE, SIG_IGN);
    if (!strcmp(mode, "own-files")) own_files();
    if (!strcmp(mode, "first-ended")) first_ended();
    if (!strcmp(mode, "many")) many();
    if (!strcmp(mode, "full")) full();
    if (!strcmp(mode, "closed")) closed();
    if (!strcmp(mode, "signals")) signals(0);
    if (!strcmp(mode, "signals-restart")) signals(SA_RESTART);
    if (!strcmp(mode, "ended-wait")) ended_wait();
    if (!strcmp(mode, "ring")) ring();
    if (!strcmp(mode, "options")) options();
    if (!strcmp(mode, "orphans")) orphans();
    fprintf(stderr, "rare: unknown mode %s\n", mode);
    return 2;
}
