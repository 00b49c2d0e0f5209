#!/bin/sh
# Asks a device and prints the whole answer. Needs mosquitto_rr (Debian: mosquitto-clients) and a broker with MQTT 5.
#
#   HOST=broker.example.org PORT=1883 DEVICE=kitchen-1 ./ask.sh "What is the capital of France?"
set -eu
host=${HOST:-127.0.0.1} port=${PORT:-1883} device=${DEVICE:-kitchen-1}
question=${1:?usage: ask.sh QUESTION}

client=shell-$$
id=q$(date +%s)
# As JSON wants it: backslashes and quotes escaped, one line.
content=$(printf '%s' "$question" | tr '\n\t' '  ' | sed 's/[\\"]/\\&/g')

# Subscribes to the reply topic, publishes the request, waits for one message: the whole answer, or an error.
mosquitto_rr -V mqttv5 -h "$host" -p "$port" -q 1 -W "${SECONDS_TO_WAIT:-120}" \
    -t "edge/v1/d/$device/generate/$client" -e "edge/v1/c/$client/r/$device/$id" \
    -D publish correlation-data "$id" \
    -m "{\"messages\": [{\"role\": \"user\", \"content\": \"$content\"}], \"max_tokens\": 100, \"stream\": false}"
