"""A WebSocket echo server with the websockets library. Arguments: the port, the address."""

import asyncio
import sys

import websockets


async def echo(connection):
    async for message in connection:
        await connection.send(message)


async def main():
    async with websockets.serve(echo, sys.argv[2], int(sys.argv[1]), max_size=None):
        await asyncio.Future()


asyncio.run(main())
