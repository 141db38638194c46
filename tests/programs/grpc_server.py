"""A gRPC echo server of all four call kinds, over bytes, with the grpcio library. Argument: the port."""

import sys
import time
from concurrent import futures

import grpc


def metadata(context, key):
    return dict(context.invocation_metadata()).get(key, "")


def unary(request, context):
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
        yield b"echo:" + request


handlers = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
    "BothStream": grpc.stream_stream_rpc_method_handler(both_stream),
}
server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
if server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}") == 0:
    sys.exit("the port is taken")
server.start()
server.wait_for_termination()
