"""A socket that goes from process to process, as an app of the test world.

    inherit.py dial ADDRESS PORT    dials; a child speaks, then the parent, then what the parent becomes by exec
    inherit.py serve PORT           accepts; each connection is served by a program that a child has become
    inherit.py receive ADDRESS PORT gets an unconnected socket by standard input (SCM_RIGHTS) and dials with it

Those who speak print a line: a name, getsockname and getpeername. The first to speak adds what the server said of both
ends, which is the first line of every connection.
"""

import ipaddress
import os
import socket
import sys


def text(address):
    """As the tests write addresses."""
    ip = ipaddress.ip_address(address[0])
    host = f"[{ip}]" if ip.version == 6 else ip
    return f"{host}:{address[1]}"


def line_from(connection):
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            raise EOFError(f"the line ends early: {line}")
        line += byte
    return line.decode().strip()


def speak(name, connection, heard=""):
    word = f"{name}\n".encode()
    connection.sendall(word)
    echo = line_from(connection)
    if echo != name:
        raise ValueError(f"{name} is echoed as {echo}")
    ends = text(connection.getsockname()), text(connection.getpeername())
    print(name, *ends, heard, flush=True)


def wait_for(child):
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != 0:
        sys.exit(status)


def become(mode, connection):
    os.set_inheritable(connection.fileno(), True)
    os.execv(sys.executable, [sys.executable, __file__, mode, str(connection.fileno())])


def dial(address, port):
    connection = socket.create_connection((address, int(port)), timeout=20)
    connection.settimeout(None)
    child = os.fork()
    if child == 0:
        speak("child", connection, line_from(connection))
        os._exit(0)
    wait_for(child)
    speak("parent", connection)
    become("become", connection)


def serve(port):
    listener = socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True)
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        child = os.fork()
        if child == 0:
            become("witness", connection)
        connection.close()
        wait_for(child)


def witness(connection):
    ends = text(connection.getpeername()), text(connection.getsockname())
    connection.sendall(f"{ends[0]} {ends[1]}\n".encode())
    while part := connection.recv(65536):
        connection.sendall(part)


def receive(address, port):
    passage = socket.socket(fileno=0)
    _, fds, _, _ = socket.recv_fds(passage, 1, 1)
    connection = socket.socket(fileno=fds[0])
    connection.connect((address, int(port)))
    speak("receiver", connection, line_from(connection))


def main():
    mode, *rest = sys.argv[1:]
    if mode in ("become", "witness"):
        connection = socket.socket(fileno=int(rest[0]))
        return speak("program", connection) if mode == "become" else witness(connection)
    return {"dial": dial, "serve": serve, "receive": receive}[mode](*rest)


main()
