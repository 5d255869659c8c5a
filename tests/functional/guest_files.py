"""The files that make a guest of the lab behave: its init, its services, its settings."""

from __future__ import annotations

from textwrap import dedent

INITRAMFS_INIT = dedent("""\
    #!/bin/sh
    # Mounts the file system of root=UUID= and starts the init in it.
    export PATH=/sbin:/bin
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mount -t devtmpfs dev /dev
    for module in $(cat /modules/order); do insmod "/modules/$module"; done

    mode=rw
    for word in $(cat /proc/cmdline); do
        case $word in
        root=UUID=*) uuid=$(echo "${word#root=UUID=}" | tr -d -) ;;
        ro) mode=ro ;;
        esac
    done

    # An ext4 superblock has its UUID at byte 104, and itself is at byte 1024.
    ext4_uuid() {
        dd if="/dev/$1" bs=8 skip=141 count=2 2>/dev/null | hexdump -v -e '/1 "%02x"'
    }

    # Of several disks with that UUID real guests take any; the last is the worst for a rescue.
    tries=0 seen=
    while :; do
        root='' devices=$(ls /sys/class/block)
        for device in $devices; do
            if [ "$(ext4_uuid "$device")" = "$uuid" ]; then root=$device; fi
        done
        if [ -n "$root" ] && [ "$devices" = "$seen" ]; then break; fi
        tries=$((tries + 1)) seen=$devices
        if [ "$tries" -gt 100 ]; then
            echo "BOOT FAILED: no root with UUID $uuid"
            while :; do sleep 3600; done
        fi
        sleep 0.2
    done

    mount -t ext4 -o "$mode" "/dev/$root" /root
    for directory in dev proc sys; do mount --move "/$directory" "/root/$directory"; done
    exec switch_root /root /sbin/init
""")

SMALL_RC = dedent("""\
    #!/bin/sh
    # Everything between init and the login prompt of the small guest.
    export PATH=/sbin:/bin
    mkdir -p /dev/pts
    mount -t devpts devpts /dev/pts
    mount -t tmpfs run /run
    mount -t tmpfs tmp /tmp
    hostname -F /etc/hostname

    boot_failed() {
        printf '\\nBOOT FAILED: fstab: %s\\n' "$1"
        while :; do sleep 3600; done
    }

    mount_fstab() {
        while read -r spec point type options _; do
            case $spec in
            LABEL=* | UUID=*) device=$(findfs "$spec" 2>/dev/null) ;;
            /dev/*) device=$spec ;;
            *) continue ;;
            esac
            case ,$options, in *,nofail,*) optional=: ;; *) optional=boot_failed ;; esac
            if [ ! -b "$device" ]; then "$optional" "$spec"; continue; fi
            case $point,$options in /,* | none,* | swap,* | *noauto*) continue ;; esac
            mkdir -p "$point"
            mount -t "$type" -o "${options:-defaults}" "$device" "$point" || "$optional" "$spec"
        done </etc/fstab
    }

    iso9660_label() {
        dd if="/dev/$1" bs=8 skip=4101 count=4 2>/dev/null | tr -d ' \\000'
    }

    apply_config_drive() {
        for device in $(ls /sys/class/block); do
            [ "$(iso9660_label "$device")" = config-2 ] || continue
            mkdir -p /run/config-2
            mount -t iso9660 -o ro "/dev/$device" /run/config-2 || continue
            apply_password /run/config-2/openstack/latest/user_data
        done
    }

    apply_password() {
        hash=$(sed -n 's/^ *root:\\(\\$6\\$[^ ]*\\) *$/\\1/p' "$1" | tail -n 1)
        [ -n "$hash" ] || return 0
        echo "root:$hash:19000:0:99999:7:::" >/etc/shadow
        chmod 0600 /etc/shadow
    }

    # acpid would do, but starts to listen at a moment nobody knows.
    watch_power_button() {
        for device in /sys/class/input/event*; do
            grep -q 'Power Button' "$device/device/name" || continue
            exec 5<"/dev/input/${device##*/}"
            { dd bs=24 count=1 of=/dev/null 2>/dev/null; /sbin/poweroff; } <&5 &
            exec 5<&-
        done
    }

    disks() {
        ls /sys/class/block | while read -r device; do
            case $device in sr* | loop* | ram* | fd*) continue ;; esac
            [ -e "/sys/class/block/$device/partition" ] || printf ' %s' "$device"
        done
    }

    mount_fstab
    apply_config_drive
    watch_power_button
    root=$(sed -n 's,^\\(/dev/[^ ]*\\) / .*,\\1,p' /proc/mounts)
    all=$(disks)
    # UEFI leaves the cursor in the middle of a line.
    printf '\\nREADY %s\\n' "marker=$(cat /etc/marker) root=$root disks=${all# }"
""")

# The init of busybox takes seconds to stop services; here there are none.
SMALL_HALT = dedent("""\
    #!/bin/sh
    sync
    umount -a -r 2>/dev/null
    exec busybox "${0##*/}" -f
""")

SMALL_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\n",
    "etc/securetty": "ttyS0\n",
    "etc/inittab": "::sysinit:/etc/rc\nttyS0::respawn:/sbin/getty -L 115200 ttyS0 vt100\n",
    "etc/rc": SMALL_RC,
    "sbin/poweroff": SMALL_HALT,
    "sbin/reboot": SMALL_HALT,
}

DEBIAN_FILES = {
    "etc/systemd/network/20-dhcp.network": dedent("""\
        [Match]
        Name=en* eth*

        [Network]
        DHCP=yes
    """),
    "etc/cloud/cloud.cfg.d/90-lab.cfg": dedent("""\
        datasource_list: [ConfigDrive, NoCloud, None]
        network: {config: disabled}
        ssh_genkeytypes: [ed25519]
    """),
    "etc/default/locale": "LANG=C.UTF-8\n",
    "etc/machine-id": "",
}
