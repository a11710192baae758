#!/usr/bin/env bash
# Builds the serving image with buildah and calls it from inside: it runs as another user than root, has neither torch
# nor a compiler nor training code, verifies its model, says when it is healthy, answers Sample, and ends with status 0
# on SIGTERM.
set -euo pipefail
cd "$(dirname "$0")/.."
export STORAGE_DRIVER=${STORAGE_DRIVER:-vfs}
options=(--isolation chroot --network host)

buildah bud "${options[@]}" --format docker --pull-never -q -t latentry -f Dockerfile . >/dev/null
entry=$(buildah inspect --type image --format '{{.OCIv1.Config.Entrypoint}}' latentry)
test "$entry" = "[/opt/latentry/bin/latentry serve]" || { echo "entry point: $entry"; exit 1; }
buildah inspect --type image --format "{{.Docker.Config.Healthcheck.Test}}" latentry | grep -q "latentry health"
buildah inspect --type image --format '{{.OCIv1.Config.Env}}' latentry | grep -q "LATENTRY_HOST=0.0.0.0"

container=$(buildah from --pull-never latentry)
trap 'buildah rm "$container" >/dev/null' EXIT
buildah run "${options[@]}" "$container" -- bash -euc '
  test "$(id -u)" = 10001
  ! command -v gcc cc >/dev/null
  for package in torch training onnxscript; do
    ! python -c "import $package" 2>/dev/null || { echo "$package is in the image"; exit 1; }
  done
  cd /tmp
  model=$(python -c "from latentry.manifest import embedded_models as models; print(models() / \"fashion\" / \"1\")")
  latentry verify "$model" >verified || { cat verified; exit 1; }
  latentry inspect "$model" >/dev/null
  "$@" --host 127.0.0.1 --port 0 --metrics-port 0 2>serve.log &
  server=$!
  for _ in $(seq 100); do
    port=$(sed -n "s/.*gRPC on [^ ]*:\([0-9]*\),.*/\1/p" serve.log)
    [ -n "$port" ] && break
    sleep 0.1
  done
  [ -n "$port" ] || { cat serve.log; exit 1; }
  latentry health --server "localhost:$port"
  latentry models --server "localhost:$port"
  latentry sample --count 16 --seed 7 --out samples.png --server "localhost:$port"
  python -c "from PIL import Image; image = Image.open(\"samples.png\"); image.load(); print(image.size)"
  kill -TERM $server
  wait $server
  echo "the container check passed"
' container /opt/latentry/bin/latentry serve
