"""Hashes that name content."""

from __future__ import annotations

import hashlib


def digest(*parts: str | bytes) -> str:
    """Return the first 16 hex digits of the SHA-256 of the parts, each preceded by its length."""
    sha = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        sha.update(len(content).to_bytes(8, "little"))
        sha.update(content)
    return sha.hexdigest()[:16]
