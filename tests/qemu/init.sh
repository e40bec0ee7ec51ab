#!/bin/sh
# First process of the guest: loads the drivers, puts a writable layer over the host's files and runs the job.
# `cargo xtask vm` packs it into the initramfs. The jobs of all guests of a run are in one folder shared with the
# host: run.sh comes in, results go out.

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

end() {
    sync
    poweroff -f
}

while read -r module; do
    insmod "/modules/$module.ko" || { echo "init: cannot load $module"; end; }
done </modules/order

number=1
for word in $(cat /proc/cmdline); do
    case $word in pvrdma.guest=*) number=${word#*=} ;; esac
done

# The host's files, read-only, below a layer in memory: the guest may install and the host never sees it.
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=262144,cache=loose root /host || end
mount -t tmpfs cover /cover
mkdir /cover/upper /cover/work
mount -t overlay -o lowerdir=/host,upperdir=/cover/upper,workdir=/cover/work root /newroot || end

for place in proc sys dev tmp run; do
    mkdir -p "/newroot/$place"
done
mount -t proc proc /newroot/proc
mount -t sysfs sys /newroot/sys
mount -t devtmpfs dev /newroot/dev
mkdir -p /newroot/dev/shm
mount -t tmpfs tmp /newroot/tmp
mount -t tmpfs run /newroot/run
mount -t tmpfs shm /newroot/dev/shm
mkdir -p /newroot/run/jobs /newroot/run/job /newroot/run/modules
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=none jobs /newroot/run/jobs || end
mount -o bind "/newroot/run/jobs/guest$number" /newroot/run/job || end
mount -o bind /modules /newroot/run/modules
# For steps: modules are loaded and unloaded by it, since a host need not have kmod.
cat /bin/busybox >/newroot/run/busybox
/bin/busybox chmod +x /newroot/run/busybox

# The net device comes first: the PVRDMA driver looks for it and does not wait.
ip link set lo up
ip addr add "192.168.77.$number/24" dev eth0
ip link set eth0 up

insmod /modules/vmw_pvrdma.ko || echo "init: cannot load vmw_pvrdma"

chroot /newroot /bin/sh /run/job/run.sh
end
