"""Ray Serve: its gRPC proxy before one replica with serve.batch; batches of up to 64, gathered for up to 1 ms.

Its proxy wants a generated service, which this makes of three lines of .proto: a message with bytes in and bytes out.
"""

import os
import sys
import time
from pathlib import Path

place = Path(os.environ["PROTO_DIR"])
sys.path.insert(0, str(place))
PROTO = """syntax = "proto3";
package bench;
message Bytes { bytes data = 1; }
service Decoder { rpc Decode(Bytes) returns (Bytes); }
"""


def main() -> None:
    """Serve until killed."""
    from grpc_tools import protoc

    (place / "bench_decoder.proto").write_text(PROTO)
    written = protoc.main(
        ["protoc", f"-I{place}", f"--python_out={place}", f"--grpc_python_out={place}", "bench_decoder.proto"]
    )
    if written:
        sys.exit("protoc failed")
    import bench_decoder_pb2 as pb
    import numpy as np
    import onnxruntime as ort
    import ray
    from ray import serve
    from ray.serve.config import gRPCOptions

    @serve.deployment(max_ongoing_requests=512, num_replicas=1, ray_actor_options={"num_cpus": 0.5})
    class Decoder:
        def __init__(self) -> None:
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            self.session = ort.InferenceSession(os.environ["DECODER"], options, providers=["CPUExecutionProvider"])

        @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
        async def run(self, latents: list) -> list:
            return list(self.session.run(["images"], {"latents": np.stack(latents)})[0])

        async def Decode(self, request: pb.Bytes) -> pb.Bytes:  # noqa: N802 - the rpc's name
            image = await self.run(np.frombuffer(request.data, np.float32))
            return pb.Bytes(data=image.tobytes())

    env = {"env_vars": {"PYTHONPATH": str(place), "DECODER": os.environ["DECODER"]}}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env=env)
    port, add = int(sys.argv[1]), "bench_decoder_pb2_grpc.add_DecoderServicer_to_server"
    serve.start(
        grpc_options=gRPCOptions(port=port, grpc_servicer_functions=[add]),
        http_options={"host": "127.0.0.1", "port": port + 1},
    )
    serve.run(Decoder.bind())
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
