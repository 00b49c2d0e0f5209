#!/bin/sh
# Makes what mosquitto needs beside edge.conf, in the directory edge: an authority, a certificate for HOST, the rules, and an
# account each for a device and for a program.
#
#   ./prepare.sh HOST [DEVICE [PROGRAM]]
set -eu
host=${1:?usage: prepare.sh HOST [DEVICE [PROGRAM]]} device=${2:-kitchen-1} program=${3:-alice}
here=$(cd "$(dirname "$0")" && pwd)
directory=${DIRECTORY:-$here/edge}

if [ -e "$directory" ]; then
    printf '%s is there: devices that trust its authority need a new ca.crt. Replace it? [y/N] ' "$directory"
    read -r answer
    case $answer in y | Y | yes) rm -rf "$directory" ;; *) exit 1 ;; esac
fi
umask 077
mkdir -p "$directory"
cp "$here/../../systemd/mosquitto/devices.acl" "$here/../../systemd/mosquitto/programs.acl" "$directory"
cd "$directory"

case $host in *[!0-9.]*) kind=DNS ;; *) kind=IP ;; esac
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -keyout ca.key -out ca.crt \
    -subj "/CN=edge broker authority" -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout server.key -out server.csr -subj "/CN=$host" 2>/dev/null
printf 'subjectAltName=%s:%s\nextendedKeyUsage=serverAuth\n' "$kind" "$host" >server.ext
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 730 -extfile server.ext -out server.crt 2>/dev/null
rm server.csr server.ext ca.srl

account() { # FILE NAME
    password=$(openssl rand -hex 16)
    mosquitto_passwd -c -b "$1" "$2" "$password" 2>/dev/null
    echo "$2: $password"
}
account devices.passwd "$device"
account programs.passwd "$program"
echo "made $directory for $host; devices and programs need ca.crt; keep ca.key elsewhere"
echo "with docker compose: sudo chown -R 1883:1883 $directory"
