#!/bin/sh
# Unpacks the programs of Debian packages, with the libraries they need, into a folder of their own.
#
#   unpack.sh SUITE FOLDER PACKAGE...
#
# Nothing is installed: no maintainer script runs, no service starts, and no root is needed. The folder serves two
# purposes: it is imported as a Docker image, and FOLDER/host holds wrappers that run each program on this
# machine with the libraries of FOLDER, whatever this machine's own release is.
#
# Needs apt-get and dpkg-deb. The mirror is the one this machine's apt uses for Debian, or $DLOCK_TEST_DEBIAN_MIRROR.
set -eu
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

suite=$1 folder=$2
shift 2
part=$folder.part apt=$folder.apt
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

say() { echo "unpack: $*" >&2; }
fail() { say "$*"; exit 1; }

command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || fail "apt-get and dpkg-deb are needed"
[ -f "$keyring" ] || fail "$keyring is missing: run 'apt-get install debian-archive-keyring'"
mirror=${DLOCK_TEST_DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL)' |
    sed -n 's/ Debian Debian$//p' | head -n 1)}
# Before the first 'apt-get update' apt knows addresses only.
mirror=${mirror:-$(apt-get update --print-uris 2>/dev/null |
    sed -n "s|^'\(.*/debian/\)dists/.*/InRelease' .*|\1|p" | head -n 1)}
[ -n "$mirror" ] || fail "apt knows no Debian mirror: set DLOCK_TEST_DEBIAN_MIRROR to one"

trap 'rm -rf "$part" "$apt"' EXIT
rm -rf "$part" "$apt"
mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$apt/packages" "$part/usr" "$part/tmp"
chmod 1777 "$part/tmp"

# An apt of its own, which believes that nothing is installed, so that it names every library.
: >"$apt/status"
echo "deb [signed-by=$keyring] $mirror $suite main" >"$apt/sources.list"
own_apt() {
    apt-get -qq -o Dir::State::status="$apt/status" -o Dir::State::lists="$apt/lists" -o Dir::Cache="$apt" \
        -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferencesparts=/dev/null -o APT::Sandbox::User= -o Acquire::Languages=none \
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -o APT::Install-Recommends=false \
        -o Acquire::Retries=2 "$@"
}
say "reading the package list of $suite"
own_apt update >&2
plan=$(own_apt -s install "$@") || fail "$suite cannot provide $*"
# What only maintainer scripts, logins and just-in-time compilation need is left out, and Java unless it is asked for.
needless='adduser|base-passwd|ca-certificates.*|debconf|dpkg|gcc-.*-base|init-system-helpers|java-common|libaudit-common
libdb5.*|libdebconfclient0|libgdbm.*|libllvm.*|libpam-.*|lib.*perl.*|libsemanage.*|libsepol.*|libz3-.*|login.defs|lsb-base
passwd|perl.*|sysvinit-utils|tar|ucf|usrmerge|default-jre.*|openjdk-.*'
names=$(echo "$plan" | sed -n 's/^Inst \([^ ]*\) .*/\1/p' | grep -v -x -E "$needless"
    echo "$plan" | sed -n 's/^Inst \([^ ]*\) .*/\1/p' | grep -x -F "$(printf '%s\n' "$@")")
names=$(echo "$names" | sort -u)
say "fetching $(echo "$names" | wc -l) packages for $*"
(cd "$apt/packages" && own_apt download $names >&2)

for dir in bin sbin lib lib64; do
    mkdir -p "$part/usr/$dir"
    ln -s "usr/$dir" "$part/$dir"
done
for package in "$apt"/packages/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x -C "$part" --keep-directory-symlink --no-same-owner \
        --exclude=./usr/share/doc --exclude=./usr/share/man --exclude=./usr/share/locale \
        --exclude=./usr/share/lintian --exclude=./usr/share/info --exclude=./usr/share/bug
done

# Some programs look up the user they run as.
mkdir -p "$part/etc"
printf 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >"$part/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$part/etc/group"

# Wrappers: the loader and the libraries of the folder, and the name under which a program finds its own files. PostgreSQL
# finds them, and its other programs, from where its name says that it is.
loader=$(cd "$part" && find usr/lib* -maxdepth 2 -name 'ld-linux*.so.*' | head -n 1)
libraries=$(cd "$part" && dirname "$(find usr/lib -name libc.so.6 | head -n 1)")
for program in "$part"/usr/bin/* "$part"/usr/sbin/* "$part"/usr/lib/postgresql/*/bin/*; do
    [ -x "$program" ] && [ "$(head -c 4 "$program" | tail -c 3)" = ELF ] || continue
    inside=${program#"$part/"}
    mkdir -p "$part/host/$(dirname "$inside")"
    printf '#!/bin/sh\nexec "%s" --argv0 "%s" --library-path "%s" "%s" "$@"\n' \
        "$folder/$loader" "$folder/host/$inside" "$folder/$libraries" "$folder/$inside" >"$part/host/$inside"
    chmod 755 "$part/host/$inside"
done
for version in "$part"/host/usr/lib/postgresql/*; do
    [ -d "$version" ] || continue
    ln -s "$folder/usr/lib/postgresql/$(basename "$version")/lib" "$version/lib"
    ln -s "$folder/usr/share" "$part/host/usr/share"
done

rm -rf "$folder"
mv "$part" "$folder"
say "$folder is ready: $(du -sh "$folder" | cut -f 1)"
