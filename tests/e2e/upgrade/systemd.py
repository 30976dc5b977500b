"""Stands in for systemd: keeps descriptors (FDSTORE), starts a service again when it was killed, and passes them.

Arguments: the directory of the NOTIFY_SOCKET, then the command. Words on stdin: kill (the service, with SIGKILL), term.
Lines on stdout: "ready", "stored N" after each change, "ended CODE".
"""
import array, os, select, signal, socket, sys

directory, command = sys.argv[1], sys.argv[2:]
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
path = os.path.join(directory, "notify")
notify.bind(path)
store = {}


def say(*words):
    print(*words, flush=True)


def start():
    names = list(store)
    pid = os.fork()
    if pid == 0:
        os.environ["NOTIFY_SOCKET"] = path
        # Above those numbers that they are to have.
        held = [os.dup2(store[name], 200 + at) for at, name in enumerate(names)]
        if held:
            os.environ["LISTEN_PID"] = str(os.getpid())
            os.environ["LISTEN_FDS"] = str(len(held))
            os.environ["LISTEN_FDNAMES"] = ":".join(names)
        for at, fd in enumerate(held):
            os.dup2(fd, 3 + at, inheritable=True)
        os.closerange(3 + len(held), 1000)
        os.execv(command[0], command)
    return pid


def take():
    message, control, _, _ = notify.recvmsg(4096, socket.CMSG_SPACE(16))
    fds = array.array("i")
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    lines = message.decode().split("\n")
    name = next((line[7:] for line in lines if line.startswith("FDNAME=")), "stored")
    if "FDSTORE=1" in lines:
        assert "FDPOLL=0" in lines and len(fds) == 1, lines
        if any(os.fstat(fd).st_ino == os.fstat(fds[0]).st_ino for fd in store.values()):
            os.close(fds[0])
        else:
            store[name] = fds[0]
        say("stored", len(store))
        return
    for fd in fds:  # BARRIER=1
        os.close(fd)
    if "FDSTOREREMOVE=1" in lines:
        if name in store:
            os.close(store.pop(name))
        say("stored", len(store))
    if "READY=1" in lines:
        say("ready")


child = start()
while True:
    readable, _, _ = select.select([notify, sys.stdin.fileno()], [], [], 0.2)
    if os.waitpid(child, os.WNOHANG)[0]:
        sys.exit("the service has ended by itself")
    if notify in readable:
        take()
    if sys.stdin.fileno() in readable:
        word = sys.stdin.readline().strip()
        if word == "kill":
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            child = start()
        elif word == "term":
            os.kill(child, signal.SIGTERM)
            while True:
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    break
                if select.select([notify], [], [], 0.02)[0]:
                    take()
            while select.select([notify], [], [], 0.1)[0]:
                take()
            say("ended", os.waitstatus_to_exitcode(status))
            break
        else:
            os.kill(child, signal.SIGKILL)
            break
