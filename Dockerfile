# Latentry in a container.
#
#   docker build -t latentry .                                  the service, CPU and GPU runtime, embedded model
#   docker build -t latentry --build-arg EXTRA=cuda .           with the CUDA and cuDNN libraries that a GPU needs
#   docker build -t latentry-training --target training .       `latentry train`, `evaluate`, `export`
#   docker run --rm -p 127.0.0.1:50051:50051 -p 127.0.0.1:9464:9464 latentry
#   docker run --rm -p 127.0.0.1:50051:50051 -p 127.0.0.1:9464:9464 -v ./models:/models:ro latentry --models /models

FROM python:3.11-slim-bookworm AS wheel
WORKDIR /source
RUN python -m pip install --no-cache-dir hatchling==1.31.0 && python -m venv --without-pip /opt/latentry
COPY pyproject.toml README.md LICENSE ./
COPY data/fashion-mnist/LICENSE data/fashion-mnist/LICENSE
COPY latentry latentry
COPY training training
COPY serving serving
COPY models models
RUN python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /dist .

# Everything of the service is in one folder, /opt/latentry: no compiler, no torch, no training code. Compiled once, here:
# who runs it cannot write there, so that every start would compile all of it, which takes longer than all the rest.
FROM wheel AS serving-files
ARG EXTRA=serving
COPY constraints.txt ./
RUN python -m pip --python /opt/latentry/bin/python install --no-cache-dir --no-compile \
      -c constraints.txt "$(echo /dist/*.whl)[${EXTRA}]" \
 && rm -r /opt/latentry/lib/python3*/site-packages/training \
 && /opt/latentry/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/latentry/lib

FROM wheel AS training-files
ARG TORCH_INDEX=
COPY constraints.txt ./
RUN python -m pip --python /opt/latentry/bin/python install --no-cache-dir --no-compile \
      ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} -c constraints.txt "$(echo /dist/*.whl)[training]"

FROM python:3.11-slim-bookworm AS training
COPY --from=training-files /opt/latentry /opt/latentry
ENV PATH=/opt/latentry/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --create-home latentry
USER 10001
WORKDIR /home/latentry
ENTRYPOINT ["/opt/latentry/bin/latentry"]

FROM python:3.11-slim-bookworm AS serving
COPY --from=serving-files /opt/latentry /opt/latentry
# A container's own network is private until its ports are published, so it listens on all of it without asking who
# calls. Publish to 127.0.0.1, or give --identities or --tls-client-ca and set LATENTRY_INSECURE=false.
# glibc's arenas, one for each thread, would keep what large batches leave behind: two are enough.
ENV PATH=/opt/latentry/bin:$PATH PYTHONUNBUFFERED=1 MALLOC_ARENA_MAX=2 LATENTRY_HOST=0.0.0.0 LATENTRY_INSECURE=true
RUN useradd --uid 10001 --create-home latentry
USER 10001
WORKDIR /home/latentry
EXPOSE 50051 9464
# The exec form: latentry is process 1, so that SIGTERM reaches it and it drains.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD ["latentry", "health", "--here"]
ENTRYPOINT ["/opt/latentry/bin/latentry", "serve"]
