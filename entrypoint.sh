#!/bin/sh
# PID 1 of the image, and what `make serve` runs: finds Python, then becomes the supervisor of nginx and uWSGI.
set -eu
here=$(dirname "$(readlink -f "$0")")
python=$here/.venv/bin/python
if [ ! -x "$python" ]; then
    echo "muleteer: there is no Python at $python: run \`make serve\` once" >&2
    exit 2
fi
# SageMaker puts a model there, and asks at a port of its own
if [ -d /opt/ml/model ] && [ -z "${MODEL:-}${SERVING_MODEL:-}" ]; then
    export MODEL=/opt/ml/model PORT="${SAGEMAKER_BIND_TO_PORT:-8080}"
fi
# sockets, logs and pid files are for this user and group
umask 027
# signals that come while Python starts wait for the supervisor
exec env --block-signal=TERM,INT,HUP,USR1 "$python" "$here/muleteer.py" "$@"
