#!/bin/bash
# Checks an image by its containers: what they answer, log, refuse, and how they end.
#   tests/image/check.sh IMAGE        needs docker, and the .venv that `make test` makes
set -euo pipefail
cd "$(dirname "$0")/../.."
image=$1
name=muleteer-check-$$
hardened=(--read-only --tmpfs /run --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges
    --memory 2g --memory-swap 2g --pids-limit 512)

die() { echo "FAIL: $*" >&2; docker logs --tail 30 "$name" >&2 || true; exit 1; }
ok() { echo "  ok  $*"; }
remove() { docker rm -f "$name" >/dev/null 2>&1 || true; }
trap remove EXIT

# start PORT [docker run options]: a container that is healthy, and its $url
start() {
    local port=$1 health
    remove
    docker run -d --name "$name" -p "127.0.0.1::$port" "${@:2}" "$image" >/dev/null
    for _ in $(seq 120); do
        health=$(docker inspect -f '{{.State.Status}} {{.State.Health.Status}}' "$name")
        [ "$health" != "running healthy" ] || break
        [ "${health% *}" = running ] || die "it should have become healthy, and is $health"
        sleep 1
    done
    [ "$health" = "running healthy" ] || die "not healthy after two minutes, but $health"
    url=http://$(docker port "$name" "$port/tcp" | head -1)
}

# ends STATUS SECONDS: the container is over in time, with that exit status (a glob)
ends() {
    local status
    # shellcheck disable=SC2053
    status=$(timeout "$2" docker wait "$name") || die "it should have ended within $2 s"
    [[ $status == $1 ]] || die "it ended with status $status, not $1"
}

# refuses STATUS TEXT [docker run options]: it does not start, and says why in one line
refuses() {
    local reason
    remove
    docker run -d --name "$name" "${@:3}" "$image" >/dev/null
    ends "$1" 60
    reason=$(docker logs "$name" 2>&1 | grep -E "(^muleteer: |\"message\": \").*$2") || die "it should have said why: $2"
    ok "ends with $1: $reason"
}

logged() {
    # the access log is written once a second
    for _ in $(seq 30); do
        if docker logs "$name" 2>&1 | grep -E "$1" >/dev/null; then return; fi
        sleep 0.1
    done
    die "docker logs should have a line like $1"
}

# ask BODY TEXT: a prediction whose answer has that text
ask() {
    local answer
    answer=$(curl -sS -m 10 -H 'X-Request-ID: image-check' "$url/predict" -d "$1")
    [[ $answer == *"$2"* ]] || die "the answer to $1 is $answer, without $2"
    ok "$2"
}

# shown PATH STATUS: what a client outside the container gets
shown() {
    local status
    status=$(curl -sS -m 10 -o /dev/null -w '%{http_code}' "$url$1")
    [ "$status" = "$2" ] || die "the answer to $1 should have been $2, and is $status"
}

remove
docker run --rm --entrypoint sh "$image" -c '
    [ "$(id -u)" = 10001 ] && [ ! -w /srv/muleteer ] || exit 1
    for tool in gcc cc ld make; do ! command -v $tool || exit 1; done
    cd .venv/lib/python3*/site-packages
    for name in pip sklearn scipy pytest tensorflow/include; do [ ! -e $name ] || exit 1; done
    for name in tests README.md .git Dockerfile; do [ ! -e /srv/muleteer/$name ] || exit 1; done' \
    || die "the image holds what does not run, or runs as root"
ok "a user without rights, no compiler, nothing but what runs"

start 80
sample=$(docker exec "$name" cat models/digits/sample.json)
digit=$(SAMPLE=$sample .venv/bin/python -c '
import json, os
from sklearn.datasets import load_digits
digits = load_digits()
image = json.loads(os.environ["SAMPLE"])["image"]
print(next(digit for pixels, digit in zip(digits.images, digits.target) if pixels.tolist() == image))')
ask "$sample" "\"digit\":$digit,"
logged '^\{"time":.*"request_id":"image-check".*"status":200,'
logged '^\{"time":.*"process": "mule [0-9]+".*"message": "replica ready: digits'
ok "docker logs has the access log and the server's own"
docker exec "$name" muleteer reload --all >/dev/null || die "a reload should have succeeded"
ask "$sample" "\"digit\":$digit,"
logged '"message": "reloaded: uWSGI anew, digits, version 1, 2 replicas'
ok "docker exec muleteer reload"
docker stop "$name" >/dev/null
ends 0 1
logged '"message": "stopped"'
ok "docker stop: exit 0"

# while Python, then uWSGI start, they do not listen to signals; once, such a stop took until the kill
for pause in 0 0.1 0.3 0.6; do
    remove
    docker run -d --name "$name" -e MODEL=examples/fancy "$image" >/dev/null
    sleep "$pause"
    docker stop -t 5 "$name" >/dev/null
    ends 0 1
done
ok "docker stop while it starts: exit 0"

start 80 "${hardened[@]}"
ask "$sample" "\"digit\":$digit,"
for path in /metrics /console /console/state.json; do shown "$path" 403; done
ok "what tells of its inside is for itself alone"
docker exec "$name" sh -c 'kill -9 $(cat /run/muleteer/nginx.pid)'
ends '[1-9]*' 20
logged '"message": "nginx ended by itself'
ok "read-only and without capabilities; a killed nginx ends it"

start 8080 "${hardened[@]}" -e PORT=8080 -v "$PWD/examples/fancy:/models/my_model:ro" -e MODEL=/models/my_model -e MULES=8 \
    -e SERVING_MONITOR_FROM=0.0.0.0/0
ask '{"text": "hello"}' "Can't tell anything smart about: hello"
for path in /metrics /console /console/console.js /console/console.css /console/state.json; do shown "$path" 200; done
ok "the live page, where the setting allows it"
[[ $(curl -sS "$url/readyz") == *'"ready_replicas":8,'* ]] || die "MULES=8 should have made 8 replicas"
docker exec "$name" sh -c 'kill -9 $(grep -lxz "uWSGI maste[r]" /proc/[0-9]*/cmdline | cut -d/ -f3)'
ends '[1-9]*' 20
logged '"message": "uwsgi ended by itself'
ok "a model of one's own on another port, 8 mules; a killed uWSGI ends it"

remove
docker run --rm --name "$name" "${hardened[@]}" "$image" tune --slo p90=100ms --rate 50 --minutes 0.5 examples/fancy >/dev/null \
    || die "tune should have found a setting that holds"
ok "tune, without a compiler and read-only"

for port in 8080 9000; do
    start "$port" "${hardened[@]}" -v "$PWD/examples/fancy:/opt/ml/model:ro" \
        $([ "$port" = 8080 ] || echo "-e SAGEMAKER_BIND_TO_PORT=$port")
    [[ $(curl -sS -m 2 "$url/ping") == '{"status":"Healthy"}' ]] || die "/ping should have said that it is healthy"
    answer=$(curl -sS -m 10 -H 'Content-Type: application/json' "$url/invocations" -d '[{"text": "hello"}]')
    [[ $answer == *"Can't tell anything smart about: hello"* ]] || die "/invocations answers $answer"
done
ok "SageMaker's model in /opt/ml/model, on port 8080 or its own"

refuses 2 'model folder /models/my_model does not exist' -e MODEL=/models/my_model
refuses 2 'SERVING_DEADLINE_MS|deadline_ms' -e SERVING_DEADLINE_MS=20000
empty=$(mktemp -d)
trap 'remove; rm -rf "$empty"' EXIT
chmod 755 "$empty"
echo 'raise RuntimeError("no weights")' >"$empty/model.py"
refuses 1 'cannot be loaded: no weights' -v "$empty:/models/my_model:ro" -e MODEL=/models/my_model
