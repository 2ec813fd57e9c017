"""Both ends of a connection as Python's own clients and servers have them: an app of the test world. The same programs
as go/main.go, where it is said what they print."""

import asyncio
import hashlib
import http.client
import http.server
import ipaddress
import socket
import socketserver
import sys
import threading

PAYLOAD = bytes((i * 31 + (i >> 8)) & 0xFF for i in range(100_000))


def checksum(data):
    return hashlib.sha256(data).hexdigest()


def text(address):
    ip = ipaddress.ip_address(address[0])
    return f"[{ip}]:{address[1]}" if ip.version == 6 else f"{ip}:{address[1]}"


class Witness(socketserver.BaseRequestHandler):
    def handle(self):
        ends = f"{text(self.client_address)} {text(self.request.getsockname())}\n"
        self.request.sendall(ends.encode())
        while part := self.request.recv(65536):
            self.request.sendall(part)


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Says nothing."""

    def do_POST(self):
        got = self.rfile.read(int(self.headers["Content-Length"]))
        ends = f"{text(self.client_address)} {text(self.connection.getsockname())}"
        body = f"{ends}\n{checksum(got)}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class DualStack:
    """On every address of both families, as Python's own command-line server does it."""

    address_family = socket.AF_INET6
    allow_reuse_address = True

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class WitnessServer(DualStack, socketserver.ThreadingTCPServer):
    daemon_threads = True


class AnswerServer(DualStack, http.server.ThreadingHTTPServer):
    pass


def serve(tcp_port, http_port):
    web = AnswerServer(("::", int(http_port)), Answer)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    WitnessServer(("::", int(tcp_port)), Witness).serve_forever()


def show(name, own, peer, said, back):
    print(name, text(own), text(peer), said, len(PAYLOAD), checksum(PAYLOAD), back, flush=True)


def ask_socket(host, port):
    with socket.create_connection((host, port)) as connection:
        stream = connection.makefile("rb")
        said = stream.readline().decode().strip()
        connection.sendall(PAYLOAD)
        connection.shutdown(socket.SHUT_WR)
        show("tcp", connection.getsockname(), connection.getpeername(), said, checksum(stream.read()))


async def ask_asyncio(host, port):
    reader, writer = await asyncio.open_connection(host, port)
    said = (await reader.readline()).decode().strip()
    writer.write(PAYLOAD)
    writer.write_eof()
    back = checksum(await reader.read())
    show("tcp", writer.get_extra_info("sockname"), writer.get_extra_info("peername"), said, back)
    writer.close()


def ask_http(host, port):
    connection = http.client.HTTPConnection(host, port)
    connection.request("POST", "/", PAYLOAD)
    own, peer = connection.sock.getsockname(), connection.sock.getpeername()
    said, arrived = connection.getresponse().read().decode().split("\n")
    show("http", own, peer, said, arrived)


def main():
    mode, *rest = sys.argv[1:]
    if mode == "serve":
        return serve(*rest)
    host, tcp_port, http_port = rest[0], int(rest[1]), int(rest[2])
    ask_socket(host, tcp_port)
    asyncio.run(ask_asyncio(host, tcp_port))
    ask_http(host, http_port)


main()
