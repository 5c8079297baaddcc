"""What the scripts here share: one gogate node on free ports, an origin, load, and figures of a process.

The node has one worker and is pinned to the first core; everything else belongs on the second (`OTHER_CORE`).
`GOGATE_BIN` names the binary, default target/dist/gogate if it is there, else target/release/gogate.
"""

import http.client
import json
import os
import pathlib
import re
import resource
import signal
import socket
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
OTHER_CORE = ["taskset", "-c", "1"]


def raise_limit():
    """Every connection is a descriptor."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port, process, seconds=30):
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert process.poll() is None, f"{process.args} ended with {process.returncode}"
            assert time.monotonic() < deadline, f"nothing listens on {port} after {seconds} s"
            time.sleep(0.05)


def end(process):
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def binary():
    named = os.environ.get("GOGATE_BIN")
    found = [pathlib.Path(named)] if named else [ROOT / "target/dist/gogate", ROOT / "target/release/gogate"]
    path = next((path for path in found if path.exists()), None)
    assert path, f"no binary at {' or '.join(map(str, found))}: cargo build --release"
    return path


def memory_kib(pid, which="VmRSS"):
    """Resident memory; `VmHWM`: the most that it was."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{which}:\s+(\d+)", status).group(1))


def cpu_seconds(pid):
    """Of the threads that there are."""
    tasks = pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def call(admin, method, path, body=None, headers=None, timeout=20):
    """The status, the headers and the text of one call at `admin`, an address."""
    connection = http.client.HTTPConnection(admin, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


class Gateway:
    """A node with this document in force; `settings` are variables of the node file."""

    def __init__(self, document, ports, **settings):
        self.folder = tempfile.TemporaryDirectory(prefix="gogate-bench-")
        self.admin = free_port()
        file = pathlib.Path(self.folder.name) / "gateway.yaml"
        file.write_text(document)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GOGATE_")}
        environment |= {
            "GOGATE_NODE_NAME": "bench",
            "GOGATE_NODE_WORKERS": "1",
            "GOGATE_NODE_DATA_DIR": f"{self.folder.name}/data",
            "GOGATE_ADMIN_LISTEN": f"127.0.0.1:{self.admin}",
            "GOGATE_PEER_LISTEN": f"127.0.0.1:{free_port()}",
            "GOGATE_GATEWAY_FILE": str(file),
            "GOGATE_GATEWAY_WATCH": "false",
            "GOGATE_DRAIN_WAIT": "0s",
            "GOGATE_DRAIN_DEADLINE": "5s",
            # No line for each write.
            "GOGATE_LOG_LEVEL": "warn,audit=off",
        } | settings
        self.process = subprocess.Popen(["taskset", "-c", "0", binary(), "serve"], env=environment)
        for port in ports:
            wait_for(port, self.process)

    def call(self, method, path, body=None, headers=None):
        return call(f"127.0.0.1:{self.admin}", method, path, body, headers)

    def apply(self, document):
        status, _, text = self.call("PUT", "/v1/config", document)
        assert status == 200, f"the document is refused: {status} {text}"
        return json.loads(text)["version"]

    def metric(self, sample):
        """The value of one sample, written as in /metrics; 0 if it is not there."""
        _, _, text = self.call("GET", "/metrics")
        found = re.search(rf"^{re.escape(sample)} (\S+)$", text, re.MULTILINE)
        return float(found.group(1)) if found else 0.0

    def memory_kib(self):
        return memory_kib(self.process.pid)

    def cpu_seconds(self):
        return cpu_seconds(self.process.pid)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        end(self.process)
        self.folder.cleanup()


class Origin:
    """nginx with one file of 1 KiB at /1k, which takes bodies, too."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="gogate-origin-")
        self.port = free_port()
        folder = pathlib.Path(self.folder.name)
        folder.chmod(0o755)
        (folder / "1k").write_bytes(os.urandom(1024))
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(
            f"""{user} worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error crit;
worker_rlimit_nofile 20000;
events {{ worker_connections 19000; }}
http {{ access_log off; keepalive_requests 100000000; {temporary}
  server {{ listen 127.0.0.1:{self.port} backlog=4096; root {folder}; default_type application/octet-stream;
    client_max_body_size 0; error_page 405 =200 $uri; }} }}
"""
        )
        path = os.environ["PATH"] + ":/usr/sbin"
        command = [*OTHER_CORE, "nginx", "-c", folder / "nginx.conf"]
        self.process = subprocess.Popen(command, env={**os.environ, "PATH": path}, stderr=subprocess.DEVNULL)
        wait_for(self.port, self.process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        end(self.process)
        self.folder.cleanup()


def milliseconds(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()
    return float(number) * {"us": 1e-3, "ms": 1, "s": 1e3, "m": 6e4}[unit]


class Load:
    """wrk, in the background."""

    def __init__(self, url, seconds, *options):
        command = [*OTHER_CORE, "wrk", "--latency", f"-d{seconds}s", *options, url]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def result(self):
        """Requests, errors in all and by kind, p50 and p99 in ms, and all that it printed."""
        out = self.process.communicate()[0]
        assert self.process.returncode == 0, out
        kinds = {kind: int(count) for kind, count in re.findall(r"(connect|read|write|timeout) (\d+)", out)}
        kinds |= {"status": int(count) for count in re.findall(r"Non-2xx or 3xx responses: (\d+)", out)}
        percentiles = dict(re.findall(r"\s+(50|99)%\s+(\S+)", out))
        return {
            "requests": int(re.search(r"(\d+) requests in", out).group(1)),
            "errors": sum(kinds.values()),
            "kinds": {kind: count for kind, count in kinds.items() if count},
            "p50": milliseconds(percentiles["50"]),
            "p99": milliseconds(percentiles["99"]),
            "printed": out,
        }


def verdict(good, text):
    print(f"{'ok' if good else 'not ok'} - {text}", flush=True)
    return good
