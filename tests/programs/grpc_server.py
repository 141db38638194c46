"""A gRPC echo server of all four call kinds, over bytes, with the grpcio library. Arguments: the port, the address."""

import json
import os
import sys
import threading
import time
from concurrent import futures

import grpc


def metadata(context, key):
    return dict(context.invocation_metadata()).get(key, "")


# How calls ended that asked to be watched: seconds after their begin, and whether the client took them back.
ends = {}


def watched(key, context):
    """Waits until the call is over for whatever reason, 30 s at most."""
    begin, over = time.monotonic(), threading.Event()

    def note():
        # A deadline that has passed is no cancellation by the client.
        left = context.time_remaining()
        ends[key] = f"{time.monotonic() - begin} {left is None or left > 0}"
        over.set()

    ends.pop(key, None)
    context.add_callback(note)
    return over


def unary(request, context):
    if request == b"where":
        return os.path.basename(os.getcwd()).encode()
    if request == b"headers":
        return json.dumps({"headers": [[k, str(v)] for k, v in context.invocation_metadata()]}).encode()
    if request == b"remaining":
        left = context.time_remaining()
        return b"none" if left is None or left > 1e9 else str(left).encode()
    if request.startswith(b"wait "):
        watched(request[5:], context).wait(30)
        return b"waited"
    if request.startswith(b"ended "):
        return ends.get(request[6:], "runs").encode()
    if request == b"fail":
        context.set_trailing_metadata((("x-detail", "as asked"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "asked to fail: 100 %")
    if request == b"slow":
        time.sleep(5)
    if request == b"who":
        return metadata(context, "linkspan-source").encode()
    context.set_trailing_metadata((("x-trailer", "after the body"),))
    return b"echo:" + request


def server_stream(request, context):
    for number in range(int(request)):
        yield b"%d" % number


def client_stream(requests, context):
    return b",".join(requests)


def both_stream(requests, context):
    for request in requests:
        if request == b"where":
            yield os.path.basename(os.getcwd()).encode()
        elif request.startswith(b"wait "):
            over = watched(request[5:], context)
            yield b"waiting"
            over.wait(30)
        else:
            yield b"echo:" + request


handlers = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
    "BothStream": grpc.stream_stream_rpc_method_handler(both_stream),
}
server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
if server.add_insecure_port(f"{sys.argv[2]}:{sys.argv[1]}") == 0:
    sys.exit("the port is taken")
server.start()
server.wait_for_termination()
