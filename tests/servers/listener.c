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
#include <sys/ioctl.h>
#include <sys/resource.h>
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
    out = argc > 3 ? fopen(argv[3], "w") : NULL;
    if (!out) die("listener MODE PORT FILE [OTHER-PORT]");
    if (!strcmp(mode, "answers")) answers();
    if (!strcmp(mode, "cancelled")) cancelled();
    if (!strncmp(mode, "closes-", 7)) closes(mode[7]);
    if (!strcmp(mode, "reversed")) reversed();
    if (!strcmp(mode, "leases")) leases();
    if (!strcmp(mode, "moves")) moves();
    return 0;
}
