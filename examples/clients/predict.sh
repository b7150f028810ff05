#!/bin/sh
# Sends one JSON body to a server and prints the digit; curl waits and asks again when it is told to.
#   ./predict.sh models/digits/sample.json [http://127.0.0.1:8080]
set -eu
sample=${1:?"usage: $0 SAMPLE [URL]"}
url=${2:-http://127.0.0.1:8080}

# --retry honours Retry-After, and --fail-with-body shows the problem that an error comes with
answer=$(curl --silent --show-error --fail-with-body --max-time 30 --retry 4 \
    --header 'Content-Type: application/json' --data-binary "@$sample" "$url/predict") || {
    echo "$answer" >&2
    exit 1
}
echo "$answer" | sed -E 's/.*"digit":([0-9]+).*/\1/'
