#!/usr/bin/env bash
# The first process of a lab host (hosts.py): builds the host's file system, then becomes its SSH server.
#   boot.sh FOLDER HOSTNAME MOUNT...
# FOLDER/etc holds files to put into the host's /etc. Each MOUNT is a file system of this machine that the host sees.
set -euo pipefail
folder=$1 name=$2
shift 2

hostname "$name"
# Changes to files live in memory. They vanish with the mount namespace, that is, with the host's last process.
mount -t tmpfs lab "$folder/changes"
root=$folder/changes/root
mkdir "$root"
layer=0
for lower in "$@"; do
  layer=$((layer + 1))
  upper=$folder/changes/$layer work=$folder/changes/$layer.work
  mkdir "$upper" "$work"
  chmod --reference="$lower" "$upper"
  mount -t overlay -o "lowerdir=$lower,upperdir=$upper,workdir=$work" lab "$root$lower"
done
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 lab "$root/dev/shm"
mount -t tmpfs -o mode=755 lab "$root/run"
mkdir -p "$root/tmp/ray" "$root/run/sshd" "$root/home/lab"
mount -t tmpfs -o mode=1777 lab "$root/tmp/ray" # hides what Ray clusters of this machine left there
rm -rf "$root"/tmp/ray_ssh_* "$root"/tmp/ray-config-*
cp -a --remove-destination "$folder/etc/." "$root/etc/"
echo '. /etc/profile.d/lab.sh' | tee "$root/home/lab/.profile" >"$root/home/lab/.bashrc"
# As process 1 of the host, sshd also reaps orphans.
exec chroot "$root" /usr/sbin/sshd -D -e -f /etc/ssh/lab_sshd_config
