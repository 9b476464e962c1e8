#!/usr/bin/env bash
# Stands for Docker on a lab host, as far as Ray's launcher uses it, and for deploy/Dockerfile's image. The container shares all
# with its host but its environment: it does not show whether the image can be built, holds what the nodes need,
# or works without root.
set -euo pipefail
state=/run/docker-stand-in
image=$state/image  # a folder that the lab fills: env (lines of NAME=VALUE), ray.patch, folder (a path), spot_notice.py

# Ray pulls an image, runs it, and then executes everything in its container.
pull() {
  install -D "$image/spot_notice.py" "$(cat "$image/folder")/spot_notice.py"
  patch --quiet --strip=1 --directory="$(cat "$image/ray")" <"$image/ray.patch"
  touch $state/pulled
}

run() {
  local home
  home=$(sed -n s/^HOME=//p $image/env)
  ln -s ~ "$home" # SSH takes ~ from the list of users, which the container shares
  while [ $# -gt 0 ]; do
    case $1 in
    --name) name=$2 ;;
    -v)
      mkdir -p "$(dirname "${2#*:}")"
      touch "${2#*:}"
      mount --bind "${2%%:*}" "${2#*:}"
      ;;
    esac
    shift
  done
  echo "$name" >$state/name
}

execute() {
  while [ "${1#-}" != "$1" ]; do shift; done
  [ "$1" = "$(cat $state/name)" ]
  mapfile -t variables <$image/env
  exec env "${variables[@]}" "${@:2}"
}

case "$1 ${2:-} ${3:-}" in
"info "*) echo '{"runc":{}}' ;;
"pull "*) pull ;;
"image inspect "*) [ -e $state/pulled ] ;;
"inspect -f {{.State.Running}}") [ -e $state/name ] && echo true ;;
"inspect -f {{json .Config.Env}}") echo "[$(sed 's/.*/"&"/' $image/env | paste -sd,)]" ;;
"run "*) run "${@:2}" ;;
"exec "*) execute "${@:2}" ;;
"stop "*) rm $state/name ;;
*)
  echo "docker stand-in: unknown command $*" >&2
  exit 1
  ;;
esac
