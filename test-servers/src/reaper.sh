# Removes what a test program started, when that program is gone, however it went.
#
#   reaper.sh LABEL FOLDER PROVIDER
#
# Standard input is a pipe whose other end only the test program has: it closes at exit, at a panic, and at SIGKILL.
trap '' HUP INT QUIT TERM
cd /
label=$1 folder=$2 provider=$3
cat >/dev/null

# Whatever the program started works in its folder: servers, what they forked, and command-line tools.
processes() {
    find /proc/[0-9]* -maxdepth 1 -name cwd \
        \( -lname "$folder" -o -lname "$folder (deleted)" -o -lname "$folder/*" \) 2>/dev/null |
        cut -d / -f 3
}
containers() {
    [ "$provider" = docker ] && docker ps --all --quiet --no-trunc --filter "label=dlock-test=$label"
}

# A request that was on its way to the Docker daemon may still make a container: look until three looks found nothing. What
# cannot be removed in some minutes never can: a daemon that is broken is not asked for ever.
quiet=0 looks=0
while [ "$quiet" -lt 3 ] && [ "$looks" -lt 1000 ]; do
    looks=$((looks + 1))
    found=$(processes; containers)
    if [ -z "$found" ]; then
        quiet=$((quiet + 1))
        rm -rf "$folder"
        [ "$provider" = docker ] || break
        sleep 0.3
        continue
    fi
    quiet=0
    for one in $(processes); do kill -KILL "$one"; done
    for one in $(containers); do docker rm --force --volumes "$one"; done
    sleep 0.1
done
rm -rf "$folder"
