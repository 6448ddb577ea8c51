"""Modules that users import by name import this one before torch: where torch is missing, it says so in a sentence."""

from __future__ import annotations

from ._needs import need_torch

need_torch("This part of seqcls_fast")
