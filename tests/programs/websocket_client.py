"""Echoes text and binary messages, pings and closes. Argument: ws://host:port/."""

import asyncio
import os
import sys

import websockets


async def main():
    async with websockets.connect(sys.argv[1], max_size=None) as connection:
        for size in (0, 1, 125, 126, 65535, 65536, 2_000_000):
            message = os.urandom(size)
            await connection.send(message)
            assert await connection.recv() == message, size
        await connection.send("grüße")
        assert await connection.recv() == "grüße"
        await (await connection.ping())
    assert connection.close_code == 1000, connection.close_code
    print("ok")


asyncio.run(main())
