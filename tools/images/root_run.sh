#!/bin/bash
# What the root disk runs on the first serial port once systemd has reached multi-user.target. The
# words of the kernel command line it obeys, and the lines it prints, are those of guest_init.sh:
# run=BASE64 and then=shell|wait|poweroff|reboot. GUEST-POWEROFF and GUEST-REBOOT are printed by
# systemd's last program, when every file system is unmounted, whoever asked for it.
run='' then=''
read -r -a words < /proc/cmdline
for word in "${words[@]}"; do
    case "$word" in
        run=*) run="${word#run=}" ;;
        then=*) then="${word#then=}" ;;
    esac
done

read -r uptime _ < /proc/uptime
read -r _ memory _ < /proc/meminfo
read -r kernel < /proc/sys/kernel/osrelease
# A message of the kernel must not come between the characters of what is printed from here on.
echo 1 > /proc/sys/kernel/printk
echo "GUEST-READY $uptime $kernel cpus=$(nproc) memory_kib=$memory"

if [[ -n $run ]]; then
    echo GUEST-RUN-BEGIN
    base64 -d <<< "$run" > /run/script
    bash /run/script
    echo "GUEST-RUN-END $?"
    then="${then:-poweroff}"
fi

# Targets are started directly: the commands poweroff and reboot look for a message bus first.
finish() { systemctl start --no-block "$1.target"; }

case "${then:-shell}" in
    # Line editing would paint each line again, and every byte of a serial port is an exit.
    shell) cd && bash --login --noediting; finish poweroff ;;
    wait) exec sleep infinity ;;
    reboot) finish reboot ;;
    *) finish poweroff ;;
esac
