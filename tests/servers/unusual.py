"""Unusual ways to read from a socket and to write to it."""
import ctypes, mmap, os, struct

libc = ctypes.CDLL(None, use_errno=True)
AT, LEN = ctypes.c_void_p, ctypes.c_size_t


class Part(ctypes.Structure):
    _fields_ = [("at", AT), ("len", LEN)]


class Message(ctypes.Structure):
    _fields_ = [("name", AT), ("name_len", ctypes.c_uint), ("parts", AT), ("count", LEN), ("control", AT),
                ("control_len", LEN), ("flags", ctypes.c_int), ("_gap", ctypes.c_int), ("sent", ctypes.c_uint)]


def _message(buffer):
    part = Part(ctypes.addressof(buffer), len(buffer))
    message = Message(parts=ctypes.addressof(part), count=1)
    message.keeps = part, buffer
    return message


def recvmmsg(fd):
    buffer = ctypes.create_string_buffer(65536)
    message = _message(buffer)
    if libc.recvmmsg(fd, ctypes.byref(message), 1, 0, None) != 1:
        raise OSError(ctypes.get_errno(), "recvmmsg")
    return buffer.raw[:message.sent]


def sendmmsg(fd, data):
    message = _message(ctypes.create_string_buffer(data, len(data)))
    assert libc.sendmmsg(fd, ctypes.byref(message), 1, 0) == 1 and message.sent == len(data)


def stdio(fd, data):
    libc.fdopen.restype = AT
    libc.fwrite.argtypes, libc.fflush.argtypes = [ctypes.c_char_p, LEN, LEN, AT], [AT]
    file = libc.fdopen(fd, b"w")
    assert libc.fwrite(data, 1, len(data), file) == len(data) and libc.fflush(file) == 0


def splice(fd, data):
    out, into = os.pipe()
    os.write(into, data)
    os.close(into)
    assert os.splice(out, fd, len(data)) == len(data)
    os.close(out)


class Ring:
    """io_uring with one entry."""
    READ, WRITE = 22, 23

    def __init__(self):
        parameters = ctypes.create_string_buffer(120)
        self.fd = libc.syscall(425, 1, parameters)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "io_uring_setup")
        self.sq = struct.unpack_from("10I", parameters, 40)
        self.cq = struct.unpack_from("10I", parameters, 80)
        self.rings = mmap.mmap(self.fd, 4096, offset=0)
        self.entries = mmap.mmap(self.fd, 4096, offset=0x10000000)

    def word(self, at):
        return struct.unpack_from("I", self.rings, at)[0]

    def call(self, kind, fd, buffer):
        self.entries[:64] = struct.pack("BBHiQQII", kind, 0, 0, fd, 0, ctypes.addressof(buffer), len(buffer), 0).ljust(64, b"\0")
        tail = self.word(self.sq[1])
        struct.pack_into("I", self.rings, self.sq[6] + 4 * (tail & self.word(self.sq[2])), 0)
        struct.pack_into("I", self.rings, self.sq[1], tail + 1)
        assert libc.syscall(426, self.fd, 1, 1, 1, None, 0) == 1
        head = self.word(self.cq[0])
        result = struct.unpack_from("i", self.rings, self.cq[5] + 16 * (head & self.word(self.cq[2])) + 8)[0]
        struct.pack_into("I", self.rings, self.cq[0], head + 1)
        if result < 0:
            raise OSError(-result, "io_uring")
        return result

    def read(self, fd):
        buffer = ctypes.create_string_buffer(65536)
        n = self.call(self.READ, fd, buffer)
        return buffer.raw[:n]

    def write(self, fd, data):
        assert self.call(self.WRITE, fd, ctypes.create_string_buffer(data, len(data))) == len(data)
