#!/bin/sh
# Runs in the guest, as root, when virtme-ng's init has booted it. The host shares two folders: its own root
# folder, read-only, under the tag "execwatch", and an exchange folder, read-write, at /run/execwatch.
#
# virtme-ng mounts the host's root without any cache, so that each page of each program is asked for again at
# each exec. Mounted a second time with a cache, programs start three times faster. It then takes the place of
# the root folder, in this same mount namespace, so that paths and namespaces look as on any machine.
set -eu
here=/run/execwatch
. $here/settings

root=/mnt
mount -n -t 9p -o ro,version=9p2000.L,trans=virtio,cache=loose,access=any,msize=524288 execwatch $root

# Folders that must stay visible where a tmpfs hides what is around them.
mkdir /run/kept
count=0
while IFS= read -r folder; do
    count=$((count + 1))
    mkdir /run/kept/$count
    mount -n --bind "$root$folder" /run/kept/$count
done < $here/kept

for name in tmp var/tmp var/cache; do
    [ -d $root/$name ] && mount -n -t tmpfs -o mode=1777 tmpfs $root/$name
done
# Before the moves: afterwards the old mount points are empty.
count=0
while IFS= read -r folder; do
    count=$((count + 1))
    mkdir -p "$root$folder"
    mount -n --move /run/kept/$count "$root$folder"
done < $here/kept
for name in proc sys dev run; do mount -n --move /$name $root/$name; done

cd $root
pivot_root . .
umount -n -l .
cd /

mountpoint -q /sys/fs/bpf || mount -n -t bpf bpf /sys/fs/bpf
mountpoint -q /sys/kernel/tracing || mount -n -t tracefs tracefs /sys/kernel/tracing
# virtme-ng points these at serial ports that only one process can hold open.
for fd in "stdin 0" "stdout 1" "stderr 2"; do ln -sf "/proc/self/fd/${fd#* }" "/dev/${fd% *}"; done
echo execwatch-guest > /proc/sys/kernel/hostname
# The guest's modules are not in /lib/modules, which is the host's.
printf '#!/bin/sh\nexec modprobe -d "%s" "$@"\n' "$modules" > /run/modprobe
chmod 755 /run/modprobe
echo /run/modprobe > /proc/sys/kernel/modprobe

set -a
. $here/environment
set +a
mkdir -p "$HOME"
cd "$directory"

{
    echo "kernel=$(uname -r)"
    echo "python=$("$python" -c 'import platform; print(platform.python_version())' 2> /dev/null || :)"
    echo "btf=$(stat -c %s /sys/kernel/btf/vmlinux 2> /dev/null || :)"
    echo "lsm=$(cat /sys/kernel/security/lsm 2> /dev/null || :)"
} > $here/facts

# Through a pipe: what a command opens as /dev/stderr, it may also truncate.
mkfifo /run/output
cat /run/output > $here/output &
reader=$!
status=0
timeout --kill-after=10 "$timeout" sh $here/command < /dev/null > /run/output 2>&1 || status=$?
# Whatever the command left running may hold the pipe open for ever.
for _ in 1 2 3 4 5 6 7 8 9 10; do
    kill -0 $reader 2> /dev/null || break
    sleep 0.2
done
echo $status > $here/status.part
mv $here/status.part $here/status
