#!/bin/sh
# Makes one virtual machine: root.ext4, kernel and initrd in the folder OUT, all at once or not at
# all. Needs root, debootstrap and e2fsprogs; mounts nothing on the host but what debootstrap does.
# The digest of this text and of its arguments names OUT, so a change makes a new machine.
set -eu
suite=$1
init=$2
packages=$3
out=$4

# Of the disk; what the machine writes there is thrown away.
disk=4G

work=$out.making
rm -rf "$work"
mkdir -p "$work/root"
trap 'rm -rf "$work"' EXIT
root=$work/root

debootstrap --variant=minbase --include="$packages" "$suite" "$root"

# An initrd with what the disk needs and no more: less to unpack under emulation.
sed -i 's/^MODULES=.*/MODULES=list/' "$root/etc/initramfs-tools/initramfs.conf"
printf '%s\n' virtio_pci virtio_blk ext4 >>"$root/etc/initramfs-tools/modules"
chroot "$root" update-initramfs -u

echo nimbus-vm >"$root/etc/hostname"
printf '127.0.0.1 localhost nimbus-vm\n::1 localhost\n' >"$root/etc/hosts"
: >"$root/etc/fstab"
mkdir "$root/nimbus"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*

# What the machine is for: the second disk says what is to be done.
case $init in
plain)
    cat >"$root/usr/local/sbin/nimbus-init" <<'END'
#!/bin/bash
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mountpoint -q /proc || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs dev /dev
mountpoint -q /run || mount -t tmpfs run /run
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmp /tmp
hostname nimbus-vm
ip link set lo up
mount /dev/vdb /nimbus
/bin/bash /nimbus/guest.sh
cd /
umount /nimbus
sync
busybox poweroff -f
END
    chmod 755 "$root/usr/local/sbin/nimbus-init"
    ;;
systemd)
    cat >"$root/etc/systemd/system/nimbus-guest.service" <<'END'
[Unit]
Description=What the second disk says
After=multi-user.target

[Service]
Type=oneshot
TimeoutStartSec=infinity
TasksMax=infinity
LimitNOFILE=1048576
Environment=HOME=/root
ExecStart=/bin/sh -c 'mount /dev/vdb /nimbus && /bin/bash /nimbus/guest.sh; cd /; umount /nimbus; sync; systemctl poweroff -ff'
END
    mkdir -p "$root/etc/systemd/system/nimbus.target.wants"
    # A target of its own: multi-user.target is reached before anything is done.
    cat >"$root/etc/systemd/system/nimbus.target" <<'END'
[Unit]
Description=Multi-user, and then what the second disk says
Requires=multi-user.target
After=multi-user.target
AllowIsolate=yes
END
    ln -s ../nimbus-guest.service "$root/etc/systemd/system/nimbus.target.wants/"
    ln -sf /etc/systemd/system/nimbus.target "$root/etc/systemd/system/default.target"
    # Nothing that the lane does not start itself: less to wait for.
    for unit in containerd.service docker-registry.service fstrim.timer apt-daily.timer \
        apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service; do
        chroot "$root" systemctl disable "$unit" || true
    done
    ;;
*)
    echo "no such init: $init" >&2
    exit 1
    ;;
esac

cp "$(ls "$root"/boot/vmlinuz-*)" "$work/kernel"
cp "$(ls "$root"/boot/initrd.img-*)" "$work/initrd"
rm -f "$root"/boot/vmlinuz-* "$root"/boot/initrd.img-*
truncate -s "$disk" "$work/root.ext4"
mkfs.ext4 -q -d "$root" "$work/root.ext4"
rm -rf "$root"
chmod -R a+rX "$work"
rm -rf "$out"
mv "$work" "$out"
