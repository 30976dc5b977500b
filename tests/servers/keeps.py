"""An HTTP server that does with a connection what its path says, and gives all of them up at its stop signal.

KEEPS=random: from its stop signal on it reads a few bytes at a time, and closes connections at any moment.
KEEPS=full: from its stop signal on it can open nothing.
KEEPS=brief: it ends at once.
KEEPS=both: one thread shuts a connection down while another one closes it.
KEEPS=hung: it stops its parent, the master, first, and ends at once.
KEEPS=hung-close, KEEPS=hung-shutdown: the same, after it has closed its listener or shut it down.
"""
import os, random, resource, selectors, signal, socket, subprocess, sys, threading, time

sys.dont_write_bytecode = True
import unusual

PID = str(os.getpid())
WILD = os.environ.get("KEEPS") == "random"
HUNG = os.environ.get("KEEPS", "") if os.environ.get("KEEPS", "").startswith("hung") else None
selector = selectors.DefaultSelector()
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=100)
listener.setblocking(False)
selector.register(listener, selectors.EVENT_READ)
connections = {}
kept = []
stopping = None


class Connection:
    def __init__(self, sock):
        self.sock, self.data, self.mode, self.path = sock, b"", "", ""
        self.owes, self.proxy = False, ""

    def receive(self):
        limit = 65536
        if self.mode == "heads":
            waiting = self.sock.recv(65536, socket.MSG_PEEK)
            limit = max(waiting.find(b"\r\n\r\n") + 4, 1)
        elif self.mode == "bytes":
            limit = 1
        elif WILD and stopping:
            limit = random.choice([1, 2, 7, 30, 65536])
        if self.mode == "vectors":
            buffers = [bytearray(3), bytearray(20), bytearray(5000)]
            n = os.readv(self.sock.fileno(), buffers)
            return b"".join(buffers)[:n]
        if self.mode == "messages":
            return self.sock.recvmsg(limit)[0]
        if self.mode == "read-at":
            buffer = bytearray(limit)
            return bytes(buffer[:os.preadv(self.sock.fileno(), [buffer], -1)])
        if self.mode == "many":
            return unusual.recvmmsg(self.sock.fileno())
        if self.mode == "ring":
            return unusual.Ring().read(self.sock.fileno())
        return self.sock.recv(limit)

    def request(self):
        """The next one, if it is there: method, path, body."""
        head, end, rest = self.data.partition(b"\r\n\r\n")
        if not end:
            return None
        lines = head.decode("latin1").split("\r\n")
        fields = dict(line.lower().split(":", 1) for line in lines[1:] if ":" in line)
        length = int(fields.get("content-length", 0))
        if len(rest) < length:
            return None
        self.data = rest[length:]
        method, path, _ = lines[0].split(" ")
        return method, path, rest[:length]

    def send(self, text):
        self.sock.setblocking(True)
        self.sock.sendall(text if isinstance(text, bytes) else text.encode())
        self.sock.setblocking(False)

    def answer(self, method, path, body):
        self.path, text = path, f"{PID} {path}"
        whole = f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}"
        if path == "/until-close":
            self.send(f"HTTP/1.1 200 OK\r\n\r\n{text}")
        elif path == "/old":
            self.send(f"HTTP/1.0 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}")
        elif path == "/says-close":
            self.send(f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(text)}\r\n\r\n{text}")
        elif path == "/events":
            self.send(f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{len(text):x}\r\n{text}\r\n")
        elif path == "/events-ended":
            self.send(f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{len(text):x}\r\n{text}\r\n0\r\n\r\n")
        elif path == "/socket":
            self.send(f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n{text}")
        elif path == "/short":
            self.send(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text) + 5}\r\n\r\n{text}")
        elif path == "/silent":
            pass
        elif path in ("/slow", "/slower"):
            self.owes = True
            threading.Timer(0.5 if path == "/slow" else 3, self.answer_late, [whole]).start()
        elif path == "/peer":
            text = self.proxy or "%s:%d" % self.sock.getpeername()
            self.send(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}")
        elif path in ("/heads", "/bytes", "/vectors", "/messages", "/read-at", "/many", "/ring"):
            self.mode = path[1:]
            self.send(whole)
        elif path == "/large":
            large = b"".join(b"%016d" % at for at in range((4 << 20) // 16))
            self.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(large) + large)
        elif path == "/parts":
            for at in range(0, len(whole), 3):
                self.send(whole[at:at + 3])
        elif path == "/vector":
            os.writev(self.sock.fileno(), [whole[:9].encode(), b"", whole[9:].encode()])
        elif path == "/message":
            self.sock.sendmsg([whole[:30].encode(), whole[30:].encode()])
        elif path == "/written-at":
            os.pwritev(self.sock.fileno(), [whole[:9].encode(), whole[9:].encode()], -1)
        elif path == "/many-written":
            unusual.sendmmsg(self.sock.fileno(), whole.encode())
        elif path == "/ring-written":
            unusual.Ring().write(self.sock.fileno(), whole.encode())
        elif path == "/stdio":
            unusual.stdio(self.sock.fileno(), whole.encode())
        elif path == "/splice":
            unusual.splice(self.sock.fileno(), whole.encode())
        elif path == "/zerocopy":
            self.sock.setsockopt(socket.SOL_SOCKET, 60, 1)
            self.sock.send(whole.encode(), 0x4000000)
        elif path == "/file":
            with open(__file__, "rb") as file:
                self.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
                os.sendfile(self.sock.fileno(), file.fileno(), 0, 100)
        elif path == "/child":
            self.sock.setblocking(True)
            subprocess.run(["printf", "%s", whole], stdout=self.sock.fileno(), check=True)
            self.sock.setblocking(False)
        elif path == "/copy":
            kept.append(self.sock.dup())
            self.send(whole)
        elif path == "/passed":
            kept.extend(socket.socketpair())
            socket.send_fds(kept[-1], [b"x"], [self.sock.fileno()])
            self.send(whole)
        elif path == "/resets":
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.send(whole)
        elif path == "/thread":
            self.send(whole)
            selector.unregister(self.sock)
            self.sock.setblocking(True)
            threading.Thread(target=lambda: self.sock.recv(100), daemon=True).start()
        elif path == "/forked":
            # A child goes on with it.
            self.send(whole)
            selector.unregister(self.sock)
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                self.sock.setblocking(True)
                for _ in range(2):
                    self.sock.recv(65536)
                    text = f"{os.getpid()} child"
                    self.send(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}")
                os._exit(0)
        else:
            if method == "POST":
                print("ran", path, len(body), flush=True)
            self.send(whole)

    def answer_late(self, text):
        self.send(text)
        self.owes = False

    def ready(self):
        try:
            data = self.receive()
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            return self.close()
        self.data += data
        if self.data.startswith(b"\x16\x03"):
            self.data = b""
            return self.send(b"\x16\x03\x03\0\x05hello")
        if self.data.startswith(b"PING\r\n"):
            self.data = b""
            return self.send(b"+PONG\r\n")
        if self.data.startswith(b"PRI * HTTP/2.0"):
            self.data = b""
            return self.send(b"\0\0\0\4\0\0\0\0\0")
        if self.data.startswith(b"PROXY "):
            line, _, self.data = self.data.partition(b"\r\n")
            self.proxy = line.decode()
        first = True
        while self.mode != "heads" and (request := self.request()):
            if first or request[1] != "/one-of-two":
                self.answer(*request)
            first = False

    def close(self):
        if connections.pop(self.sock.fileno(), None) is None:
            return
        try:
            selector.unregister(self.sock)
        except KeyError:
            pass
        if os.environ.get("KEEPS") == "both":
            fd, begin = self.sock.detach(), threading.Barrier(2)
            calls = [lambda: unusual.libc.shutdown(fd, 2), lambda: unusual.libc.close(fd)]
            threads = [threading.Thread(target=lambda call=call: (begin.wait(), call())) for call in calls]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            return
        if self.path == "/shutdown":
            self.sock.shutdown(socket.SHUT_WR)
        self.sock.close()


def give_up():
    for connection in list(connections.values()):
        if not connection.owes:
            connection.close()


def stop(*_):
    global stopping
    if stopping is None:
        stopping = time.monotonic()
        if os.environ.get("KEEPS") == "full":
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        if HUNG:
            os.kill(os.getppid(), signal.SIGSTOP)
        if HUNG and HUNG != "hung":
            selector.unregister(listener)
            listener.shutdown(socket.SHUT_RDWR) if HUNG == "hung-shutdown" else listener.close()
        if not WILD:
            give_up()
        if HUNG or os.environ.get("KEEPS") == "brief":
            os._exit(0)


signal.signal(signal.SIGTERM, stop)
while stopping is None or time.monotonic() < stopping + 0.4 or any(one.owes for one in connections.values()):
    if stopping and not WILD:
        give_up()
    for key, _ in selector.select(0.002 if stopping else 0.05):
        if key.fileobj is listener:
            try:
                sock, _ = listener.accept()
            except OSError:
                continue
            sock.setblocking(False)
            connections[sock.fileno()] = Connection(sock)
            selector.register(sock, selectors.EVENT_READ)
        elif connection := connections.get(key.fd):
            connection.ready()
    if stopping and WILD:
        for connection in list(connections.values()):
            if random.random() < 0.3:
                connection.close()
