"""Disk images of guests, built from Debian packages and kept by the digest of their recipe."""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import json
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

from guest_files import DEBIAN_FILES, INITRAMFS_INIT, SMALL_FILES

MIB = 1024 * 1024
BOOT_OFFSET, BOOT_SIZE = 1 * MIB, 32 * MIB
ROOT_OFFSET = BOOT_OFFSET + BOOT_SIZE
SMALL_ROOT_SIZE = 16 * MIB
DEBIAN_ROOT_SIZE = 1400 * MIB

KERNEL_PACKAGE = "linux-image-cloud-amd64"
# ext4 is part of that kernel; ahci it does not have, so a CD-ROM on SATA stays invisible.
MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_scsi", "virtio_net", "virtio_console"),
    *("sd_mod", "sr_mod", "ata_piix", "isofs", "vfat", "nls_ascii", "nls_cp437"),
    *("evdev", "button"),
)
SMALL_CMDLINE = "console=ttyS0 loglevel=4 rw"
DEBIAN_CMDLINE = "console=ttyS0 ro"
DEBIAN_PACKAGES = (
    *("systemd-sysv", "dbus", "udev", "kmod", "login", "passwd", "util-linux", "e2fsprogs"),
    *("iproute2", "procps", "netbase", "openssh-server", "cloud-init", "qemu-guest-agent"),
)
DEBIAN_MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer"),
    *("e2scrub_all.timer", "e2scrub_reap.service", "man-db.timer", "logrotate.timer"),
    # With no network card it would hold up the boot for two minutes.
    "systemd-networkd-wait-online.service",
)
DEBIAN_DROPPED = (
    *("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale"),
    *("usr/share/lintian", "usr/share/bash-completion"),
    *("var/cache/apt", "var/lib/apt/lists", "var/log/apt"),
    # They name the mirrors of the machine that built the image.
    *("etc/apt/sources.list", "etc/apt/sources.list.d", "etc/apt/apt.conf.d/99mmdebstrap"),
)


# --- images ---------------------------------------------------------------------------------


def small_image(name: str, *, fmt: str = "qcow2") -> Path:
    """A guest of a kernel and busybox that is at its login within seconds, even emulated."""
    return _image("small", name, fmt, cmdline=SMALL_CMDLINE)


def debian_image(name: str, *, fmt: str = "qcow2") -> Path:
    """A Debian 12 with systemd, cloud-init, sshd and the guest agent."""
    return _image("debian", name, fmt, cmdline=DEBIAN_CMDLINE)


def root_uuid(name: str) -> str:
    """The UUID of the root file system in the images of that name."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.rescue-virt.invalid"))


def overlay(base: Path, target: Path) -> Path:
    """Create at `target` an empty qcow2 image backed by `base`."""
    backing = ("-b", base.absolute(), "-F", _format(base))
    _run("qemu-img", "create", "-q", "-f", "qcow2", *backing, target)
    return target


def _image(kind: str, name: str, fmt: str, *, cmdline: str) -> Path:
    base = {"small": _small_disk, "debian": _debian_disk}[kind]()

    def build(target: Path) -> None:
        raw = target.with_suffix(".raw")
        _run("cp", "--sparse=always", base, raw)
        _personalise(raw, name, cmdline)
        _run("qemu-img", "convert", "-f", "raw", "-O", fmt, raw, target)

    recipe = (base.name, name, cmdline, _personalise)
    return _cached(f"{kind}-{name}", recipe, build, suffix=f".{fmt}")


def _personalise(raw: Path, name: str, cmdline: str) -> None:
    identity = root_uuid(name)
    _run("tune2fs", "-U", identity, f"{raw}?offset={ROOT_OFFSET}")
    _run("sfdisk", "--quiet", "--disk-id", raw, f"0x{identity[:8]}")
    _edit_root(raw, "/etc/marker", f"{name}\n")
    _edit_root(raw, "/etc/hostname", f"{name}\n")
    _edit_root(raw, "/etc/fstab", f"UUID={identity} / ext4 defaults 0 1\n")
    config = raw.with_name("syslinux.cfg")
    config.write_text(_boot_config(f"root=UUID={identity} {cmdline}"))
    for path in ("::/syslinux.cfg", "::/EFI/BOOT/syslinux.cfg"):
        _run("mcopy", "-o", "-i", f"{raw}@@{BOOT_OFFSET}", config, path)


def _boot_config(cmdline: str) -> str:
    return dedent(f"""\
        SERIAL 0 115200
        DEFAULT linux
        PROMPT 0
        LABEL linux
            KERNEL /vmlinuz
            INITRD /initrd
            APPEND {cmdline}
    """)


# --- editing images of guests that are off --------------------------------------------------


def read_root_file(image: Path, path: str) -> str:
    """The text of a file in the root file system of an image or overlay."""
    with _as_raw(image) as raw:
        _replay_journal(raw)
        return _debugfs(raw, f"cat {path}")


def write_root_file(image: Path, path: str, text: str, *, mode: int = 0o644) -> None:
    """Replace a file in the root file system of an image or overlay."""
    with _as_raw(image) as raw:
        _replay_journal(raw)
        _edit_root(raw, path, text, mode=mode)
        _replace(image, raw)


def remove_boot_file(image: Path, name: str) -> None:
    """Remove a file from the boot partition: vmlinuz, initrd or syslinux.cfg."""
    with _as_raw(image) as raw:
        _run("mdel", "-i", f"{raw}@@{BOOT_OFFSET}", f"::/{name}")
        _replace(image, raw)


@contextmanager
def _as_raw(image: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=image.parent, prefix=".edit-") as work:
        raw = Path(work) / "raw"
        _run("qemu-img", "convert", "-f", _format(image), "-O", "raw", image, raw)
        yield raw


def _replace(image: Path, raw: Path) -> None:
    new, fmt = raw.with_name("new"), _format(image)
    info = json.loads(_run("qemu-img", "info", "-f", fmt, "--output=json", image))
    backing: list[str] = []
    if "backing-filename" in info:
        backing = ["-B", info["backing-filename"], "-F", info["backing-filename-format"]]
    _run("qemu-img", "convert", "-f", "raw", "-O", fmt, *backing, raw, new)
    status = image.stat()
    os.chown(new, status.st_uid, status.st_gid)
    new.chmod(status.st_mode & 0o7777)
    new.rename(image)


def _replay_journal(raw: Path) -> None:
    """A guest that was killed left changes in the journal, which debugfs does not look at."""
    if "needs_recovery" not in _debugfs(raw, "show_super_stats -h"):
        return
    # e2fsck forgets the offset when it opens the file system again after the replay.
    root, skipped = raw.with_name("root"), ROOT_OFFSET // MIB
    copy = ("dd", "bs=1M", "status=none")
    _run(*copy, f"if={raw}", f"of={root}", f"skip={skipped}", "conv=sparse")
    _run("e2fsck", "-p", root, good=(0, 1))
    _run(*copy, f"if={root}", f"of={raw}", f"seek={skipped}", "conv=notrunc")


def _edit_root(raw: Path, path: str, text: str, *, mode: int = 0o644) -> None:
    source = raw.with_name("text")
    source.write_text(text)
    source.chmod(mode)
    if "Inode:" in _debugfs(raw, f"stat {path}"):
        _debugfs(raw, f"rm {path}")
    _debugfs(raw, f"write {source} {path}")
    written = _debugfs(raw, f"cat {path}")
    if written != text:
        raise RuntimeError(f"{path}: cannot be written into the image")


def _debugfs(raw: Path, command: str) -> str:
    return _run("debugfs", "-w", "-R", command, f"{raw}?offset={ROOT_OFFSET}")


def _format(image: Path) -> str:
    with image.open("rb") as file:
        return "qcow2" if file.read(4) == b"QFI\xfb" else "raw"


# --- parts shared by the images of all names --------------------------------------------------


def _small_disk() -> Path:
    kernel = _kernel()

    def build(target: Path) -> None:
        root = target.with_name("root")
        for directory in ("dev", "proc", "sys", "run", "tmp", "root", "mnt", "etc"):
            (root / directory).mkdir(parents=True)
        _install_busybox(root)
        _write_files(root, SMALL_FILES)
        for path in ("etc/rc", "sbin/poweroff", "sbin/reboot"):
            (root / path).chmod(0o755)
        _make_disk(target, root, SMALL_ROOT_SIZE, kernel)

    texts = (INITRAMFS_INIT, MODULES, SMALL_FILES, SMALL_ROOT_SIZE)
    recipe = (kernel.name, *texts, build, _make_disk, _make_boot, _initramfs, _install_busybox)
    return _cached("base-small", recipe, build)


def _debian_disk() -> Path:
    kernel = _kernel()

    def build(target: Path) -> None:
        root = target.with_name("root")
        _bootstrap(root)
        shutil.copytree(kernel / "lib/modules", root / "usr/lib/modules", symlinks=True)
        for path in DEBIAN_DROPPED:
            _run("rm", "-rf", root / path)
        _write_files(root, DEBIAN_FILES)
        _run("chroot", root, "systemctl", "--quiet", "mask", *DEBIAN_MASKED)
        _run("chroot", root, "systemctl", "--quiet", "enable", "systemd-networkd.service")
        _make_disk(target, root, DEBIAN_ROOT_SIZE, kernel)

    texts = (INITRAMFS_INIT, MODULES, DEBIAN_PACKAGES, DEBIAN_MASKED, DEBIAN_DROPPED, DEBIAN_FILES)
    recipe = (kernel.name, *texts, DEBIAN_ROOT_SIZE, build, _bootstrap, _make_disk, _make_boot)
    return _cached("base-debian", (*recipe, _initramfs), build)


def _bootstrap(root: Path) -> None:
    """Install Debian 12 at `root` with the machine's own apt sources and apt proxies."""
    apt = Path("/etc/apt")
    sources = [*apt.glob("sources.list"), *apt.glob("sources.list.d/*.list")]
    sources += apt.glob("sources.list.d/*.sources")
    acquire = _run("apt-config", "dump", "Acquire").splitlines()
    options = root.with_name("apt.conf")
    options.write_text("\n".join(line for line in acquire if "::IndexTargets" not in line))
    excluded = [f"--dpkgopt=path-exclude=/{path}/*" for path in DEBIAN_DROPPED if "share" in path]
    _run(
        *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=directory"),
        *(f"--aptopt={options}", "--dpkgopt=force-unsafe-io", *excluded),
        *(f"--include={','.join(DEBIAN_PACKAGES)}", "bookworm", root, *sources),
    )


def _kernel() -> Path:
    """A directory with vmlinuz and lib/modules of Debian's kernel for virtual machines."""

    def build(target: Path) -> None:
        depends = _run("apt-cache", "depends", "--important", KERNEL_PACKAGE)
        package = re.findall(r"Depends: (linux-image-\S+)", depends)[0]
        # apt's unprivileged user cannot write into our directory.
        sandbox = ("-o", "APT::Sandbox::User=root")
        _run("apt-get", "download", "-q", *sandbox, package, cwd=target.parent)
        (archive,) = target.parent.glob("*.deb")
        _run("dpkg-deb", "--extract", archive, target)
        (vmlinuz,) = target.glob("boot/vmlinuz-*")
        _run("depmod", "--basedir", target, vmlinuz.name.removeprefix("vmlinuz-"))
        vmlinuz.rename(target / "vmlinuz")

    return _cached("kernel", (KERNEL_PACKAGE, build), build)


def _make_disk(target: Path, root: Path, root_size: int, kernel: Path) -> None:
    """Partition a disk: a FAT for BIOS and UEFI alike, and the tree `root` as ext4."""
    with target.open("wb") as file:
        file.truncate(ROOT_OFFSET + root_size)
    boot = f"start={BOOT_OFFSET // 512}, size={BOOT_SIZE // 512}, type=ef, bootable\n"
    table = f"label: dos\n{boot}start={ROOT_OFFSET // 512}, type=83\n"
    _run("sfdisk", "--quiet", target, text=table)
    _make_boot(target, kernel)
    # With a checksum seed of its own the file system takes another UUID without a rewrite.
    options = ("-q", "-F", "-t", "ext4", "-O", "metadata_csum_seed", "-m", "0")
    placed = ("-d", root, "-E", f"offset={ROOT_OFFSET},root_owner=0:0")
    _run("mke2fs", *options, *placed, target, f"{root_size // 1024}k")


def _make_boot(disk: Path, kernel: Path) -> None:
    tree = disk.with_name("boot")
    (tree / "EFI/BOOT").mkdir(parents=True)
    shutil.copy(kernel / "vmlinuz", tree / "vmlinuz")
    _initramfs(kernel, tree / "initrd")
    syslinux = Path("/usr/lib")
    shutil.copy(syslinux / "SYSLINUX.EFI/efi64/syslinux.efi", tree / "EFI/BOOT/BOOTX64.EFI")
    shutil.copy(syslinux / "syslinux/modules/efi64/ldlinux.e64", tree / "EFI/BOOT/ldlinux.e64")
    blocks = BOOT_SIZE // 1024
    start = BOOT_OFFSET // 512
    _run("mkfs.fat", "-F", "16", "-h", start, "--offset", start, disk, blocks)
    _run("mcopy", "-s", "-i", f"{disk}@@{BOOT_OFFSET}", *sorted(tree.iterdir()), "::/")
    _run("syslinux", "--install", "--offset", BOOT_OFFSET, disk)
    with disk.open("r+b") as file:
        file.write((syslinux / "syslinux/mbr/mbr.bin").read_bytes()[:440])


def _initramfs(kernel: Path, target: Path) -> None:
    tree = target.parent.with_name("initramfs")
    for directory in ("dev", "proc", "sys", "root", "modules"):
        (tree / directory).mkdir(parents=True)
    _install_busybox(tree)
    _write_files(tree, {"init": INITRAMFS_INIT})
    (tree / "init").chmod(0o755)
    files = _module_files(kernel)
    for file in files:
        shutil.copy(file, tree / "modules")
    (tree / "modules/order").write_text("\n".join(file.name for file in files) + "\n")
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    _run("cpio", "--quiet", "-o", "-H", "newc", "-F", target, cwd=tree, text=names)


def _module_files(kernel: Path) -> list[Path]:
    """MODULES with all they depend on, in an order in which insmod takes them."""
    (directory,) = (kernel / "lib/modules").iterdir()
    depends: dict[str, list[str]] = {}
    for line in (directory / "modules.dep").read_text().splitlines():
        path, _, needed = line.partition(":")
        depends[Path(path).stem] = [*reversed(needed.split()), path]
    ordered = dict.fromkeys(path for name in MODULES for path in depends[name])
    return [directory / path for path in ordered]


def _install_busybox(tree: Path) -> None:
    busybox = shutil.which("busybox") or "/bin/busybox"
    (tree / "bin").mkdir()
    shutil.copy(busybox, tree / "bin/busybox")
    for path in _run(busybox, "--list-full").split():
        link = tree / path.removeprefix("usr/")
        link.parent.mkdir(exist_ok=True)
        if not link.exists():
            link.symlink_to("/bin/busybox")


def _write_files(root: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.write_text(text)


# --- cache ------------------------------------------------------------------------------------


def _cached(
    stem: str, recipe: Sequence[object], build: Callable[[Path], None], *, suffix: str = ""
) -> Path:
    """What `build` makes of `recipe`, made once; `build` has the directory around to itself."""
    images = Path(os.environ.get("RESCUE_VIRT_LAB", "/var/cache/rescue-virt-lab")) / "images"
    images.mkdir(parents=True, exist_ok=True)
    target = images / f"{stem}-{_digest(recipe)}{suffix}"
    with _locked(images / f"{stem}.lock"):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=images, prefix=f".{stem}-") as work:
                build(Path(work) / "built")
                _remove_old(images, stem, suffix)
                (Path(work) / "built").rename(target)
    return target


def _digest(recipe: Sequence[object]) -> str:
    texts = [inspect.getsource(part) if callable(part) else repr(part) for part in recipe]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_old(images: Path, stem: str, suffix: str) -> None:
    old = re.compile(re.escape(stem) + "-[0-9a-f]{12}" + re.escape(suffix))
    for path in images.iterdir():
        if old.fullmatch(path.name):
            _run("rm", "-rf", path)


def _run(
    *argv: object,
    cwd: Path | None = None,
    text: str = "",
    good: Sequence[int] = (0,),
    timeout: float = 600,
) -> str:
    words = [str(word) for word in argv]
    environment = os.environ | {"LC_ALL": "C", "MTOOLS_SKIP_CHECK": "1", "DEBUGFS_PAGER": "cat"}
    done = subprocess.run(
        words, cwd=cwd, input=text, env=environment, timeout=timeout,
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode not in good:
        raise RuntimeError(f"{words[0]} failed ({done.returncode}): {done.stderr.strip()[-2000:]}")
    return done.stdout
