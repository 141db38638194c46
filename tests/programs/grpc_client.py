"""Calls grpc_server.py in all four call kinds and checks every answer. Argument: host:port."""

import sys
import time

import grpc

channel = grpc.insecure_channel(sys.argv[1])
unary = channel.unary_unary("/test.Echo/Unary")
server_stream = channel.unary_stream("/test.Echo/ServerStream")
client_stream = channel.stream_unary("/test.Echo/ClientStream")
both_stream = channel.stream_stream("/test.Echo/BothStream")

answer, call = unary.with_call(b"hello", timeout=10)
assert answer == b"echo:hello", answer
assert ("x-trailer", "after the body") in call.trailing_metadata(), call.trailing_metadata()

large = bytes(range(256)) * 8192
assert unary(large, timeout=20) == b"echo:" + large

numbers = [int(n) for n in server_stream(b"1000", timeout=10)]
assert numbers == list(range(1000)), numbers[:10]

joined = client_stream((b"%d" % n for n in range(1000)), timeout=10)
assert joined == b",".join(b"%d" % n for n in range(1000))


def paced():
    for number in range(50):
        yield b"%d" % number


echoed = list(both_stream(paced(), timeout=10))
assert echoed == [b"echo:%d" % n for n in range(50)], echoed

try:
    unary(b"fail", timeout=10)
    sys.exit("the failing call did not fail")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error.code()
    assert error.details() == "asked to fail: 100 %", error.details()
    assert ("x-detail", "as asked") in error.trailing_metadata()

try:
    channel.unary_unary("/test.Echo/Missing")(b"", timeout=10)
    sys.exit("a method that is not there answered")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error.code()

start = time.monotonic()
try:
    unary(b"slow", timeout=0.5)
    sys.exit("the deadline did not hold")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error.code()
    assert time.monotonic() - start < 2

who = unary(b"who", timeout=10).decode()
print(who)
