#!/bin/sh
# The first process of a guest whose root is a disk: loads the disk's driver, mounts the disk and
# hands over to the init on it. root=DEVICE on the kernel command line names another than /dev/vda;
# ro mounts it read-only. What cannot go on says GUEST-ROOT-FAILED and powers off.
export PATH=/bin:/usr/bin

mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys

fail() {
    echo "GUEST-ROOT-FAILED $1"
    poweroff -f
}

for module in /modules/*.ko; do
    [ -e "$module" ] || break
    insmod "$module" || echo "GUEST-MODULE-FAILED $module"
done

device=/dev/vda
access=rw
read -r words < /proc/cmdline
for word in $words; do
    case "$word" in
        root=*) device="${word#root=}" ;;
        ro | rw) access="$word" ;;
    esac
done

# A driver has found its disks by the time it is loaded: there is nothing to wait for.
mount -t ext4 -o "$access" "$device" /mnt || fail "$device was not mounted"
# It is a link, whose target is found only once the root is there.
[ -L /mnt/sbin/init ] || [ -x /mnt/sbin/init ] || fail "$device has no /sbin/init"
for part in dev proc sys; do
    mount --move "/$part" "/mnt/$part"
done
exec switch_root /mnt /sbin/init
