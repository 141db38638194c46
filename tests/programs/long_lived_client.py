"""Holds a TCP connection and a gRPC stream open across a change. Arguments: host, TCP port, gRPC port, gate file.

Says which host both lead to, waits until the gate file exists, uses both again, then opens new ones. Prints JSON.
"""

import json
import os
import queue
import socket
import sys
import time

import grpc

host, tcp_port, grpc_port, gate = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]


class Tcp:
    def __init__(self):
        self.socket = socket.create_connection((host, tcp_port), timeout=10)
        self.file = self.socket.makefile("rwb")
        self.where = self.file.readline().decode().strip()

    def use(self, count):
        for number in range(count):
            self.file.write(b"%d\n" % number)
            self.file.flush()
            assert self.file.readline() == b"%d\n" % number


class Stream:
    def __init__(self):
        self.channel = grpc.insecure_channel(f"{host}:{grpc_port}", options=(("grpc.use_local_subchannel_pool", 1),))
        self.requests = queue.Queue()
        self.answers = self.channel.stream_stream("/test.Echo/BothStream")(iter(self.requests.get, None))
        self.where = self.ask(b"where").decode()

    def ask(self, request):
        self.requests.put(request)
        return next(self.answers)

    def use(self, count):
        for number in range(count):
            assert self.ask(b"%d" % number) == b"echo:%d" % number
        return self.ask(b"where").decode()


def unary(stream):
    return stream.channel.unary_unary("/test.Echo/Unary")(b"where", timeout=10).decode()


tcp, stream = Tcp(), Stream()
tcp.use(100)
before = {"tcp": tcp.where, "stream": stream.use(100), "unary": unary(stream)}
print("ready", flush=True)
while not os.path.exists(gate):
    time.sleep(0.02)
tcp.use(100)
after = {"stream": stream.use(100), "unary": unary(stream)}
fresh = {"tcp": Tcp().where, "stream": Stream().where}
tcp.use(100)
stream.requests.put(None)
assert list(stream.answers) == [], "the stream ends in order"
print(json.dumps({"before": before, "after": after, "fresh": fresh}), flush=True)
