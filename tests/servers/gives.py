"""A server that has its proof and gives sockets to the daemon without the library: what it is not told to give, what is no
connection of the daemon's, and too many.

GET /give gives its own connection, GET /flood everything at once; so does its stop signal. Connections of GET /linger have a full send
buffer, which their last close would wait for; at the stop signal they are given for a listener that does not exist.
"""
import array, os, signal, socket, struct, sys

MOVES, MOVE = 16, 15
name, token = os.environ["ROUNDSMAN_ATTACH"].split(":")[:2]


def request(what, number):
    return struct.pack("=HHI", 1, what, os.getpid()) + bytes.fromhex(token) + struct.pack("=I", number) + bytes(28)


way = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
way.connect("\0" + name)
way.send(request(MOVES, 0))
way.recv(100)


def give(*socks, number=0, message=None):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [one.fileno() for one in socks]))] if socks else []
    try:
        way.sendmsg([message or request(MOVE, number)], rights)
    except OSError as error:
        print("not given:", error, file=sys.stderr, flush=True)


def flood(*mine):
    other = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(other.getsockname())
    accepted, _ = other.accept()
    pair = socket.socketpair()
    for one in [listener, other, client, accepted, pair[0], way, *mine]:
        for number in (0, 1, 4095, 4096, 2**32 - 1):
            give(one, number=number)
    give()
    give(*mine, *pair, client)
    with open("/dev/null") as null:
        give(null)
    for _ in range(5000):
        give(accepted)
    for one in mine:
        for _ in range(5000):
            give(one)


def linger(sock):
    sock.setblocking(False)
    try:
        while True:
            sock.send(bytes(65536))
    except BlockingIOError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 100000))
        lingering.append(sock)


def stop(*_):
    flood(*kept)
    for sock in lingering:
        copy = sock.dup()
        give(sock, number=4095)
        # Whoever is last waits for the client.
        copy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 100000))
    os._exit(0)


kept, lingering = [], []
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=100)
signal.signal(signal.SIGTERM, stop)
while True:
    sock, _ = listener.accept()
    path = sock.recv(4096).split(b" ")[1].decode()
    if path == "/linger":
        linger(sock)
        continue
    if path == "/give":
        give(sock)
        sock.close()
        continue
    if path == "/flood":
        flood(sock)
    text = f"{os.getpid()} {path}"
    sock.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
    if path == "/keep":
        kept.append(sock)
    else:
        sock.close()
