"""Packaging; tool configuration lives in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    name="rescue-virt",
    version="0.1.0",
    description="Rescue mode for libvirt/QEMU virtual machines",
    python_requires=">=3.11",
    packages=find_packages(include=["rescue_virt", "rescue_virt.*"]),
    package_data={"rescue_virt": ["py.typed", "templates/user-data", "templates/meta-data"]},
    data_files=[
        ("share/man/man1", ["docs/rescue-virt.1"]),
        (
            "share/rescue-virt",
            ["templates/rescue-virt.conf", "templates/rescue-virt-recover.service"],
        ),
    ],
    install_requires=[
        # oslo.utils imports it for its inspector of images, and does not say so.
        "cryptography>=42",
        "libvirt-python>=9.0",
        "lxml>=5.0",
        "oslo.concurrency>=6.0",
        "oslo.config>=9.6",
        "oslo.utils>=7.4",
        "urllib3>=2.2",
        "pycdlib>=1.14",
        "libpass>=1.9",
        "click>=8.1",
        "rich>=13",
    ],
    entry_points={
        "console_scripts": ["rescue-virt = rescue_virt.cli.main:main"],
        "rescue_virt.drivers": ["rescue_virt = rescue_virt.driver:RescueDriver"],
    },
)
