"""Name the extension that the package's build compiles; all else is in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["vmm/kvm_cffi/build.py:ffibuilder"])
