#!/bin/sh
# Runs a command in a tree. Started by distro.py through `unshare --mount --propagation private`, so that every
# mount made here is gone when the command is.
#
# In the exchange folder, $1: "settings" (sh), "environment" (sh), "command" (sh) and "paths", one a line: what pip
# needs from this machine, at the same place in the tree.
set -eu
exchange=$1
. "$exchange/settings"

if [ "$scratch" = 1 ]; then
    # Anything can be installed, and nothing of it stays: the tree is the lower layer of an overlay.
    mount -n -t tmpfs -o mode=755 tmpfs "$exchange/layers"
    mkdir "$exchange/layers/upper" "$exchange/layers/work" "$exchange/layers/root"
    options="lowerdir=$tree,upperdir=$exchange/layers/upper,workdir=$exchange/layers/work"
    mount -n -t overlay -o "$options" overlay "$exchange/layers/root"
    root=$exchange/layers/root
else
    # No overlay where events are compared with stat(2): their inode numbers differ there.
    mount -n --bind "$tree" "$tree"
    root=$tree
fi

mkdir -p "$root/src" "$root/results"
# What of this machine is needed. In an overlay, files are copied: apt could not replace one that is a mount.
while IFS= read -r path; do
    if [ -d "$path" ]; then
        mkdir -p "$root$path"
        mount -n --bind -o ro "$path" "$root$path"
    elif [ -f "$path" ]; then
        mkdir -p "$root$(dirname "$path")"
        if [ "$scratch" = 1 ]; then
            cp -L --remove-destination "$path" "$root$path"
        else
            [ -e "$root$path" ] || touch "$root$path"
            mount -n --bind "$path" "$root$path"
        fi
    fi
done < "$exchange/paths"

mount -n --bind "$project" "$root/src"
mount -n -o remount,bind,ro "$root/src"
mount -n --bind "$exchange/results" "$root/results"
for name in proc sys dev; do mount -n --rbind /$name "$root/$name"; done
for name in tmp var/tmp run; do mount -n -t tmpfs -o mode=1777 tmpfs "$root/$name"; done
chmod 755 "$root/run"
if [ "$scratch" != 1 ]; then
    mount -n -t tmpfs -o mode=700 tmpfs "$root/root"
    mount -n -t tmpfs -o mode=755 tmpfs "$root/var/cache"
    mount -n -o remount,bind,ro "$root"
fi

cp "$exchange/environment" "$exchange/command" "$root/run/"
cat > "$root/run/start" << 'END'
set -a
. /run/environment
set +a
python=$(command -v python3 || :)
version() { [ -z "$python" ] || "$python" -c "$1" 2> /dev/null || :; }
{
    echo "kernel=$(uname -r)"
    echo "python=$(version 'import platform; print(platform.python_version())')"
    echo "bcc=$(version 'import bcc; bcc.BPF; print(bcc.__version__)')"
} > /results/facts
cd /src
. /run/command
END
# Not chroot: who enters a mount namespace, as `runc exec` does, is in its true root then.
cd "$root"
pivot_root . .
umount -n -l .
exec /bin/sh /run/start
