"""WebSockets as a Python library has them: `websocket.py serve NAME PORT` echoes after its name, `websocket.py call URL COUNT` sends
so many messages, one after the other, and prints the last answer."""

import asyncio
import sys

import websockets


async def serve(name, port):
    async def echo(socket, *_):
        async for message in socket:
            await socket.send(f"{name}:{message}")

    async with websockets.serve(echo, "0.0.0.0", port):
        await asyncio.Future()


async def call(url, count):
    async with websockets.connect(url) as socket:
        for i in range(count):
            await socket.send(f"message {i}")
            answer = await socket.recv()
    print(answer)


if sys.argv[1] == "serve":
    asyncio.run(serve(sys.argv[2], int(sys.argv[3])))
else:
    asyncio.run(call(sys.argv[2], int(sys.argv[3])))
