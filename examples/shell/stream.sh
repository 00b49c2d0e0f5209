#!/bin/bash
# Asks a device and prints the answer as it comes. Needs mosquitto_sub, mosquitto_pub and jq; MQTT 3.1.1 will do.
#
#   HOST=broker.example.org PORT=1883 DEVICE=kitchen-1 ./stream.sh "Tell a story."
set -euo pipefail
host=${HOST:-127.0.0.1} port=${PORT:-1883} device=${DEVICE:-kitchen-1}
question=${1:?usage: stream.sh QUESTION}

client=shell-$$
id=q1
topic=edge/v1/c/$client/r/$device/$id
request=$(jq -nc --arg id $id --arg text "$question" \
    '{id: $id, messages: [{role: "user", content: $text}], max_tokens: 200}')

# Subscribe first. What has `attempt` begins the text; the frame with `finish_reason` has the whole of it.
coproc replies { exec stdbuf -oL mosquitto_sub -h "$host" -p "$port" -q 1 -t "$topic" -W "${SECONDS_TO_WAIT:-120}" -d 2>/dev/null; }
subscriber=$replies_PID
exec {from}<&"${replies[0]}" # bash forgets both once the subscriber has ended
trap 'kill $subscriber 2>/dev/null || true' EXIT
asked='' seen=''
while read -r line <&"$from"; do
    if [[ $line == *SUBACK* && -z $asked ]]; then
        mosquitto_pub -h "$host" -p "$port" -q 1 -t "edge/v1/d/$device/generate/$client" -m "$request"
        asked=1
    fi
    [[ $line == "{"* ]] || continue
    if jq -e .error <<<"$line" >/dev/null; then
        jq -r '"\(.error.type): \(.error.message)"' <<<"$line" >&2
        exit 1
    fi
    # The device began (again): what came before is void.
    ! jq -e 'has("attempt")' <<<"$line" >/dev/null || seen=
    if jq -e .finish_reason <<<"$line" >/dev/null; then
        text=$(jq -r .text <<<"$line")
        printf '%s\n' "${text#"$seen"}"
        exit 0
    fi
    piece=$(jq -j '.d // ""' <<<"$line"; printf x) # $(…) would take a line's end away
    printf '%s' "${piece%x}"
    seen+=${piece%x}
done
echo "no answer within ${SECONDS_TO_WAIT:-120} s" >&2
exit 1
