#!/bin/sh
# A dozen programs worth looking at, for about three seconds. Their output doesn't matter.
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT

uname -a
ls -l /etc/hostname /etc/os-release
printf '%s\n' one two three > "$folder/a file with spaces"
cat "$folder/a file with spaces" | sort -r | head -n 1
sleep 1

# A script: the kernel starts its interpreter, and puts that in front of the arguments.
printf '#!/bin/sh\ndate "+%%H:%%M"\n' > "$folder/report.sh"
chmod +x "$folder/report.sh"
"$folder/report.sh" --since 'last week' "it's late"

# Found nowhere, so nothing starts; the lookup that succeeds shows the path that it ended at.
no-such-program --help
env no-such-program-either
sleep 1

# Short-lived: what a look at the list of processes every second would miss.
find /etc -maxdepth 1 -name 'host*' -exec wc -c '{}' ';'
# Text that would change a terminal, or fake a line in a table, is shown escaped.
env printf '%s\n' "$(printf '\033[31mred')" "$(printf 'two\nlines')"
sh -c 'exec sleep 1'
