#!/bin/busybox sh
# The first process of the guest: puts a directory of the host's, its root or another, under a layer of memory and goes
# on there. `values` sets RELEASE, MODULES and ROOT (directories of the host) and SEARCH (the PATH); `shared` names more
# directories of the host, a line each, that the guest has under the same names.
export PATH=/bin
/bin/busybox --install -s /bin
. /values
mkdir -p /dev /proc /sys /host /layer
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
while read -r module; do
  insmod "/modules/$module" || echo "init: cannot load $module"
done < /modules/order

# Prints the device of a port by its name.
port() {
  for entry in /sys/class/virtio-ports/*; do
    [ "$(cat "$entry/name" 2>/dev/null)" = "$1" ] && echo "/dev/${entry##*/}"
  done
}
tries=0
while [ -z "$(port status)" ] && [ $tries -lt 200 ]; do
  tries=$((tries + 1))
  usleep 20000
done
OUTPUT=$(port output)
STATUS=$(port status)

fail() {
  echo "init: $1"
  echo "$1" > "$STATUS"
  reboot -f
}
mount -t virtiofs -o ro host /host || fail "cannot mount the host's root"
mount -t tmpfs -o size=75% layer /layer
mkdir /layer/upper /layer/work /layer/root
mount -t overlay -o "lowerdir=/host$ROOT,upperdir=/layer/upper,workdir=/layer/work" overlay /layer/root ||
  fail "cannot put a layer over the host's root"
R=/layer/root
mkdir -p $R/proc $R/sys $R/dev $R/run
mount -t proc proc $R/proc
mount -t sysfs sys $R/sys
mount -t devtmpfs dev $R/dev
mkdir -p $R/dev/pts $R/dev/shm "$R/lib/modules/$RELEASE"
mount -t devpts devpts $R/dev/pts
mount -t tmpfs shm $R/dev/shm
mount -t tmpfs run $R/run
mount -t cgroup2 cgroup2 $R/sys/fs/cgroup
mount -t bpf bpf $R/sys/fs/bpf
mount -t debugfs debugfs $R/sys/kernel/debug 2>/dev/null
mount -t tracefs tracefs $R/sys/kernel/tracing 2>/dev/null
mount --bind "/host$MODULES" "$R/lib/modules/$RELEASE"
while read -r directory; do
  mkdir -p "$R$directory"
  mount --bind "/host$directory" "$R$directory" || fail "cannot share $directory"
done < /shared
ifconfig lo 127.0.0.1 up

mkdir $R/run/vm
cp /command $R/run/vm/command
cat > $R/run/vm/main <<END
export PATH='$SEARCH' HOME=/root
sh /run/vm/command < /dev/null > $OUTPUT 2>&1
echo \$? > $STATUS
sync
echo 1 > /proc/sys/kernel/sysrq
echo b > /proc/sysrq-trigger
sleep 60
END
exec switch_root $R /bin/sh /run/vm/main
