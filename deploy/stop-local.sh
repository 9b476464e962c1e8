#!/usr/bin/env bash
# Stops a cluster of machines reached by SSH (cluster-local.yaml): first the head, which would start the workers again,
# then Ray on every worker. `ray down` leaves workers running: some of their processes end after a minute, others never,
# and those keep ports that the next cluster needs.
#   deploy/stop-local.sh deploy/cluster-local.yaml
set -euo pipefail
file=${1:?usage: stop-local.sh LAUNCH_FILE}

# Ray is written in Python and reads such files with yaml, so both are there. Prints the login, the key, and the workers.
read -r user key workers < <(python -c '
import os, sys, yaml
config = yaml.safe_load(open(sys.argv[1]))
auth = config["auth"]
print(auth["ssh_user"], os.path.expanduser(auth["ssh_private_key"]), *config["provider"]["worker_ips"])
' "$file")

ray down -y "$file"
echo "stopping Ray on $workers"
declare -A stops
for worker in $workers; do
  # As in Ray's launcher: a terminal, so that ~/.bashrc says where `ray` is; and the key of a replaced machine may differ.
  ssh -n -tt -i "$key" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=10 \
    "$user@$worker" 'bash --login -ic "ray stop"' &
  stops[$worker]=$!
done
failed=0
for worker in "${!stops[@]}"; do
  wait "${stops[$worker]}" || { echo "Ray may still run on $worker" >&2; failed=1; }
done
exit $failed
