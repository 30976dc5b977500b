// What a listening socket answers, and what becomes of descriptors that a server does not know: listener MODE PORT FILE [OTHER-PORT].
// What it sees goes into the file, so that a run under the daemon can be compared with one without.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static int port, other_port;
static FILE *out;
static volatile int pipes;

static void die(const char *what) { perror(what); exit(1); }
static void on_pipe(int signal) { (void)signal; pipes++; }

static int bound(void) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (fd < 0 || bind(fd, (void *)&a, sizeof a)) die("bind");
    return fd;
}

static int has_client(int fd) {
    struct pollfd wait = {fd, POLLIN, 0};
    return poll(&wait, 1, 20000) == 1;
}

static int has_client_now(int fd) {
    struct pollfd wait = {fd, POLLIN, 0};
    return poll(&wait, 1, 0);
}

static void serve(int fd) {
    int c = accept(fd, NULL, NULL);
    if (c < 0) die("accept");
    if (write(c, "hello", 5) != 5) die("write");
    close(c);
}

#define SAY(call) do { \
    pipes = 0, errno = 0; \
    long answer = (long)(call); \
    fprintf(out, "%s: %ld %s%s\n", #call, answer, answer < 0 ? strerror(errno) : "", pipes ? " SIGPIPE" : ""); \
} while (0)

// Lengths that the compiler does not know: where the headers are fortified, they call the checking variants.
static volatile size_t three = 3, none = 0;

static void calls(int fd, const char *state) {
    char bytes[4] = "abc";
    int number = -5, pipe_ends[2], file = open("/proc/self/exe", O_RDONLY);
    struct iovec part = {bytes, 3}, parts[2] = {{bytes, 0}, {bytes, 3}}, empty = {bytes, 0};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    struct mmsghdr messages[2] = {{.msg_hdr = message}, {.msg_hdr = message}};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (pipe(pipe_ends) || write(pipe_ends[1], "xx", 2) != 2) die("pipe");
    fprintf(out, "--- %s\n", state);
    SAY(read(fd, bytes, three)); SAY(read(fd, bytes, none)); SAY(pread(fd, bytes, three, 0));
    SAY(readv(fd, &part, 1)); SAY(readv(fd, parts, 2)); SAY(readv(fd, &empty, 1)); SAY(readv(fd, &part, 0));
    SAY(recv(fd, bytes, three, 0)); SAY(recv(fd, bytes, none, 0)); SAY(recv(fd, bytes, three, MSG_PEEK | MSG_DONTWAIT));
    SAY(recv(fd, bytes, three, MSG_ERRQUEUE)); SAY(recvfrom(fd, bytes, three, MSG_WAITALL, NULL, NULL));
    SAY(recvmsg(fd, &message, 0)); SAY(recvmmsg(fd, messages, 2, 0, NULL)); SAY(recvmmsg(fd, messages, 0, 0, NULL));
    SAY(write(fd, bytes, three)); SAY(write(fd, bytes, none)); SAY(pwrite(fd, bytes, three, 0));
    SAY(writev(fd, &part, 1)); SAY(writev(fd, parts, 2)); SAY(writev(fd, &empty, 1)); SAY(writev(fd, &part, 0));
    SAY(send(fd, bytes, three, 0)); SAY(send(fd, bytes, none, 0)); SAY(send(fd, bytes, three, MSG_NOSIGNAL));
    SAY(sendto(fd, bytes, three, 0, (void *)&to, sizeof to)); SAY(sendto(fd, bytes, three, MSG_NOSIGNAL, NULL, 0));
    SAY(sendmsg(fd, &message, 0)); SAY(sendmsg(fd, &message, MSG_NOSIGNAL));
    SAY(sendmmsg(fd, messages, 2, 0)); SAY(sendmmsg(fd, messages, 2, MSG_NOSIGNAL)); SAY(sendmmsg(fd, messages, 0, 0));
    SAY(sendfile(fd, file, NULL, 10)); SAY(sendfile(fd, file, NULL, 0)); SAY(sendfile(file, fd, NULL, 10));
    SAY(splice(pipe_ends[0], NULL, fd, NULL, 2, 0)); SAY(splice(pipe_ends[0], NULL, fd, NULL, 0, 0));
    SAY(splice(fd, NULL, pipe_ends[1], NULL, 2, 0)); SAY(splice(fd, NULL, pipe_ends[1], NULL, 0, 0));
    SAY(ioctl(fd, FIONREAD, &number)); SAY(number);
    SAY(lseek(fd, 0, SEEK_CUR));
    // One that is only bound would begin to connect.
    if (!strcmp(state, "listening")) SAY(connect(fd, (void *)&to, sizeof to));
    // The descriptor itself has not changed.
    SAY(fcntl(fd, F_GETFL) & O_NONBLOCK);
    close(pipe_ends[0]), close(pipe_ends[1]), close(file);
}

// Two clients: the first waits while the socket is asked for bytes, and is served after that.
static void answers(void) {
    struct sockaddr_storage peer;
    socklen_t negative = -1;
    signal(SIGPIPE, on_pipe);
    int fd = bound();
    calls(fd, "bound");
    if (listen(fd, 10)) die("listen");
    fprintf(out, "listens\n"), fflush(out);
    if (!has_client(fd)) die("poll");
    calls(fd, "listening");
    fcntl(fd, F_SETFL, O_NONBLOCK);
    calls(fd, "listening, non-blocking");
    fcntl(fd, F_SETFL, 0);
    int copy = dup(fd);
    SAY(read(copy, &peer, 10));
    close(copy);
    serve(fd);
    if (!has_client(fd)) die("poll");
    // Who waits is taken all the same, and closed.
    SAY(accept(fd, (void *)&peer, &negative)); SAY(has_client_now(fd));
    fcntl(fd, F_SETFL, O_NONBLOCK);
    SAY(accept(fd, (void *)&peer, &negative));
    shutdown(fd, SHUT_RD);
    // What TIOCOUTQ and others give of a socket that listened once is chance: only this is asked.
    SAY(recv(fd, &peer, 10, 0)); SAY(send(fd, &peer, 10, 0)); SAY(write(fd, &peer, 10));
    // Another file at the number: the program's own again, also where nobody could see the close.
    int other = open("/dev/zero", O_RDWR);
    char byte = 'x';
    for (int raw = 0; raw < 2; raw++) {
        if (raw) {
            port = other_port;
            fd = bound();
            if (listen(fd, 10)) die("listen");
            SAY(read(fd, &byte, 1));
            long nr = SYS_dup2, result;
#ifdef __x86_64__
            __asm__ volatile("syscall" : "=a"(result) : "a"(nr), "D"((long)other), "S"((long)fd) : "rcx", "r11", "memory");
#else
            result = dup2(other, fd), (void)nr;
#endif
            if (result != fd) die("raw dup2");
        } else if (dup2(other, fd) != fd) die("dup2");
        SAY(read(fd, &byte, 1)); SAY(byte); SAY(write(fd, &byte, 1)); SAY(recv(fd, &byte, 1, 0)); SAY(close(fd));
    }
    fprintf(out, "end\n"), fflush(out);
    sleep(60);
}

static void *reads_for_ever(void *from) {
    char byte;
    for (;;) if (read((int)(long)from, &byte, 1) < 0 && errno != EINTR) return NULL;
}

// A thread that waits in read, in recv or in accept is cancelled there.
static void *receives_for_ever(void *from) {
    char byte;
    for (;;) if (recv((int)(long)from, &byte, 1, 0) < 0 && errno != EINTR) return NULL;
}

static void *accepts_for_ever(void *from) {
    for (;;) if (accept((int)(long)from, NULL, NULL) < 0 && errno != EINTR) return NULL;
}

static void cancelled(void) {
    int fd = bound(), ends[2];
    if (listen(fd, 10) || socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) die("listen");
    void *(*waits[])(void *) = {reads_for_ever, receives_for_ever, accepts_for_ever};
    for (int n = 0; n < 3; n++) {
        pthread_t thread;
        void *result;
        pthread_create(&thread, NULL, waits[n], (void *)(long)(n == 2 ? fd : ends[0]));
        usleep(100000);
        pthread_cancel(thread);
        pthread_join(thread, &result);
        SAY(result == PTHREAD_CANCELED);
    }
    fprintf(out, "end\n"), fflush(out);
    for (;;) serve(fd);
}

// Closes all that it did not open, as servers do at their start, opens sockets of its own, and goes on with its listener.
static void closes(char how) {
    enum { PAIRS = 600 };
    struct rlimit limit = {4000, 4000};
    int ends[2 * PAIRS], on = 1, fd;
    char bytes[300];
    socklen_t len = sizeof on;
    setrlimit(RLIMIT_NOFILE, &limit);
    fd = bound();
    if (listen(fd, 10)) die("listen");
#ifdef SYS_close_range
    if (how == 's') syscall(SYS_close_range, fd + 1, ~0U, 0);
#endif
#ifdef __GLIBC__
    if (how == 'r') close_range(fd + 1, ~0U, 0);
    if (how == 'f') closefrom(fd + 1);
#endif
    if (how == 'l') for (int other = fd + 1; other < 2000; other++) close(other);
    // Every other number becomes a socket with bytes to be read, which nobody but this program may have.
    for (int n = 0; n < PAIRS; n++) {
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends + 2 * n)) die("socketpair");
        for (int end = 0; end < 2; end++) if (send(ends[2 * n + end], "mine", 4, 0) != 4) die("send");
    }
    SAY(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on));
    on = 0;
    SAY(getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, &len)); SAY(on);
    fprintf(out, "listens\n"), fflush(out);
    serve(fd);
    SAY(shutdown(fd, SHUT_RD));
    SAY(close(fd));
    int foreign = 0, lost = 0, closed = 0;
    for (int n = 0; n < 2 * PAIRS; n++) {
        closed += fcntl(ends[n], F_GETFD) < 0;
        lost += recv(ends[n], bytes, sizeof bytes, 0) != 4;
        foreign += recv(ends[n], bytes, sizeof bytes, 0) > 0;
    }
    SAY(closed); SAY(lost); SAY(foreign);
    // And a listener after all that.
    fd = bound();
    SAY(listen(fd, 10));
    fprintf(out, "listens again\n"), fflush(out);
    serve(fd);
    fprintf(out, "end\n"), fflush(out);
    sleep(60);
}

// bind after listen: the kernel has chosen a port by then.
static void reversed(void) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = bound(), late = socket(AF_INET, SOCK_STREAM, 0);
    SAY(bind(fd, (void *)&a, sizeof a)); SAY(listen(fd, 10)); SAY(bind(fd, (void *)&a, sizeof a));
    SAY(listen(late, 10)); SAY(bind(late, (void *)&a, sizeof a));
    fprintf(out, "listens\n"), fflush(out);
    serve(fd);
    fprintf(out, "end\n"), fflush(out);
    sleep(60);
}

// What poll, select and epoll (registered before, for all events) say of a descriptor now.
static void look(const char *state, int fd, int epoll) {
    struct pollfd wait = {fd, POLLIN | POLLOUT | POLLRDHUP | POLLPRI, 0};
    struct epoll_event event = {0, {0}};
    struct timeval now = {0, 0};
    fd_set readable, writable;
    FD_ZERO(&readable); FD_ZERO(&writable); FD_SET(fd, &readable); FD_SET(fd, &writable);
    poll(&wait, 1, 0);
    select(fd + 1, &readable, &writable, NULL, &now);
    int events = epoll < 0 ? 0 : epoll_wait(epoll, &event, 1, 0);
    fprintf(out, "%s: poll %x, select %d %d, epoll %d %x\n", state, wait.revents, !!FD_ISSET(fd, &readable),
            !!FD_ISSET(fd, &writable), events, event.events);
}

static int watched;

static void *waits_in_poll(void *unused) {
    struct pollfd wait = {watched, POLLIN, 0};
    return (void *)(long)(unused ? 0 : poll(&wait, 1, 20000));
}

static void *waits_in_select(void *unused) {
    struct timeval limit = {20, 0};
    fd_set readable;
    FD_ZERO(&readable); FD_SET(watched, &readable);
    return (void *)(long)(unused ? 0 : select(watched + 1, &readable, NULL, NULL, &limit));
}

static void *waits_in_epoll(void *edge) {
    struct epoll_event event = {EPOLLIN | (edge ? EPOLLET : 0), {0}};
    int epoll = epoll_create1(0);
    epoll_ctl(epoll, EPOLL_CTL_ADD, watched, &event);
    long woken = epoll_wait(epoll, &event, 1, 20000);
    close(epoll);
    return (void *)woken;
}

static void *waits_in_accept(void *limited) {
    struct timeval limit = {limited ? 20 : 0, 0};
    setsockopt(watched, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    int fd = accept(watched, NULL, NULL);
    return (void *)(long)(fd < 0 && errno == EINVAL);
}

// All states of a listening socket and the ways between them, as it polls in each; and who waits at it when it is shut down.
static void states(void) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event all = {EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI, {0}};
    struct timeval limit = {20, 0};
    socklen_t len = sizeof limit;
    void *(*waits[])(void *) = {waits_in_poll, waits_in_select, waits_in_epoll, waits_in_epoll, waits_in_accept, waits_in_accept};
    signal(SIGPIPE, on_pipe);
    int fd = bound(), copy = dup(fd), epoll = epoll_create1(0);
    SAY(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &all)); SAY(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
    look("bound", fd, epoll); look("its copy", copy, -1);
    SAY(accept(fd, NULL, NULL)); SAY(recv(fd, &a, 1, 0)); SAY(send(fd, &a, 1, 0)); SAY(bind(fd, (void *)&a, sizeof a));
    SAY(shutdown(fd, 7));
    SAY(listen(copy, 10)); look("listening", fd, epoll); look("its copy", copy, -1);
    limit.tv_sec = 0;
    SAY(getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, &len)); SAY(limit.tv_sec); SAY(fcntl(fd, F_GETFL) & O_NONBLOCK);
    SAY(listen(fd, 20)); SAY(bind(fd, (void *)&a, sizeof a)); SAY(connect(fd, (void *)&a, sizeof a));
    SAY(shutdown(fd, 7)); SAY(shutdown(fd, SHUT_WR)); look("shut for writing", fd, epoll);
    fprintf(out, "listens\n"), fflush(out);
    if (!has_client(fd)) die("poll");
    look("a client waits", fd, epoll); look("at its copy", copy, -1);
    serve(fd);
    look("served", fd, epoll);
    SAY(shutdown(fd, SHUT_RDWR)); look("shut", fd, epoll); look("its copy", copy, -1);
    SAY(accept(copy, NULL, NULL)); SAY(shutdown(fd, SHUT_RD)); look("shut twice", fd, epoll);
    watched = fd;
    for (int n = 0; n < 6; n++) {
        pthread_t thread;
        void *result;
        SAY(listen(fd, 10)); look("listening again", fd, epoll); look("its copy", copy, -1);
        fprintf(out, "listens %d\n", n), fflush(out);
        serve(fd);
        pthread_create(&thread, NULL, waits[n], (void *)(long)(n == 3 || n == 5));
        usleep(100000);
        SAY(shutdown(copy, SHUT_RD));
        pthread_join(thread, &result);
        SAY(result); SAY(accept(fd, NULL, NULL)); SAY(accept(copy, NULL, NULL)); look("shut", fd, epoll);
    }
    close(copy);
    SAY(shutdown(fd, SHUT_RDWR)); look("shut twice", fd, epoll);
    // One that is bound and shut down would pass that on to its connections: it never listens.
    port = other_port;
    copy = bound();
    SAY(shutdown(copy, SHUT_RD)); look("bound, shut for reading", copy, -1);
    SAY(shutdown(copy, SHUT_RDWR)); look("bound, shut", copy, -1);
    SAY(close(copy));
    SAY(close(fd)); SAY(epoll_wait(epoll, &all, 1, 0));
    fprintf(out, "end\n"), fflush(out);
    sleep(60);
}

// Another descriptor of the same socket, which the process gets as if from another one.
static int over_a_socket(int fd) {
    int ends[2];
    char byte = 'x', control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) die("socketpair");
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    *head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    if (sendmsg(ends[0], &message, 0) != 1 || recvmsg(ends[1], &message, 0) != 1) die("over a socket");
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    close(ends[0]), close(ends[1]);
    return fd;
}

static int option(int fd, int name) {
    int value = -1;
    socklen_t len = sizeof value;
    return getsockopt(fd, SOL_SOCKET, name, &value, &len) ? -errno : value;
}

static int own_port(int fd) {
    struct sockaddr_in a = {0};
    socklen_t len = sizeof a;
    return getsockname(fd, (void *)&a, &len) ? -errno : ntohs(a.sin_port) == port || ntohs(a.sin_port) == other_port;
}

static int queued(int fd) {
    int number = -5;
    return ioctl(fd, FIONREAD, &number) ? -errno : number;
}

// Each question is the first that the process has about this descriptor.
#define FRESH(call) do { int it = over_a_socket(fd); SAY(call); close(it); } while (0)

static void questions(int fd, const char *state) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    char bytes[4] = "abc";
    fprintf(out, "--- %s\n", state);
    look(state, fd, -1);
    FRESH(recv(it, bytes, 3, MSG_DONTWAIT)); FRESH(read(it, bytes, 3)); FRESH(send(it, bytes, 3, 0)); FRESH(write(it, bytes, 3));
    FRESH(getpeername(it, (void *)&a, &len)); FRESH(own_port(it)); FRESH(queued(it));
    FRESH(option(it, SO_TYPE)); FRESH(option(it, SO_DOMAIN)); FRESH(option(it, SO_PROTOCOL)); FRESH(option(it, SO_ACCEPTCONN));
    FRESH(option(it, SO_KEEPALIVE)); FRESH(shutdown(it, 7)); FRESH(bind(it, (void *)&a, sizeof a));
    if (!option(fd, SO_ACCEPTCONN)) FRESH(accept(it, NULL, NULL));
    if (option(fd, SO_ACCEPTCONN)) FRESH(connect(it, (void *)&a, sizeof a));
}

// A socket that listens and one that does not yet, over a socket and to another program.
static void passed(const char *file) {
    char numbers[4][20];
    signal(SIGPIPE, on_pipe);
    int late = bound(), usual = port;
    port = other_port;
    int fd = bound();
    port = usual;
    if (listen(fd, 10)) die("listen");
    questions(fd, "listening"); questions(late, "bound");
    snprintf(numbers[0], 20, "%d", usual), snprintf(numbers[1], 20, "%d", other_port);
    snprintf(numbers[2], 20, "%d", late), snprintf(numbers[3], 20, "%d", fd);
    fflush(out);
    execl("/proc/self/exe", "listener", "received", numbers[0], file, numbers[1], numbers[2], numbers[3], NULL);
    die("exec");
}

static void received(int late, int fd) {
    char bytes[4];
    signal(SIGPIPE, on_pipe);
    fprintf(out, "--- after exec\n");
    look("listening", fd, -1); look("bound", late, -1);
    SAY(recv(fd, bytes, 3, MSG_DONTWAIT)); SAY(recv(late, bytes, 3, MSG_DONTWAIT)); SAY(send(fd, bytes, 3, 0));
    SAY(queued(fd)); SAY(queued(late)); SAY(option(late, SO_TYPE)); SAY(option(late, SO_ACCEPTCONN)); SAY(accept(late, NULL, NULL));
    SAY(own_port(late)); SAY(shutdown(late, 7)); SAY(listen(late, 10)); look("both listening", late, -1);
    fprintf(out, "listens\n"), fflush(out);
    serve(late);
    SAY(shutdown(fd, SHUT_RDWR)); look("shut", fd, -1);
    fprintf(out, "end\n"), fflush(out);
    sleep(60);
}

// Who bound it ends before the program that got it listens.
static void left(const char *file) {
    char numbers[3][20];
    int ends[2], fd = bound();
    if (pipe(ends)) die("pipe");
    snprintf(numbers[0], 20, "%d", port), snprintf(numbers[1], 20, "%d", fd), snprintf(numbers[2], 20, "%d", ends[0]);
    fflush(out);
    if (!fork()) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(ends[1]);
        execl("/proc/self/exe", "listener", "found", numbers[0], file, "0", numbers[1], numbers[2], NULL);
        die("exec");
    }
    close(fd), close(ends[1]);
    for (;;) pause();
}

static void found(int fd, int closed) {
    char byte;
    if (read(closed, &byte, 1) != 0) die("read");
    look("bound", fd, -1); SAY(accept(fd, NULL, NULL)); SAY(listen(fd, 10)); look("listening", fd, -1);
    fprintf(out, "listens\n"), fflush(out);
    serve(fd);
    SAY(option(fd, SO_ACCEPTCONN)); SAY(own_port(fd));
    fprintf(out, "end\n"), fflush(out);
    sleep(60);
}

static void on_stop(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    // By fcntl(2)'s F_SETSIG, and not by kill(2).
    _exit(info->si_code > 0 ? 9 : 0);
}

// Many processes, each of which listens for a moment: how many of them were told to stop.
static void leases(void) {
    struct sigaction action = {.sa_sigaction = on_stop, .sa_flags = SA_SIGINFO};
    int stopped = 0, status;
    sigaction(SIGTERM, &action, NULL);
    for (int n = 0; n < 1000; n++) {
        if (!fork()) {
            int fd = bound();
            if (listen(fd, 10)) die("listen");
            usleep(500);
            _exit(0);
        }
        if (wait(&status) < 0) die("wait");
        stopped += !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    }
    SAY(stopped);
    fprintf(out, "end\n"), fflush(out);
    for (;;) pause();
}

// `port` times a byte each way, for whoever counts or times it.
static void moves(void) {
    int ends[2];
    char byte = 0;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) die("socketpair");
    for (int n = 0; n < port; n++)
        if (write(ends[0], &byte, 1) != 1 || read(ends[1], &byte, 1) != 1 || send(ends[0], &byte, 1, 0) != 1
            || recv(ends[1], &byte, 1, 0) != 1) die("moves");
}

int main(int argc, char **argv) {
    const char *mode = argc > 3 ? argv[1] : "";
    port = argc > 3 ? atoi(argv[2]) : 0;
    other_port = argc > 4 ? atoi(argv[4]) : 0;
    out = argc > 3 ? fopen(argv[3], strcmp(mode, "received") && strcmp(mode, "found") ? "w" : "a") : NULL;
    if (!out) die("listener MODE PORT FILE [OTHER-PORT]");
    if (!strcmp(mode, "answers")) answers();
    if (!strcmp(mode, "cancelled")) cancelled();
    if (!strncmp(mode, "closes-", 7)) closes(mode[7]);
    if (!strcmp(mode, "reversed")) reversed();
    if (!strcmp(mode, "states")) states();
    if (!strcmp(mode, "passed")) passed(argv[3]);
    if (!strcmp(mode, "received") && argc > 6) received(atoi(argv[5]), atoi(argv[6]));
    if (!strcmp(mode, "left")) left(argv[3]);
    if (!strcmp(mode, "found") && argc > 6) found(atoi(argv[5]), atoi(argv[6]));
    if (!strcmp(mode, "leases")) leases();
    if (!strcmp(mode, "moves")) moves();
    return 0;
}
