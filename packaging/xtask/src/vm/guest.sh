#!/bin/bash
# What a virtual machine does: run the programs of /nimbus/list one after another. Each line of the
# list is `NAME SECONDS PROGRAM ARGUMENTS...`. What a program says goes to /nimbus/out/NAME.log, how it
# ended to /nimbus/out/NAME.status; the host reads both when the machine is off. The second serial
# port shows progress only.
set -u
out=/nimbus/out
progress=/dev/ttyS1
[ -w "$progress" ] || progress=/dev/null
# shellcheck source=/dev/null
. /nimbus/environment
mkdir -p "$out" "$NIMBUS_BIN_DIR"
mount --bind /nimbus/programs "$NIMBUS_BIN_DIR"
{
    . /etc/os-release
    echo "$PRETTY_NAME, kernel $(uname -r), init $(cat /proc/1/comm)"
    containerd --version | cut -d' ' -f2-3
    # Pure: the one hierarchy is the unified one, and no other is mounted.
    stat -f -c %T /sys/fs/cgroup
    awk '$3 ~ /^cgroup$/' /proc/mounts | wc -l
} >"$out/machine"
head -n 2 "$out/machine" >"$progress"
while read -r name seconds program; do
    echo "--- $name" >"$progress"
    cd /
    # shellcheck disable=SC2086
    timeout --kill-after=10 "$seconds" $program </dev/null 2>&1 | tee "$out/$name.log" >"$progress"
    echo "${PIPESTATUS[0]}" >"$out/$name.status"
done </nimbus/list
sync
echo done >"$out/done"
