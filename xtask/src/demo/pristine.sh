# Inside a fresh Debian root: mounts what a machine has, makes the folder the root of this process, and runs the demo there.
# Runs in a mount namespace of its own; everything mounted here ends with it. Arguments: ROOT RUST GO.
set -euo pipefail
root=$1 rust=$2 go=$3
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
for tree in /sys /dev; do mount --rbind "$tree" "$root$tree"; done
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
# The toolchains are what README asks for; a fresh root has none, and they are read-only here.
for toolchain in "$rust" "$go"; do
  mkdir -p "$root$toolchain"
  mount --rbind -o ro "$toolchain" "$root$toolchain"
done
cd "$root"
mkdir -p old
pivot_root . old
umount -l /old
cd /src/vitrine
export HOME=/root PATH="$rust/bin:$go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
unset CARGO_HOME CARGO_TARGET_DIR GOPATH GOCACHE GOMODCACHE GOENV XDG_CACHE_HOME XDG_STATE_HOME XDG_CONFIG_HOME RUSTUP_HOME RUSTUP_TOOLCHAIN
# Cargo sets these for the program that started us.
for name in $(compgen -v | grep -E '^CARGO_(PKG|MANIFEST)' || true); do unset "$name"; done
exec cargo xtask demo --once --quiet
