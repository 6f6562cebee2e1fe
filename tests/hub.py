"""A Hugging Face hub for tests, on this machine and from memory.

    hub = Hub(files); hub.start() ... hub.stop()

It answers the three requests that fetching a data set takes: the repository's record, what a file
is (HEAD), and the file, whole or from a byte on. A test can tell it to misbehave.
"""

import hashlib
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from data import fineweb, shards

REPOSITORY = "kjj0/fineweb10B-gpt2"
COMMITS = {"main": fineweb.REVISION, "next": "b" * 40}


def shard(count: int, seed: int) -> bytes:
    tokens = np.random.default_rng(seed).integers(0, 50257, count, dtype=np.uint16)
    return b"".join(shards.shard_parts(tokens))


def vocabulary() -> list[bytes]:
    """As many different tokens as GPT-2 has without the separator, the bytes first."""
    pairs = [bytes([a, b]) for a in range(196) for b in range(256)]
    return ([bytes([byte]) for byte in range(256)] + pairs)[:50256]


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files  # what it serves
        self.record = dict(files)  # what its record says it serves
        self.cuts: dict[str, list[int]] = {}  # bytes after which to drop the connection, in turn
        self.failures: dict[str, list[int]] = {}  # status codes to answer with, in turn; 0: none
        self.ranges = True  # whether it can begin in the middle
        self.asked: Counter[str] = Counter()  # requests by file, "record" for the record
        self.heads: Counter[str] = Counter()  # questions what a file is; failures "HEAD <file>"
        self.starts: list[tuple[str, int]] = []  # (file, first byte) of every request for a file
        self.hold = ""  # a file of which it sends half, and the rest once `released` is set
        self.holding, self.released = threading.Event(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


def next_failure(hub: Hub, key: str) -> int:
    return hub.failures[key].pop(0) if hub.failures.get(key) else 0


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        hub, name = self.server, self.path.partition("?")[0].rpartition("/")[2]
        hub.heads[name] += 1
        if status := next_failure(hub, f"HEAD {name}"):
            return self.answer(status, b"")
        if name not in hub.files:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        commit = self.path.split("/resolve/")[1].partition("/")[0]
        content = hub.record[name]
        about = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}
        return self.answer(200, b"", about | {"X-Linked-Size": str(len(content))})

    def do_GET(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        asks_record = re.fullmatch(f"/api/datasets/{REPOSITORY}/revision/(.+)", path)
        asks_file = re.fullmatch(f"/datasets/{REPOSITORY}/resolve/(.+)/(.+)", path)
        key = asks_file[2] if asks_file else "record" if asks_record else "other"
        hub.asked[key] += 1
        if status := next_failure(hub, key):
            self.answer(status, b"")
        elif asks_record:
            self.send_record(asks_record[1])
        elif asks_file and asks_file[1] in COMMITS.values() and key in hub.files:
            self.send_file(key)
        else:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_record(self, revision: str) -> None:
        commit = COMMITS.get(revision, revision)
        if commit not in COMMITS.values():
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        siblings = [
            {
                "rfilename": name,
                "size": len(content),
                "blobId": "0" * 40,
                "lfs": {
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "size": len(content),
                    "pointerSize": 134,
                },
            }
            for name, content in self.server.record.items()
        ]
        siblings.append({"rfilename": "README.md", "size": 10, "blobId": "1" * 40})
        record = {"id": REPOSITORY, "sha": commit, "siblings": siblings}
        return self.answer(200, json.dumps(record).encode(), {"Content-Type": "application/json"})

    def send_file(self, name: str) -> None:
        hub, content = self.server, self.server.files[name]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(asked[1]) if asked and hub.ranges else 0
        hub.starts.append((name, first))
        if first >= len(content):
            return self.answer(416, b"")
        part = content[first:]
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(part)))
        if first:
            span = f"bytes {first}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", span)
        self.end_headers()
        if hub.cuts.get(name):
            self.wfile.write(part[: hub.cuts[name].pop(0)])
            self.close_connection = True
        elif name == hub.hold:
            half = len(part) // 2
            self.wfile.write(part[:half])
            hub.holding.set()
            hub.released.wait(60)
            self.wfile.write(part[half:])
        else:
            self.wfile.write(part)
        return None
