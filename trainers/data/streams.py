"""Seeds of random streams that are numbered: one for each (seed, number), so that any can be drawn without the others."""

from __future__ import annotations


def stream(seed: int, number: int) -> int:
    """63 bits. splitmix64's increment keeps the streams of neighbouring seeds apart."""
    return (seed * 0x9E3779B97F4A7C15 + number) % 2**63
