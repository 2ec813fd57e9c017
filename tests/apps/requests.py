"""An HTTP/1.1 app of the test world that says what it was asked: `requests.py NAME PORT`.

Every answer is JSON: the app's name, the method, the target as it came, the headers (names in lower case), and the body's length.
The path may ask for something else:
  /status/503       that status
  /flaky/KEY/2      503 the first two times for this key, then 200
  /slow/200         the answer's head after so many milliseconds
  /chunks/3         the answer's body in so many chunks
  /close            the connection is closed without an answer
"""

import http.server
import json
import sys
import threading
import time

NAME, PORT = sys.argv[1], int(sys.argv[2])
SEEN = {}
LOCK = threading.Lock()


class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Says nothing."""

    def body(self):
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            length = 0
            while size := int(self.rfile.readline().split(b";")[0], 16):
                length += len(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return length
        return len(self.rfile.read(int(self.headers.get("content-length", 0))))

    def answer(self):
        length = self.body()
        parts = self.path.split("?")[0].strip("/").split("/")
        status, chunks = 200, 0
        if parts[0] == "status":
            status = int(parts[1])
        elif parts[0] == "flaky":
            with LOCK:
                SEEN[parts[1]] = SEEN.get(parts[1], 0) + 1
                status = 503 if SEEN[parts[1]] <= int(parts[2]) else 200
        elif parts[0] == "slow":
            time.sleep(int(parts[1]) / 1000)
        elif parts[0] == "chunks":
            chunks = int(parts[1])
        elif parts[0] == "close":
            self.close_connection = True
            return
        headers = {}
        for name, value in self.headers.items():
            headers[name.lower()] = f"{headers[name.lower()]}, {value}" if name.lower() in headers else value
        said = {"name": NAME, "method": self.command, "target": self.path, "headers": headers, "length": length}
        text = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        if chunks:
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for part in [text] + [b" "] * (chunks - 1):
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = answer


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True


Server(("0.0.0.0", PORT), App).serve_forever()
