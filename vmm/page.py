"""The page of an x86-64 processor and of KVM, by which RAM is given, logged and sent.

Source: Intel SDM, volume 3, section 4.5.
"""

from __future__ import annotations

from typing import Final

PAGE: Final = 4096
"""Bytes of one. What a device's specification calls a page is a fact of its own."""
