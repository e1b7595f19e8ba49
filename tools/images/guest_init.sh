#!/bin/sh
# The first process of the guest. The kernel gives it, as environment, each name=value of the
# command line that is not its own:
#   run=BASE64   a shell script to run once the guest is ready
#   then=WORD    what follows: shell, wait, poweroff or reboot
#                (poweroff after a run, a shell without one)
# It prints, each on a line of its own:
#   GUEST-READY UPTIME KERNEL cpus=N memory_kib=N
#   GUEST-RUN-BEGIN, the script's output, GUEST-RUN-END EXIT_CODE
#   GUEST-POWEROFF or GUEST-REBOOT
export PATH=/bin:/usr/bin HOME=/root TERM="${TERM:-linux}"

mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts

# A machine with no console at all leaves init without descriptors and /dev/console unopenable.
console=/dev/console
if ! ( : < "$console" ) 2> /dev/null; then
    console=/dev/null
    exec < "$console" > "$console" 2>&1
fi

# Leave the guest for good. The console is drained by the kernel before it powers off.
finish() {
    trap '' USR1 USR2 TERM
    case "$1" in
        reboot) echo GUEST-REBOOT ;;
        *) echo GUEST-POWEROFF ;;
    esac
    sync
    "$1" -f
}

# The signals that busybox's poweroff, halt and reboot send to the first process.
trap 'finish poweroff' USR1 USR2
trap 'finish reboot' TERM

# A shell runs a trap only between commands, or while it waits for one in the background.
attend() {
    "$@" < "$console" &
    wait $!
}

for module in /modules/*.ko; do
    [ -e "$module" ] || break
    insmod "$module" || echo "GUEST-MODULE-FAILED $module"
done

# The power button reaches user space as a key; acpid runs /etc/acpi/PWRF/00000080 for it.
if [ -e /dev/input/event0 ]; then
    acpid -l /dev/null
fi

read -r uptime rest < /proc/uptime
read -r label memory rest < /proc/meminfo
read -r kernel < /proc/sys/kernel/osrelease
# A message of the kernel must not come between the characters of what is printed from here on.
echo 1 > /proc/sys/kernel/printk
echo "GUEST-READY $uptime $kernel cpus=$(nproc) memory_kib=$memory"

if [ -n "$run" ]; then
    echo "$run" | base64 -d > /run/script
elif [ -e /script ]; then
    cp /script /run/script
fi
if [ -e /run/script ]; then
    echo GUEST-RUN-BEGIN
    attend sh /run/script
    echo "GUEST-RUN-END $?"
    then="${then:-poweroff}"
fi

case "${then:-shell}" in
    shell) attend setsid cttyhack sh -l; finish poweroff ;;
    wait) while :; do attend sleep 3600; done ;;
    reboot) finish reboot ;;
    *) finish poweroff ;;
esac
