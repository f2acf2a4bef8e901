"""Numbers, sizes and times as people read them."""

from __future__ import annotations

import math
from datetime import datetime

NOTHING = "\N{EN DASH}"
"""What stands where there is no value."""


def number(value: float) -> str:
    """A metric's value with about four significant digits: `0.02135`, `12,500`, `3.0e-05`, `NaN`."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf" if value > 0 else "-inf"
    magnitude = abs(value)
    if magnitude >= 1e9 or 0 < magnitude < 1e-3:
        return f"{value:.2e}"
    return f"{value:,.0f}" if magnitude >= 1000 else f"{value:.4g}"


def percent(share: float) -> str:
    """A share of one as whole percent."""
    return f"{100 * share:.0f} %"


def size(count: float) -> str:
    """A number of bytes: `312 KB`, `1.2 GB` (powers of 1000)."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def when(seconds: float) -> str:
    """A time since the epoch, in this host's zone."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def duration(seconds: float) -> str:
    """A span of time in its two largest units: `2 h 13 min`."""
    whole = max(0, round(seconds))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes >= 10:
        return f"{minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def many(count: int, noun: str) -> str:
    """`1 row`, `12,000 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def clock(seconds: float, now: float) -> str:
    """A time since the epoch as one says it near to it: `17:40`, `Tue 17:40`, `2026-03-01`."""
    at = datetime.fromtimestamp(seconds).astimezone()
    days = abs((at.date() - datetime.fromtimestamp(now).astimezone().date()).days)
    return at.strftime("%H:%M" if days == 0 else "%a %H:%M" if days < 7 else "%Y-%m-%d")
