"""gRPC as its Python library has it, with the four kinds of calls: `grpc_app.py serve NAME PORT`, or
`grpc_app.py call ADDRESS KIND COUNT [METADATA...]`, which prints what came back, the trailers and the status.

Messages are texts, without protobuf. `demo.Echo/Fail` ends with UNAVAILABLE and a trailer.
"""

import sys
from concurrent import futures

import grpc

PLAIN = {"request_deserializer": bytes, "response_serializer": bytes}


def serve(name, port):
    def one(request, context):
        context.set_trailing_metadata((("served-by", name),))
        return name.encode() + b":" + request

    def many(request, context):
        for i in range(int(request)):
            yield f"{name}:{i}".encode()

    def gather(requests, context):
        return f"{name}:{sum(1 for _ in requests)}".encode()

    def both(requests, context):
        for request in requests:
            yield name.encode() + b":" + request

    def fail(request, context):
        context.set_trailing_metadata((("served-by", name),))
        context.abort(grpc.StatusCode.UNAVAILABLE, "on purpose")

    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(one, **PLAIN),
        "ServerStream": grpc.unary_stream_rpc_method_handler(many, **PLAIN),
        "ClientStream": grpc.stream_unary_rpc_method_handler(gather, **PLAIN),
        "Bidi": grpc.stream_stream_rpc_method_handler(both, **PLAIN),
        "Fail": grpc.unary_unary_rpc_method_handler(fail, **PLAIN),
    }
    server = grpc.server(futures.ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("demo.Echo", methods),))
    server.add_insecure_port(f"0.0.0.0:{port}")
    server.start()
    server.wait_for_termination()


def call(address, kind, count, metadata):
    metadata = [tuple(pair.split("=", 1)) for pair in metadata]
    messages = [f"message {i}".encode() for i in range(count)]
    plain = {"request_serializer": bytes, "response_deserializer": bytes}
    with grpc.insecure_channel(address) as channel:
        path = f"/demo.Echo/{kind}"
        try:
            if kind in ("Unary", "Fail"):
                answer, done = channel.unary_unary(path, **plain).with_call(messages[0], metadata=metadata, timeout=20)
                answers = [answer]
            elif kind == "ClientStream":
                answer, done = channel.stream_unary(path, **plain).with_call(iter(messages), metadata=metadata, timeout=20)
                answers = [answer]
            elif kind == "ServerStream":
                done = channel.unary_stream(path, **plain)(str(count).encode(), metadata=metadata, timeout=20)
                answers = list(done)
            else:
                done = channel.stream_stream(path, **plain)(iter(messages), metadata=metadata, timeout=20)
                answers = list(done)
            print(f"OK {len(answers)} {answers[-1].decode()}")
        except grpc.RpcError as error:
            print(f"{error.code().name} {error.details()}")
            done = error
        for key, value in done.trailing_metadata() or ():
            print(f"trailer {key}={value}")


if sys.argv[1] == "serve":
    serve(sys.argv[2], int(sys.argv[3]))
else:
    call(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5:])
