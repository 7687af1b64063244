#!/bin/sh
# Writes the files of kustomization.yaml: random passwords, and S3's keys and the hub's token from the environment
# (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, HF_TOKEN). Without keys it makes some, for the S3 server of the overlay
# local-cpu. A file that exists is left as it is: its password is already in a database.
set -eu
cd "$(dirname "$0")"
umask 077

random() {
  LC_ALL=C tr -dc 'A-Za-z0-9' </dev/urandom | head -c 32
}

write() {
  if [ -e "$1" ]; then
    echo "kept    $1"
  else
    cat >"$1"
    echo "written $1"
  fi
}

write postgres.env <<EOF
password=$(random)
EOF

write mlflow.env <<EOF
admin-password=$(random)
flask-key=$(random)
username=lorchestra
password=$(random)
EOF

if [ -n "${AWS_ACCESS_KEY_ID:-}" ] && [ -z "${AWS_SECRET_ACCESS_KEY:-}" ]; then
  echo "AWS_SECRET_ACCESS_KEY: got nothing beside AWS_ACCESS_KEY_ID; allowed: both or neither. Set it too." >&2
  exit 2
fi
write s3.env <<EOF
AWS_ACCESS_KEY_ID=${AWS_ACCESS_KEY_ID:-$(random)}
AWS_SECRET_ACCESS_KEY=${AWS_SECRET_ACCESS_KEY:-$(random)}
EOF

# Empty: public bases need no token.
write hub.env <<EOF
token=${HF_TOKEN:-}
EOF
