"""Images, videos, tables and histograms: kept in the run folder, referred to by the row, shown by W&B at the replay.

```
RUN/media/images/eval-view-00000120-3f2a9c51.png
RUN/media/videos/…   RUN/media/tables/…
```
A histogram is a few numbers and stands in the row itself.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tracking.files import write_atomic
from tracking.names import slug
from tracking.values import plain

MAX_BINS = 512

Reference = dict[str, Any]


@runtime_checkable
class Media(Protocol):
    """Something that a row refers to."""

    def store(self, run_dir: Path, name: str, step: int) -> Reference:
        """Writes it into the run folder and returns what stands for it in the row."""


@dataclass(frozen=True)
class Image:
    """An image.

    Attributes:
        data: A file, a PIL image, a matplotlib figure, or an array of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4):
            uint8, or floats from 0 to 1.
        caption: Shown under it.
    """

    data: Any
    caption: str | None = None

    def store(self, run_dir: Path, name: str, step: int) -> Reference:
        """Writes a PNG, or copies the file as it is."""
        if isinstance(self.data, str | Path):
            content, suffix = Path(self.data).read_bytes(), Path(self.data).suffix
        else:
            content, suffix = _png(self.data), ".png"
        path = _write(run_dir, "images", _stem(name, step), content, suffix)
        return {"media": "image", "path": path, "caption": self.caption}


@dataclass(frozen=True)
class Video:
    """A video file.

    Attributes:
        path: An mp4, gif, webm or ogg file.
        caption: Shown under it.
    """

    path: str | Path
    caption: str | None = None

    def store(self, run_dir: Path, name: str, step: int) -> Reference:
        """Copies the file."""
        source = Path(self.path)
        if source.suffix not in (".mp4", ".gif", ".webm", ".ogg"):
            raise TypeError(f"a video is an mp4, gif, webm or ogg file, not {source.name!r}")
        path = _write(run_dir, "videos", _stem(name, step), source.read_bytes(), source.suffix)
        return {"media": "video", "path": path, "caption": self.caption}


@dataclass(frozen=True)
class Table:
    """A table of plain values.

    Attributes:
        columns: The names of the columns.
        rows: One sequence a row, as long as `columns`.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def store(self, run_dir: Path, name: str, step: int) -> Reference:
        """Writes JSON."""
        if any(len(row) != len(self.columns) for row in self.rows):
            raise TypeError(f"a row of the table has not {len(self.columns)} values, one a column")
        content = json.dumps({"columns": list(self.columns), "data": plain(self.rows)}).encode()
        return {"media": "table", "path": _write(run_dir, "tables", _stem(name, step), content, ".json")}


@dataclass(frozen=True)
class Histogram:
    """A histogram.

    Attributes:
        values: Numbers in an array or tensor of any shape; NaN and the infinities are left out and counted.
        bins: How many bins, at most 512.
    """

    values: Any
    bins: int = 64

    def store(self, run_dir: Path, name: str, step: int) -> Reference:
        """Counts the values."""
        import numpy as np

        values = self.values.detach().float().cpu().numpy() if hasattr(self.values, "detach") else self.values
        numbers = np.asarray(values, dtype=float).ravel()
        finite = numbers[np.isfinite(numbers)]
        counts, edges = np.histogram(finite, bins=min(self.bins, MAX_BINS))
        reference: Reference = {"media": "histogram", "counts": counts.tolist(), "edges": edges.tolist()}
        if finite.size < numbers.size:
            reference["not_finite"] = int(numbers.size - finite.size)
        return reference


def as_media(value: Any) -> Media | None:
    """Finds the media that a value is: one of this module's, a PIL image, a figure, or an array to be counted."""
    if isinstance(value, Media):
        return value
    module = type(value).__module__
    if module.startswith("PIL.") or (module.startswith("matplotlib.") and hasattr(value, "savefig")):
        return Image(value)
    if hasattr(value, "shape") and hasattr(value, "dtype") and getattr(value, "ndim", 0) > 0:
        return Histogram(value)
    return None


def _png(data: Any) -> bytes:
    buffer = io.BytesIO()
    if hasattr(data, "savefig"):
        data.savefig(buffer, format="png")
        return buffer.getvalue()
    if not hasattr(data, "save"):
        import numpy as np
        from PIL import Image as Pillow

        array = np.asarray(data.detach().cpu() if hasattr(data, "detach") else data)
        if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
            raise TypeError(f"an image has the shape (H, W) or (H, W, 1, 3 or 4), not {array.shape}")
        if array.dtype.kind == "f":
            array = (array.clip(0, 1) * 255).round()
        data = Pillow.fromarray(array.astype("uint8").squeeze())
    data.save(buffer, format="PNG")
    return buffer.getvalue()


def _stem(name: str, step: int) -> str:
    return f"{slug(name)}-{step:08d}"


def _write(run_dir: Path, kind: str, stem: str, content: bytes, suffix: str) -> str:
    folder = run_dir / "media" / kind
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(content).hexdigest()[:8]
    path = folder / f"{stem}-{digest}{suffix}"
    write_atomic(path, content)
    return str(path.relative_to(run_dir))
