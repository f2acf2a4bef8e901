"""Media: written beside the journal by the training process, shown by W&B at the replay."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from tracking.media import Histogram, Image, Table, Video, as_media


@pytest.mark.parametrize(
    ("data", "mode"),
    [
        (np.arange(12, dtype=np.uint8).reshape(3, 4), "L"),
        (np.full((3, 4, 1), 7, dtype=np.uint8), "L"),
        (np.full((3, 4, 3), 0.5), "RGB"),
        (torch.full((3, 4, 4), 2.0), "RGBA"),
        (Pillow.new("RGB", (4, 3), (1, 2, 3)), "RGB"),
    ],
)
def test_an_image_becomes_a_png(tmp_path: Path, data: Any, mode: str) -> None:
    reference = Image(data, caption="it's").store(tmp_path, "eval/view", 120)
    assert reference["caption"] == "it's"
    assert reference["path"].startswith("media/images/eval-view-00000120-")
    with Pillow.open(tmp_path / reference["path"]) as image:
        assert (image.size, image.mode) == ((4, 3), mode)


def test_floats_are_clipped_to_what_they_mean(tmp_path: Path) -> None:
    reference = Image(np.array([[-1.0, 0.5, 2.0]])).store(tmp_path, "x", 1)
    with Pillow.open(tmp_path / reference["path"]) as image:
        assert list(np.asarray(image).ravel()) == [0, 128, 255]


def test_a_figure_and_a_file_are_images(tmp_path: Path) -> None:
    figure = plt.figure()
    media = as_media(figure)
    assert isinstance(media, Image)
    first = media.store(tmp_path, "f", 1)
    plt.close(figure)
    again = Image(tmp_path / first["path"]).store(tmp_path, "f", 1)
    assert again["path"] == first["path"]


@pytest.mark.parametrize("shape", [(3,), (2, 3, 5), (1, 2, 3, 4)])
def test_another_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(TypeError, match="an image has the shape"):
        Image(np.zeros(shape)).store(tmp_path, "x", 1)


def test_a_video_is_a_file_of_a_known_kind(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"video")
    reference = Video(tmp_path / "a.mp4").store(tmp_path, "eval/roll out", 3)
    assert (tmp_path / reference["path"]).read_bytes() == b"video"
    with pytest.raises(TypeError, match=r"not 'a\.txt'"):
        Video(tmp_path / "a.txt").store(tmp_path, "x", 1)
    with pytest.raises(FileNotFoundError):
        Video(tmp_path / "missing.mp4").store(tmp_path, "x", 1)


def test_a_table(tmp_path: Path) -> None:
    reference = Table(["a", "b"], [[1, "x"], [np.float32(0.5), None]]).store(tmp_path, "t", 1)
    assert json.loads((tmp_path / reference["path"]).read_text()) == {
        "columns": ["a", "b"],
        "data": [[1, "x"], [0.5, None]],
    }
    with pytest.raises(TypeError, match="has not 2 values"):
        Table(["a", "b"], [[1]]).store(tmp_path, "t", 1)


def test_a_histogram_counts_what_is_finite(tmp_path: Path) -> None:
    reference = Histogram(torch.tensor([0.0, 1.0, 1.0, math.nan, math.inf]), bins=2).store(tmp_path, "h", 1)
    assert reference == {"media": "histogram", "counts": [1, 2], "edges": [0.0, 0.5, 1.0], "not_finite": 2}
    assert list(tmp_path.iterdir()) == []


def test_what_is_media_and_what_is_not() -> None:
    assert isinstance(as_media(np.zeros(3)), Histogram)
    assert isinstance(as_media(torch.zeros(2, 2)), Histogram)
    assert as_media([1, 2]) is None
    assert as_media("text") is None
