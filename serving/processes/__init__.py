"""The service as several processes: `latentry serve --frontends N`.

    supervisor ── control ── engine process (models, queues, ONNX Runtime, administration)
        │ └────── control ── front end 0 (gRPC, codec) ── hand-over ── engine process
        └──────── control ── front end 1 ...

The supervisor starts them, watches them, and starts again what died; it serves the pages, on which all processes are
one. Nothing of it has a name in the file system, so nothing is left over however it ends.
"""
