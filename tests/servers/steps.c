// Runs sequences of socket calls and writes down what each one answers: steps SCRIPT OUT. The same script runs natively and
// under the daemon, and the two files are compared.
//
// A script has blocks that begin with "seq NUMBER"; every further line is a step: NAME and four small numbers. Numbers of
// descriptors are registers. A step waits until what it caused has happened, so that no two steps race.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { REGISTERS = 16, CLIENTS = 32, FIRST_PORT = 2000, PORTS = 4, OUT = 900, SHARED = 901, TO_PARENT = 902, FROM_CHILD = 903 };

typedef struct { char name[16]; int a, b, c, d; } step;
typedef struct { int sequence, clients, ports[CLIENTS]; } shared_memory;

static step *script;
static int steps, registers[REGISTERS], number;
static shared_memory *shared;
static volatile int pipes;
static const char *script_name;

static void die(const char *what) { perror(what); _exit(99); }
static void on_pipe(int signal) { (void)signal; pipes++; }
static void on_alarm(int signal) { (void)signal; }

static void say(const char *format, ...) {
    char line[400];
    va_list more;
    va_start(more, format);
    int length = snprintf(line, sizeof line, "%d %s ", number, script[number].name);
    length += vsnprintf(line + length, sizeof line - length, format, more);
    va_end(more);
    if (pipes) length += snprintf(line + length, sizeof line - length, " SIGPIPE"), pipes = 0;
    line[length++] = '\n';
    if (write(OUT, line, length) != length) die("write");
}

static void result(long answer) {
    if (answer < 0) say("%s", strerror(errno));
    else say("%ld", answer);
}

static void done(long answer) {
    if (answer < 0) say("%s", strerror(errno));
    else say("ok");
}

// What waits for ever is interrupted, soon and again; what has a time-out of its own, long after that.
static void interrupted(int fd) {
    struct timeval limit = {0, 0};
    socklen_t length = sizeof limit;
    int failed = errno;
    if (fd >= 0) syscall(SYS_getsockopt, fd, SOL_SOCKET, SO_RCVTIMEO, &limit, &length);
    int after = fd < 0 ? 0 : limit.tv_usec ? 200000 : 6000;
    struct itimerval every = {{0, after}, {0, after}};
    setitimer(ITIMER_REAL, &every, NULL);
    errno = failed;
}

static void put(int at, int fd) {
    if (fd < 0) return;
    if (registers[at] >= 0) close(registers[at]);
    registers[at] = fd;
}

static socklen_t address(struct sockaddr_storage *to, int port, int kind) {
    struct sockaddr_in *v4 = (void *)to;
    struct sockaddr_in6 *v6 = (void *)to;
    memset(to, 0, sizeof *to);
    port = port < 0 ? 0 : FIRST_PORT + shared->sequence * PORTS + port;
    if (kind < 2) {
        v4->sin_family = AF_INET, v4->sin_port = htons(port), v4->sin_addr.s_addr = htonl(kind ? INADDR_ANY : INADDR_LOOPBACK);
        return sizeof *v4;
    }
    v6->sin6_family = AF_INET6, v6->sin6_port = htons(port), v6->sin6_addr = kind == 2 ? in6addr_loopback : in6addr_any;
    return sizeof *v6;
}

// An address by what it means here: a port of the script, a client of the sequence, or another.
static const char *shown(struct sockaddr_storage *from, socklen_t length, char text[100]) {
    char host[INET6_ADDRSTRLEN] = "?";
    int port = -1;
    if (length > sizeof *from) length = sizeof *from;
    if (from->ss_family == AF_INET && length >= sizeof(struct sockaddr_in)) {
        port = ntohs(((struct sockaddr_in *)from)->sin_port);
        inet_ntop(AF_INET, &((struct sockaddr_in *)from)->sin_addr, host, sizeof host);
    } else if (from->ss_family == AF_INET6 && length >= sizeof(struct sockaddr_in6)) {
        port = ntohs(((struct sockaddr_in6 *)from)->sin6_port);
        inet_ntop(AF_INET6, &((struct sockaddr_in6 *)from)->sin6_addr, host, sizeof host);
    }
    int first = FIRST_PORT + shared->sequence * PORTS;
    snprintf(text, 100, "family %d %s length %d %s", from->ss_family, host, (int)length, port ? "another port" : "no port");
    if (port >= first && port < first + PORTS) snprintf(text, 100, "family %d %s length %d port %d", from->ss_family, host, (int)length, port - first);
    for (int n = 0; n < shared->clients; n++)
        if (port > 0 && shared->ports[n] == port) snprintf(text, 100, "family %d %s length %d client %d", from->ss_family, host, (int)length, n);
    return text;
}

static void remember_client(int fd) {
    struct sockaddr_storage own;
    socklen_t length = sizeof own;
    if (shared->clients == CLIENTS || getsockname(fd, (void *)&own, &length)) return;
    shared->ports[shared->clients++] = ntohs(((struct sockaddr_in *)&own)->sin_port);
}

static long unread(int fd) {
    int bytes = 0;
    return syscall(SYS_ioctl, fd, FIONREAD, &bytes) < 0 ? -1 : bytes;
}

// A connection to a listener at another register: it has arrived there when the step is over.
static void connects(const step *s) {
    struct sockaddr_storage to;
    socklen_t length = address(&to, s->b, s->c);
    long before = s->d >= 0 ? unread(registers[s->d]) : -1;
    int answer = connect(registers[s->a], (void *)&to, length);
    if (!answer) remember_client(registers[s->a]);
    int failed = errno;
    for (int n = 0; !answer && before >= 0 && n < 4000 && unread(registers[s->d]) <= before; n++) usleep(500);
    errno = failed;
    done(answer);
}

static void accepts(const step *s) {
    struct sockaddr_storage from;
    socklen_t length = s->d < 0 ? (socklen_t)s->d : s->d == 0 ? sizeof from : (socklen_t)s->d;
    char text[100];
    int flags = (s->c & 1 ? SOCK_NONBLOCK : 0) | (s->c & 2 ? SOCK_CLOEXEC : 0) | (s->c & 4 ? 0x10 : 0);
    memset(&from, 0, sizeof from);
#ifndef __GLIBC__
    // Where musl's accept4 gets EINVAL, it tries once more without the flags.
    if (s->c & 4) return say("not tried");
    if (s->d < 0) flags = 0;
#endif
    interrupted(registers[s->b]);
    int fd = s->c & 8 ? accept(registers[s->b], NULL, NULL)
           : s->c & 16 || (flags == 0 && s->d < 0) ? accept(registers[s->b], (void *)&from, &length)
           : accept4(registers[s->b], (void *)&from, &length, flags);
    interrupted(-1);
    if (fd < 0) return done(fd);
    int status = fcntl(fd, F_GETFL), cloexec = fcntl(fd, F_GETFD);
    put(s->a, fd);
    say("ok %s%s%s", status & O_NONBLOCK ? "non-blocking " : "", cloexec & 1 ? "cloexec " : "", s->c & 8 ? "" : shown(&from, length, text));
}

static const struct { int level, name; } options[] = {
    {SOL_SOCKET, SO_REUSEADDR}, {SOL_SOCKET, SO_KEEPALIVE}, {IPPROTO_TCP, TCP_NODELAY}, {SOL_SOCKET, SO_REUSEPORT},
    {SOL_SOCKET, SO_ACCEPTCONN}, {SOL_SOCKET, SO_TYPE}, {SOL_SOCKET, SO_PROTOCOL}, {SOL_SOCKET, SO_DOMAIN}, {SOL_SOCKET, SO_ERROR},
    {IPPROTO_TCP, TCP_DEFER_ACCEPT}, {SOL_SOCKET, SO_OOBINLINE}, {IPPROTO_TCP, TCP_KEEPIDLE},
};
enum { OPTIONS = sizeof options / sizeof *options };

static void events(short seen, char text[100]) {
    static const struct { short bit; const char *name; } names[] = {{POLLIN, "in"}, {POLLOUT, "out"}, {POLLERR, "err"},
        {POLLHUP, "hup"}, {POLLRDHUP, "rdhup"}, {POLLPRI, "pri"}, {POLLNVAL, "nval"}};
    text[0] = 0;
    for (unsigned n = 0; n < sizeof names / sizeof *names; n++) if (seen & names[n].bit) strcat(strcat(text, " "), names[n].name);
}

static void polls(const step *s) {
    struct pollfd one = {registers[s->a], (short)s->b, 0};
    char text[100];
    int answer = poll(&one, 1, s->c);
    events(one.revents, text);
    if (answer < 0) done(answer); else say("%d%s", answer, text);
}

static void selects(const step *s) {
    fd_set in, out, other;
    struct timeval soon = {0, s->b * 1000};
    int fd = registers[s->a];
    if (fd < 0) return say("closed");
    FD_ZERO(&in);
    FD_ZERO(&out);
    FD_ZERO(&other);
    if (s->c & 1) FD_SET(fd, &in);
    if (s->c & 2) FD_SET(fd, &out);
    if (s->c & 4) FD_SET(fd, &other);
    int answer = select(fd + 1, &in, &out, &other, &soon);
    if (answer < 0) done(answer);
    else say("%d%s%s%s", answer, FD_ISSET(fd, &in) ? " in" : "", FD_ISSET(fd, &out) ? " out" : "", FD_ISSET(fd, &other) ? " other" : "");
}

// Events: by registers, in their order.
static void waits(const step *s) {
    struct epoll_event seen[REGISTERS];
    char line[300] = "", text[100], entry[130];
    int answer = epoll_wait(registers[s->a], seen, REGISTERS, s->b);
    if (answer < 0) return done(answer);
    for (unsigned at = 0; at < REGISTERS; at++)
        for (int n = 0; n < answer; n++)
            if (seen[n].data.u32 == at) {
                events((short)seen[n].events, text);
                snprintf(entry, sizeof entry, " [%u%s]", at, text);
                if (strlen(line) + strlen(entry) < sizeof line) strcat(line, entry);
            }
    say("%d%s", answer, line);
}

static void controls(const step *s) {
    static const int what[] = {EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL};
    static const unsigned how[] = {0, EPOLLET, EPOLLONESHOT, EPOLLET | EPOLLONESHOT, EPOLLEXCLUSIVE};
    unsigned events = (s->d & 0x7f) | (s->d & 0x80 ? EPOLLRDHUP : 0);
    struct epoll_event event = {events | how[s->d >> 8], {.u32 = (unsigned)s->c}};
    done(epoll_ctl(registers[s->a], what[s->b], registers[s->c], &event));
}

// A message with a descriptor (-1: none), and with the register that it is for.
static long send_right(int to, int fd, int at) {
    char byte = (char)at, room[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = fd < 0 ? 0 : sizeof room};
    if (fd >= 0) {
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET, rights->cmsg_type = SCM_RIGHTS, rights->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(rights), &fd, sizeof fd);
    }
    return sendmsg(to, &message, 0);
}

static long receive_right(int from, int *fd, int *at) {
    char byte = 'x', room[CMSG_SPACE(sizeof *fd)] = {0};
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    long answer = recvmsg(from, &message, 0);
    *fd = -1, *at = byte;
    if (answer > 0 && CMSG_FIRSTHDR(&message)) memcpy(fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof *fd);
    return answer;
}

// Sends a descriptor to this process itself.
static void passes(const step *s) {
    int ends[2], fd = -1, at;
    if (registers[s->b] < 0) return say("closed");
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) die("socketpair");
    long answer = send_right(ends[0], registers[s->b], s->a);
    if (answer > 0) answer = receive_right(ends[1], &fd, &at);
    close(ends[0]), close(ends[1]);
    done(answer);
    put(s->a, fd);
}

// Sends a descriptor to the parent, which has it when this returns.
static void gives(const step *s) {
    char byte;
    if (registers[s->b] < 0) return say("closed");
    if (send_right(TO_PARENT, registers[s->b], s->a) < 0 || read(TO_PARENT, &byte, 1) != 1) die("give");
    say("ok");
}

static void moves_bytes(const step *s) {
    char bytes[8] = "abcdefg";
    int fd = registers[s->a], flags = (s->c & 1 ? MSG_PEEK : 0) | (s->c & 2 ? MSG_DONTWAIT : 0) | (s->c & 4 ? MSG_NOSIGNAL : 0);
    struct iovec parts[2] = {{bytes, 1}, {bytes + 1, s->d > 1 ? (size_t)s->d - 1 : 0}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    struct mmsghdr messages[2] = {{.msg_hdr = message}, {.msg_hdr = message}};
    unsigned how = s->c & 2 ? SPLICE_F_NONBLOCK : 0;
    off_t start = 0;
    int ends[2] = {-1, -1};
    if (s->b > 12 && pipe(ends)) die("pipe");
    if (s->b == 14 && write(ends[1], bytes, s->d) != s->d) die("pipe");
    interrupted(fd);
    switch (s->b) {
    case 0: result(read(fd, bytes, s->d)); break;
    case 1: result(readv(fd, parts, 2)); break;
    case 2: result(recv(fd, bytes, s->d, flags)); break;
    case 3: result(recvfrom(fd, bytes, s->d, flags, NULL, NULL)); break;
    case 4: result(recvmsg(fd, &message, flags)); break;
    case 5: result(write(fd, bytes, s->d)); break;
    case 6: result(writev(fd, parts, 2)); break;
    case 7: result(send(fd, bytes, s->d, flags)); break;
    case 8: result(sendto(fd, bytes, s->d, flags, NULL, 0)); break;
    case 9: result(sendmsg(fd, &message, flags)); break;
    case 10: result(recvmmsg(fd, messages, s->d > 1, flags, NULL)); break;
    case 11: result(sendmmsg(fd, messages, s->d > 1, flags)); break;
    case 12: result(sendfile(fd, SHARED, &start, s->d)); break;
    case 13: result(splice(fd, NULL, ends[1], NULL, s->d, how)); break;
    case 14: result(splice(ends[0], NULL, fd, NULL, s->d, how)); break;
    }
    interrupted(-1);
    if (ends[0] >= 0) close(ends[0]), close(ends[1]);
}

static int is(const step *s, const char *name) { return !strcmp(s->name, name); }

static void run(int from, int to);

static void in_child(const step *s, int from) {
    pid_t child = fork();
    int status;
    if (child < 0) die("fork");
    if (child == 0) {
        if (is(s, "exec")) {
            char words[REGISTERS + 2][12], *arguments[REGISTERS + 7] = {"steps", (char *)script_name, "-"};
            int numbers[REGISTERS + 2];
            memcpy(numbers, registers, sizeof registers), numbers[REGISTERS] = from, numbers[REGISTERS + 1] = from + s->a;
            for (int n = 0; n < REGISTERS + 2; n++) snprintf(words[n], sizeof words[n], "%d", numbers[n]), arguments[3 + n] = words[n];
            execv("/proc/self/exe", arguments);
            die("exec");
        }
        run(from, from + s->a);
        send_right(TO_PARENT, -1, 0);
        _exit(0);
    }
    for (;;) {
        struct pollfd one = {FROM_CHILD, POLLIN, 0};
        int fd, at;
        if (poll(&one, 1, 1000) > 0) {
            if (receive_right(FROM_CHILD, &fd, &at) < 0 || fd < 0) break;
            put(at, fd);
            if (write(FROM_CHILD, "x", 1) != 1) die("give");
        } else if (waitpid(child, &status, WNOHANG) == child) return say("ended %d", status);
    }
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    say("ended %d", status);
}

static void one(const step *s, int at) {
    static const int hows[] = {SHUT_RD, SHUT_WR, SHUT_RDWR};
    struct sockaddr_storage name;
    socklen_t length = sizeof name;
    char text[100];
    int fd = registers[s->a], value = s->c;
    memset(&name, 0, sizeof name);
    if (is(s, "socket")) {
        int made = socket(s->b ? AF_INET6 : AF_INET, SOCK_STREAM | (s->c & 1 ? SOCK_NONBLOCK : 0) | (s->c & 2 ? SOCK_CLOEXEC : 0), 0);
        put(s->a, made), done(made);
    } else if (is(s, "bind")) length = address(&name, s->b, s->c), done(bind(fd, (void *)&name, s->d ? (socklen_t)s->d : length));
    else if (is(s, "listen")) done(listen(fd, s->b));
    else if (is(s, "connect")) connects(s);
    else if (is(s, "accept")) accepts(s);
    else if (is(s, "close")) done(fd < 0 ? (errno = EBADF, -1) : close(fd)), registers[s->a] = -1;
    else if (is(s, "range")) done(fd < 0 ? (errno = EBADF, -1) : (int)syscall(SYS_close_range, fd, fd, 0)), registers[s->a] = -1;
    else if (is(s, "shutdown")) done(shutdown(fd, hows[s->b]));
    else if (is(s, "dup")) { int copy = dup(registers[s->b]); done(copy), put(s->a, copy); }
    else if (is(s, "fdup")) { int copy = fcntl(registers[s->b], s->c ? F_DUPFD_CLOEXEC : F_DUPFD, 40); done(copy), put(s->a, copy); }
    else if (is(s, "dup2")) done(fd < 0 ? (errno = EBADF, -1) : s->c ? dup3(registers[s->b], fd, O_CLOEXEC) : dup2(registers[s->b], fd));
    else if (is(s, "pass")) passes(s);
    else if (is(s, "give")) gives(s);
    else if (is(s, "fork") || is(s, "exec")) in_child(s, at + 1);
    else if (is(s, "poll")) polls(s);
    else if (is(s, "select")) selects(s);
    else if (is(s, "epoll")) { int made = epoll_create1(EPOLL_CLOEXEC); done(made), put(s->a, made); }
    else if (is(s, "control")) controls(s);
    else if (is(s, "wait")) waits(s);
    else if (is(s, "bytes")) moves_bytes(s);
    else if (is(s, "unread")) { int bytes = -1, answer = ioctl(fd, s->b ? TIOCOUTQ : FIONREAD, &bytes); if (answer < 0) done(answer); else say("%d", bytes); }
    else if (is(s, "fionbio")) done(ioctl(fd, FIONBIO, &value));
    else if (is(s, "setfl")) done(fcntl(fd, F_SETFL, s->b ? O_NONBLOCK : 0));
    else if (is(s, "getfl")) { int flags = fcntl(fd, F_GETFL); if (flags < 0) done(flags); else say("%s", flags & O_NONBLOCK ? "non-blocking" : "blocking"); }
    else if (is(s, "getfd")) { int flags = fcntl(fd, F_GETFD); if (flags < 0) done(flags); else say("%d", flags); }
    else if (is(s, "setfd")) done(fcntl(fd, F_SETFD, s->b));
    else if (is(s, "name")) { int answer = getsockname(fd, (void *)&name, &length); if (answer) done(answer); else say("%s", shown(&name, length, text)); }
    else if (is(s, "peer")) { int answer = getpeername(fd, (void *)&name, &length); if (answer) done(answer); else say("%s", shown(&name, length, text)); }
    else if (is(s, "set")) done(setsockopt(fd, options[s->b % OPTIONS].level, options[s->b % OPTIONS].name, &value, sizeof value));
    else if (is(s, "get")) { length = sizeof value; int answer = getsockopt(fd, options[s->b % OPTIONS].level, options[s->b % OPTIONS].name, &value, &length); if (answer) done(answer); else say("%d length %d", value, (int)length); }
    else if (is(s, "timeout")) { struct timeval soon = {0, s->b * 1000}; done(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon)); }
    else die(s->name);
}

static void run(int from, int to) {
    for (int at = from; at < to; at++) {
        number = at, errno = 0;
        one(&script[at], at);
        // Its steps ran in the child.
        if (is(&script[at], "fork") || is(&script[at], "exec")) at += script[at].a;
    }
}

static void read_script(void) {
    FILE *file = fopen(script_name, "r");
    char line[100];
    if (!file) die("script");
    while (fgets(line, sizeof line, file)) {
        step s = {0};
        if (sscanf(line, "%15s %d %d %d %d", s.name, &s.a, &s.b, &s.c, &s.d) < 2) continue;
        if (steps % 1000 == 0 && !(script = realloc(script, (steps + 1000) * sizeof *script))) die("realloc");
        script[steps++] = s;
    }
    fclose(file);
}

// A sequence has a process of its own. It stays for a while after its last step: what it closed is not closed by its death.
static void sequence(int from, int to, int pair[2], int own) {
    pid_t child = fork();
    char byte;
    if (child < 0) die("fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(pair[0]), close(own);
        run(from, to);
        for (int n = 0; n < REGISTERS; n++) if (registers[n] >= 0) close(registers[n]);
        if (write(pair[1], "x", 1) != 1) die("write");
        usleep(1700000);
        _exit(0);
    }
    if (read(pair[0], &byte, 1) != 1) die("read");
}

// A listener like any server's: when its first connection is here, the server is served.
static int served(void) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(FIRST_PORT - 1), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), client = socket(AF_INET, SOCK_STREAM, 0), accepted;
    if (bind(fd, (void *)&to, sizeof to) || listen(fd, 10) || connect(client, (void *)&to, sizeof to)) die("own listener");
    if ((accepted = accept(fd, NULL, NULL)) < 0) die("own accept");
    close(client), close(accepted);
    return fd;
}

int main(int count, char **words) {
    struct sigaction pipe_action = {.sa_handler = on_pipe}, alarm_action = {.sa_handler = on_alarm};
    struct rlimit files;
    const char *slot = getenv("ROUNDSMAN_SLOT");
    if (count < 3) return 2;
    while (slot && strcmp(slot, "0")) pause();
    sigaction(SIGPIPE, &pipe_action, NULL), sigaction(SIGALRM, &alarm_action, NULL);
    script_name = words[1];
    read_script();
    if (count > 3) {
        shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, SHARED, 0);
        if (shared == MAP_FAILED) die("mmap");
        for (int n = 0; n < REGISTERS; n++) {
            registers[n] = atoi(words[3 + n]);
            // Closed by exec.
            if (registers[n] >= 0 && fcntl(registers[n], F_GETFD) < 0) registers[n] = -1;
        }
        run(atoi(words[3 + REGISTERS]), atoi(words[4 + REGISTERS]));
        send_right(TO_PARENT, -1, 0);
        return 0;
    }
    getrlimit(RLIMIT_NOFILE, &files), files.rlim_cur = files.rlim_max < 4096 ? files.rlim_max : 4096, setrlimit(RLIMIT_NOFILE, &files);
    char partial[400];
    snprintf(partial, sizeof partial, "%s.partial", words[2]);
    int out = open(partial, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0666), memory = memfd_create("shared", 0), pair[2], family[2];
    if (out < 0 || memory < 0 || dup2(out, OUT) < 0 || dup2(memory, SHARED) < 0 || ftruncate(SHARED, sizeof *shared)) die("files");
    close(out), close(memory);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, SHARED, 0);
    if (shared == MAP_FAILED || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) die("shared");
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, family) || dup2(family[0], TO_PARENT) < 0 || dup2(family[1], FROM_CHILD) < 0) die("family");
    close(family[0]), close(family[1]);
    for (int n = 0; n < REGISTERS; n++) registers[n] = -1;
    int own = served();
    for (int at = 0, place = 0; at < steps; place++) {
        int from = at + 1, to = from;
        while (to < steps && !is(&script[to], "seq")) to++;
        // Ports are of the place in the script, so that one sequence runs on several of them.
        shared->sequence = place, shared->clients = 0, number = at;
        say("%d", script[at].a);
        sequence(from, to, pair, own);
        at = to;
    }
    // The last of them need not have ended.
    if (rename(partial, words[2])) die("rename");
    while (wait(NULL) > 0 || errno == EINTR) {}
    // A server goes on.
    for (;;) pause();
}
