"""A server that has its proof and speaks to the daemon without the library: evil.py PORT [counts]

It binds PORT as the library would. Then it fills its counters page with nonsense (counts), or keeps its own socket, too,
makes that blocking again and again, and connects to it.
"""

import array
import fcntl
import mmap
import os
import socket
import struct
import sys
import threading
import time

BIND, LISTEN, BOUND = 1, 2, 10
name, token = os.environ["ROUNDSMAN_ATTACH"].split(":")
port = int(sys.argv[1])
came = []
way = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
way.connect("\0" + name)


def ask(what, number=0, sent=None):
    address = struct.pack("=H", socket.AF_INET) + struct.pack(">H", port) + socket.inet_aton("127.0.0.1") + bytes(20)
    request = struct.pack("=HHI", 1, what, os.getpid()) + bytes.fromhex(token) + struct.pack("=I", number) + address
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sent.fileno()]))] if sent else []
    way.sendmsg([request], rights)
    reply, control, _, _ = way.recvmsg(100, socket.CMSG_SPACE(12))
    for _, _, fds in control:
        came.extend(array.array("i", fds))
    return struct.unpack_from("=HHI", reply)


own = socket.socket()
own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
ask(BIND, 16, own)
own.bind(("127.0.0.1", port))
_, _, listener = ask(BOUND, 0, own)
ask(LISTEN, listener)
if "counts" in sys.argv:
    # The queue, the page, the queue's other end.
    page = mmap.mmap(came[1], 16384)
    page[:] = b"\xff" * 16384
    print("counted", file=sys.stderr, flush=True)
    time.sleep(600)
flags = fcntl.fcntl(own, fcntl.F_GETFL) & ~os.O_NONBLOCK


def block():
    while True:
        fcntl.fcntl(own, fcntl.F_SETFL, flags)


threading.Thread(target=block, daemon=True).start()
print("blocking", file=sys.stderr, flush=True)
while True:
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex(("127.0.0.1", port))
    time.sleep(0.01)
    client.close()
