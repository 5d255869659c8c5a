"""Rescue mode for libvirt/QEMU virtual machines."""

__version__ = "0.1.0"
