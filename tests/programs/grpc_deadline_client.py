"""What the server saw of deadlines and cancellations. Argument: host:port. Prints "ok"."""

import sys
import time

import grpc

channel = grpc.insecure_channel(sys.argv[1])
unary = channel.unary_unary("/test.Echo/Unary")

# The time that is left arrives at the server: less than was given, and not much less.
for given in (3, 20, 600):
    seen = float(unary(b"remaining", timeout=given))
    # grpc rounds long times up: to hundredths of themselves.
    assert given - 1 < seen <= given * 1.01, (given, seen)
assert unary(b"remaining") == b"none", "a call without a deadline gets none on the way"


def ended(key, patience=5):
    """What the server says about the end of the call that brought this key: seconds after its begin, and why."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        answer = unary(b"ended " + key, timeout=5).decode()
        if answer != "runs":
            after, cancelled = answer.split()
            return float(after), cancelled == "True"
        time.sleep(0.02)
    sys.exit(f"the server was never told of the end of {key}")


# The deadline passes: the server's own call ends then, not at the end of its work.
try:
    unary(b"wait deadline", timeout=1)
    sys.exit("a call longer than its deadline answered")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error.code()
after, cancelled = ended(b"deadline")
assert 0.5 < after < 2.5, after

# The client gives up, and there is no deadline: only the cancellation itself can tell the server.
call = unary.future(b"wait cancel")
time.sleep(0.5)
call.cancel()
after, cancelled = ended(b"cancel")
assert 0.3 < after < 2.5 and cancelled, (after, cancelled)

# The same for a stream.
stream = channel.stream_stream("/test.Echo/BothStream")(iter([b"wait stream"]))
assert next(stream) == b"waiting"
time.sleep(0.5)
stream.cancel()
after, cancelled = ended(b"stream")
assert 0.3 < after < 2.5 and cancelled, (after, cancelled)
print("ok")
