"""Calls grpc_server.py at fixed times, whatever became of earlier calls. Arguments: host:port, calls a second, seconds.

Prints JSON: how many calls there were, and what went wrong with which. The channel is as the library makes it by default.
"""

import json
import sys
import time

import grpc

rate, seconds = int(sys.argv[2]), int(sys.argv[3])
channel = grpc.insecure_channel(sys.argv[1])
unary = channel.unary_unary("/test.Echo/Unary")
start = time.monotonic()
calls = []
for number in range(rate * seconds):
    due = start + number / rate
    time.sleep(max(0, due - time.monotonic()))
    calls.append((due - start, unary.future(b"%d" % number, timeout=10)))
failures = []
for number, (due, call) in enumerate(calls):
    try:
        answer = call.result()
        if answer != b"echo:%d" % number:
            failures.append({"at": due, "what": f"another answer: {answer!r}"})
    except grpc.RpcError as error:
        failures.append({"at": due, "what": f"{error.code()}: {error.details()}"})
print(json.dumps({"calls": len(calls), "failures": failures}), flush=True)
