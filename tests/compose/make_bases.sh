#!/bin/sh
# Makes the base images that compose and the Dockerfile name from Debian packages, where no registry can be reached.
#   sh tests/compose/make_bases.sh python:3.11-slim-bookworm redis:7.2-bookworm
# Needs root, debootstrap and a Debian mirror; the containers trust what this host trusts and ask the same pip index.
set -eu
python_tag=$1
redis_tag=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mirror=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p; s/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\) .*/\2/p' \
    /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -v security | head -n 1)
debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm "$folder/root" \
    "${mirror:-http://deb.debian.org/debian}"
cp /etc/ssl/certs/ca-certificates.crt "$folder/root/etc/ssl/certs/"
if [ -n "${PIP_FIND_LINKS:-}" ] && [ -d "$PIP_FIND_LINKS" ]; then
    mkdir -p "$folder/root$PIP_FIND_LINKS"
    cp "$PIP_FIND_LINKS"/*.whl "$folder/root$PIP_FIND_LINKS/"
fi
printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\nfind-links = %s\n' "${PIP_FIND_LINKS:-}" \
    > "$folder/root/etc/pip.conf"
tar -C "$folder/root" -c . | docker import - "$python_tag"
docker build -t "$redis_tag" - <<END
FROM $python_tag
RUN apt-get update && apt-get install -y --no-install-recommends redis-server && rm -rf /var/lib/apt/lists/* \
    && install -d -o redis -g redis /data
END
