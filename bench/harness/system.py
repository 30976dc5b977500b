"""What is asked of the machine: processes, their CPU time and memory, ports, the kernel's own counters."""
import glob, json, os, shutil, socket, subprocess, sys, time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROOT = os.path.dirname(HERE)
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
PLACE = os.path.join(TARGET, "bench")
BINARY = os.environ.get("ROUNDSMAN", os.path.join(TARGET, "release/roundsman"))
LOAD = os.path.join(PLACE, "release/bench-load")


def sh(*argv, **kw):
    return subprocess.run(argv, check=True, capture_output=True, text=True, **kw).stdout


def install():
    """Peers and tools from the distribution's packages, our load generator and roundsman itself."""
    packages = {"haproxy": "haproxy", "nginx": "nginx-light", "wrk": "wrk", "node": "nodejs", "npm": "npm", "cmake": "cmake", "protoc": "protobuf-compiler",
                "strace": "strace"}
    missing = [package for tool, package in packages.items() if not shutil.which(tool)]
    if not glob.glob("/usr/lib/nginx/modules/ngx_stream_module.so"):
        missing.append("libnginx-mod-stream")
    packaged(missing)
    if "ROUNDSMAN" not in os.environ:
        subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=ROOT, check=True)
    os.makedirs(PLACE, exist_ok=True)
    subprocess.run(["cargo", "build", "--release", "--quiet", "--locked", "--target-dir", PLACE],
                   cwd=os.path.join(HERE, "load"), check=True)
    if not os.path.exists(pm2()):
        subprocess.run(["npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", PLACE, "pm2@6"], check=True)


def packaged(missing):
    """Packages of the distribution."""
    if missing:
        env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        sh("apt-get", "update", env=env)
        sh("apt-get", "install", "-y", "--no-install-recommends", *missing, env=env)


def program(tool):
    """A server that only some scenarios need; its path, or None where it cannot be installed."""
    if not shutil.which(tool):
        try:
            packaged([{"java": "default-jdk-headless"}.get(tool, tool)])
        except subprocess.CalledProcessError as error:
            print(f"{tool}: {error.stderr.strip().splitlines()[-1:]}; left out", file=sys.stderr)
    return shutil.which(tool)


def python(tool):
    """A server of the Python packages, installed once."""
    path = os.path.join(PLACE, "venv/bin", tool)
    if not os.path.exists(path):
        sh(sys.executable, "-m", "venv", os.path.join(PLACE, "venv"))
        sh(os.path.join(PLACE, "venv/bin/pip"), "install", "--quiet", "--disable-pip-version-check", "gunicorn==23.0.0", "uvicorn==0.34.0")
    return path


def knows(option):
    """Whether the program that is measured has an option: an older one is compared without it."""
    return option in sh(BINARY, "--help")


def pm2():
    return os.path.join(PLACE, "node_modules/.bin/pm2-runtime")


def optional(name, *build):
    """A peer that is built where that works; its path, or None."""
    path = os.path.join(PLACE, name)
    if not os.path.exists(path):
        print(f"building {name.split('/')[-1]} …", file=sys.stderr)
        result = subprocess.run(build, capture_output=True, text=True)
        if result.returncode != 0:
            print(f"{name} does not build here: {result.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
    return path if os.path.exists(path) else None


def sozu():
    return optional("bin/sozu", "cargo", "install", "sozu", "--locked", "--quiet", "--root", PLACE,
                    "--target-dir", os.path.join(PLACE, "sozu"))


def pingora():
    return optional("release/pingora-proxy", "cargo", "build", "--release", "--locked", "--quiet", "--target-dir", PLACE,
                    "--manifest-path", os.path.join(HERE, "pingora/Cargo.toml"))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_port(port, who, log):
    for _ in range(1500):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    sys.exit(f"{who} does not listen on port {port}: {open(log).read()[-2000:]}")


def tree(pid):
    """A process and all below it."""
    found, todo = [], [pid]
    while todo:
        pid = todo.pop()
        found.append(pid)
        for task in glob.glob(f"/proc/{pid}/task/*/children"):
            try:
                todo += [int(child) for child in open(task).read().split()]
            except OSError:
                pass
    return found


def own_cpu(pid):
    """CPU seconds of one process, all threads."""
    total = 0
    for path in glob.glob(f"/proc/{pid}/task/*/schedstat"):
        try:
            total += int(open(path).read().split()[0])
        except OSError:
            pass
    return total / 1e9


def cpu(pid):
    """CPU seconds of a process tree, all threads."""
    return sum(own_cpu(one) for one in tree(pid))


def pss(pid):
    """Bytes of memory of a process tree; what is shared counts in parts."""
    total = 0
    for one in tree(pid):
        for line in open(f"/proc/{one}/smaps_rollup"):
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def kernel_memory():
    """Bytes of the kernel's own: slabs, page tables, stacks, per-CPU."""
    wanted = {"Slab:", "PageTables:", "KernelStack:", "Percpu:"}
    return sum(int(line.split()[1]) * 1024 for line in open("/proc/meminfo") if line.split()[0] in wanted)


def overflows():
    """Connections that the kernel dropped at a full backlog, ever (TcpExt ListenOverflows and ListenDrops)."""
    lines = [line.split() for line in open("/proc/net/netstat") if line.startswith("TcpExt:")]
    values = dict(zip(lines[0][1:], map(int, lines[1][1:])))
    return values["ListenOverflows"] + values["ListenDrops"]
