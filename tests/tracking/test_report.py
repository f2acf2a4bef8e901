"""The report: one file of a run from its folder alone, whatever state the run is in."""

from __future__ import annotations

import base64
import io
import json
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from tracking.errors import UserError
from tracking.files import write_json
from tracking.identity import claim_identity
from tracking.report.__main__ import write_report
from tracking.report.data import Series, read_run
from tracking.report.figures import RUN_COLOURS, make_scene, svg_panel
from tracking.report.folder import read_checkpoints, sync_in_words
from tracking.report.page import html_page
from tracking.report.panels import MAX_PANELS, make_groups, not_finite_steps, split_rollbacks, thin
from tracking.sync.child.status import SyncStatus, write_status
from tracking.sync.pushed import PushState, write_push_state
from tracking.words import duration, number, size

from browser import chromium
from report_runs import NOW, make_run, save_checkpoint, write_segment

HOSTILE = "<script>document.title='hacked'</script>"


def page_of(*folders: Path) -> str:
    return html_page([read_run(folder, NOW) for folder in folders], NOW).decode()


def series(steps: Iterable[float], values: Iterable[float]) -> Series:
    columns = np.array(list(steps), float), np.array(list(values), float)
    return Series("x", np.arange(len(columns[0]), dtype=float), *columns)


def test_a_run_is_read_whole(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"), NOW)

    assert (run.name, run.run_id, run.project) == ("act_bc_lift", "ab12cd34", "vla-lego")
    assert (run.rows, run.last_step, run.problems) == (106, 1000, [])
    assert [(a.label, a.border, a.first_step, a.last_step, a.rows, a.ended) for a in run.attempts] == [
        ("4711-000", 10, 10, 400, 40, "preempted"),
        ("4711-001", 400, 410, 660, 26, "no end"),
        ("4711-002", 600, 610, 1000, 40, "finished"),
    ]
    assert [(a.outcome, a.reason) for a in run.attempts] == [
        ("requeue", "stopped at a step boundary"),
        ("requeue", "exit code 137"),
        (None, None),
    ]
    assert run.state.word == "finished"
    assert "0123456789abcdef" not in json.dumps(run.config)


def test_the_page_tells_what_happened(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))

    assert "loss/total has 2 values that are not finite: step 520 NaN, step 530 inf" in page
    assert "<b>90 %</b>" in page and "80-100 %" in page and "50 episodes" in page
    assert page.count("<svg") == 5
    assert "node3  (earlier: node1, node2)" in page
    # Above the borders of every picture stands who took over.
    assert page.count(">4711-001</text>") == page.count(">4711-002</text>") == 5


def test_a_rollback_keeps_what_counts_in_one_line() -> None:
    kept, again = split_rollbacks(series([1, 2, 3, 4, 3, 4, 5, 2, 3], range(9)))
    assert list(kept.steps) == [1, 2, 2, 3]
    assert list(again.steps) == [3, 4, 3, 4, 5]


def test_a_spike_survives_thinning() -> None:
    steps, values = np.arange(100_000.0), np.ones(100_000)
    values[[34_567, 71_234]] = 50.0, -50.0
    values[10_000:20_000] = math.nan

    line = thin(steps, values, 200)

    assert line.low is not None and line.high is not None
    assert len(line.steps) <= 200
    assert (np.nanmin(line.low), np.nanmax(line.high)) == (-50.0, 50.0)
    assert np.isnan(line.values).sum() >= 19
    assert np.all(np.diff(line.steps) > 0)


def test_few_points_are_drawn_as_they_are() -> None:
    line = thin(np.arange(300.0), np.arange(300.0), 200)
    assert line.low is None
    assert list(line.values) == list(range(300))


def test_flags_of_values_that_are_not_finite_stay_few() -> None:
    flagged = not_finite_steps(series(range(10_000), [math.nan] * 10_000))
    assert len(flagged) <= 60
    assert (flagged[0], flagged[-1]) == (0, 9999)


def test_a_hundred_thousand_rows_make_a_small_page_in_seconds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ["loss/total", "loss/l1", "train/lr", "train/grad_norm", "perf/steps_per_sec", "perf/samples_per_sec"]
    header = {"kind": "segment", "segment": 0, "first_row": 0, "run_id": "ab12cd34", "time": NOW, "host": "node1"}
    with (tmp_path / "journal-000.jsonl").open("w") as file:
        file.write(json.dumps(header) + "\n")
        for n, values in enumerate(rng.lognormal(size=(100_000, len(names))).tolist()):
            row = {"kind": "row", "n": n, "step": n, "time": NOW, "data": dict(zip(names, values, strict=True))}
            file.write(json.dumps(row) + "\n")
    started = time.monotonic()

    page = html_page([read_run(tmp_path, NOW)], NOW)

    assert time.monotonic() - started < 30
    assert len(page) < 1_000_000
    assert b"100,000" in page


def test_a_page_of_very_many_metrics_says_what_it_leaves_out(tmp_path: Path) -> None:
    write_segment(tmp_path, [(1, {f"layer/{n}": float(n) for n in range(MAX_PANELS + 3)})])
    groups, left_out = make_groups([read_run(tmp_path, NOW)])
    assert (sum(len(group.panels) for group in groups), left_out) == (MAX_PANELS, 3)


def test_namespaces_and_devices_have_their_places(tmp_path: Path) -> None:
    names = ["gpu/10/temperature", "gpu/9/temperature", "zeta/x", "plain", "perf/a", "eval/b", "train/c", "loss/d"]
    write_segment(tmp_path, [(1, dict.fromkeys([*names, "loss/total"], 1.0) | {"note": "text", "ok": True})])
    groups, _ = make_groups([read_run(tmp_path, NOW)])
    assert [(group.title, [panel.name for panel in group.panels]) for group in groups] == [
        ("Loss", ["loss/total", "loss/d"]),
        ("Training", ["train/c"]),
        ("Evaluation", ["eval/b"]),
        ("Throughput", ["perf/a"]),
        ("GPU", ["gpu/temperature"]),
        ("Other", ["ok", "plain"]),
        ("zeta", ["zeta/x"]),
    ]
    assert [curve.device for curve in groups[4].panels[0].curves] == ["9", "10"]


@pytest.mark.parametrize("values", [[math.nan], [0.0], [1e308, -1e308], [math.inf, 1.0, math.nan], [1e-30, 1e30]])
def test_any_values_can_be_drawn(tmp_path: Path, values: list[float]) -> None:
    write_segment(tmp_path, [(step, {"loss/total": value}) for step, value in enumerate(values)])
    runs = [read_run(tmp_path, NOW)]
    groups, _ = make_groups(runs)
    assert svg_panel(groups[0].panels[0], make_scene(runs, groups)).svg.startswith("<svg")


def test_a_run_that_is_being_written_is_shown_with_its_torn_line(tmp_path: Path) -> None:
    write_segment(tmp_path, [(10, {"loss/total": 1.0})], end=None)
    with (tmp_path / "journal-000.jsonl").open("ab") as file:
        file.write(b'{"kind":"row","n":1,"st')
    run = read_run(tmp_path, time.time())
    assert run.state.word == "running"
    assert run.problems == ["journal-000.jsonl line 4: not a whole line (23 bytes), ignored"]
    assert "not a whole line" in page_of(tmp_path)
    assert read_run(tmp_path, time.time() + 3600).state.word == "silent"


def test_a_run_without_rows_has_a_page_that_says_so(tmp_path: Path) -> None:
    write_json(tmp_path / "submission.json", {"state": "submitted", "job_id": "4711"})
    page = page_of(tmp_path)
    assert "No rows yet" in page and "It was submitted as job 4711." in page
    assert write_report([tmp_path], None, png=True).startswith(str(tmp_path / "report.png"))


def test_an_attempt_that_died_before_its_journal_is_listed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    record = {"key": "4711-003", "exit_code": 2, "step": 0, "time": NOW, "outcome": "end", "reason": "refused"}
    write_json(folder / "attempts" / "3.json", record)
    (folder / "attempts" / "4.json").write_text("{")
    run = read_run(folder, NOW)
    assert [(a.label, a.ended, a.reason) for a in run.attempts][-1] == ("4711-003", "no journal", "refused")
    assert len(run.problems) == 1 and "4.json" in run.problems[0]


def test_what_is_no_run_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        read_run(tmp_path / "none", NOW)
    make_run(tmp_path / "runs" / "mine")
    with pytest.raises(UserError, match=r"none of run.json, journal-000.jsonl.*run folders: mine\."):
        read_run(tmp_path / "runs", NOW)


def test_checkpoints_that_are_not_whole_are_named(tmp_path: Path) -> None:
    for step in (100, 200, 300, 400):
        save_checkpoint(tmp_path / "checkpoints", step)
    (tmp_path / "checkpoints/step-00000200/mp_rank_00_model_states.pt").write_bytes(b"cut")
    (tmp_path / "checkpoints/step-00000300/manifest.json").unlink()
    (tmp_path / "checkpoints/step-00000100/mp_rank_00_model_states.pt").unlink()
    found = read_checkpoints(tmp_path)
    assert [(one.step, one.latest, one.size) for one in found] == [
        (400, True, 5000),
        (300, False, 0),
        (200, False, 5000),
        (100, False, 5000),
    ]
    assert [one.fault for one in found] == [
        None,
        "manifest.json is missing",
        "mp_rank_00_model_states.pt has 3 bytes, 5,000 were saved",
        "mp_rank_00_model_states.pt is missing",
    ]


@pytest.mark.parametrize(
    ("status", "title", "command"),
    [
        (None, "Not sent", "tracking.sync run"),
        (SyncStatus(0, "online", "running", time=NOW - 9), "Opening", None),
        (SyncStatus(0, "online", "running", rows=5, time=NOW - 999), "Interrupted", "tracking.sync run"),
        (SyncStatus(0, "offline", "running", time=NOW), "Offline, running", None),
        (SyncStatus(0, "offline", "done", rows=9, folder="HERE", time=NOW), "Offline", "tracking.sync run"),
        (SyncStatus(0, "offline", "done", rows=8, folder="HERE", time=NOW), "Behind", "tracking.sync run"),
        (SyncStatus(0, "offline", "done", rows=9, folder="/gone", time=NOW), "Folder gone", "tracking.sync run"),
        (SyncStatus(0, "offline", "failed", error="disk full", time=NOW), "Failed", "tracking.sync run"),
    ],
)
def test_sync_is_told_in_words(
    weird_tmp_path: Path, status: SyncStatus | None, title: str, command: str | None
) -> None:
    if status is not None:
        folder = str(weird_tmp_path) if status.folder == "HERE" else status.folder
        write_status(weird_tmp_path, SyncStatus(**{**vars(status), "folder": folder}))
    sync = sync_in_words(weird_tmp_path, 9, NOW)
    assert sync.title == title
    if command is None:
        assert sync.command is None
    else:
        assert sync.command is not None and command in sync.command
        assert str(weird_tmp_path) in shlex.split(sync.command)


@pytest.mark.parametrize(
    ("state", "title", "command"),
    [
        (PushState(rows=9, confirmed=9, closed="finished"), "Synced", None),
        (PushState(rows=9, confirmed=7, closed="preempted"), "Behind", "tracking.sync run"),
        (PushState(rows=9, confirmed=7, phase="pushing"), "Live", None),
        (PushState(rows=9, confirmed=7, error="the server has 7 of 9 rows"), "Not synced", "tracking.sync run"),
    ],
)
def test_what_is_on_the_server_is_told_in_words(
    weird_tmp_path: Path, state: PushState, title: str, command: str | None
) -> None:
    write_push_state(weird_tmp_path, state)
    sync = sync_in_words(weird_tmp_path, 9, NOW)
    assert sync.title == title
    assert (sync.command is None) == (command is None)
    assert command is None or command in str(sync.command)


def test_nothing_from_a_run_becomes_markup(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    claim_identity(folder, "ab12cd34", HOSTILE, HOSTILE, None)
    config = {HOSTILE: f"</pre>{HOSTILE}"}
    write_segment(folder, [(1, {f"a/{HOSTILE}": 1.0, "b/$x_{$": 2.0, "note": HOSTILE, "\ud800": 1.0})], config=config)
    write_push_state(folder, PushState(rows=1, confirmed=1, closed="finished", url="javascript:alert(1)"))
    page = page_of(folder)
    assert "<script" not in page and "javascript:" not in page
    assert "&lt;script&gt;" in page
    assert write_report([folder], tmp_path / "x.png", png=False).startswith(str(tmp_path / "x.png"))


def test_text_and_media_are_listed(tmp_path: Path) -> None:
    media = {"media": "image", "path": "media/images/view-1.png", "caption": None}
    write_segment(tmp_path, [(1, {"view": media, "note": "first"}), (2, {"note": "last"})])
    run = read_run(tmp_path, NOW)
    assert run.texts == {"view": "image media/images/view-1.png", "note": "last"}
    assert "media/images/view-1.png" in page_of(tmp_path)


def test_several_runs_share_their_axes(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / "a", "first"), make_run(tmp_path / "b", "second", lr=3e-4)]
    page = page_of(*folders)
    assert page.count("<svg") == 5
    for name in ("--run-0", "--run-1"):
        assert f"stroke: var({name})" in page
    differing = page[page.index("Where the configurations differ") :]
    assert "bc.lr" in differing and "0.0003" in differing and "bc.seed" not in differing[: differing.index("</table>")]


def test_reports_go_where_they_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [make_run(tmp_path / name) for name in ("a", "b")]
    before = {path for path in folders[0].rglob("*")}
    monkeypatch.chdir(tmp_path)

    write_report(folders[:1], None, png=False)
    write_report(folders, None, png=False)
    write_report(folders[:1], Path("picture.png"), png=False)

    assert {path for path in folders[0].rglob("*")} - before == {folders[0] / "report.html"}
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert matplotlib.image.imread(tmp_path / "picture.png").shape[1] > 1000
    with pytest.raises(UserError, match=r"cannot be written.*\n.*--output FILE"):
        write_report(folders[:1], Path("none/report.html"), png=False)
    with pytest.raises(UserError, match="17 runs were given; 16"):
        write_report(folders[:1] * 17, None, png=False)


def test_the_command_line_answers_with_the_file_or_an_error(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    command = [sys.executable, "-m", "tracking.report"]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(folder / "report.html"))
    refused = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ") and "is not a run folder" in refused.stderr


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (number(0.021349), "0.02135"),
        (number(12_500.4), "12,500"),
        (number(3e-5), "3.00e-05"),
        (number(-math.inf), "-inf"),
        (duration(59), "59 s"),
        (duration(8_000), "2 h 13 min"),
        (duration(200_000), "2 d 7 h"),
        (size(999), "999 bytes"),
        (size(1_240_000), "1.2 MB"),
    ],
)
def test_numbers_read_well(shown: str, text: str) -> None:
    assert shown == text


def pixels(png: bytes) -> np.ndarray:
    """Shape [height, width, 3], 0 to 255."""
    return np.round(matplotlib.image.imread(io.BytesIO(png))[..., :3] * 255).astype(int)


def share_of(image: np.ndarray, colour: str) -> float:
    """The share of pixels of that colour, or nearly, as the edges of a thin line are."""
    wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return float((np.abs(image - wanted).max(axis=-1) < 40).mean())


def test_chromium_shows_the_page_and_it_asks_for_nothing(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", HOSTILE), make_run(tmp_path / "b", "second", lr=3e-4)]
    pages = {1: tmp_path / "one.html", 2: tmp_path / "two.html"}
    for count, page in pages.items():
        write_report(runs[:count], page, png=False)
    light, dark = RUN_COLOURS["run-0"]
    with chromium(tmp_path / "profile") as browser:
        for count, width, is_dark in ((1, 1280, False), (1, 390, True), (2, 1280, True), (2, 390, False)):
            browser.open(pages[count], width, dark=is_dark)
            image = pixels(browser.screenshot())

            assert image.shape[1] == width and image.shape[0] > 1200
            assert share_of(image, dark if is_dark else light) > 0.0002
            assert (image[0, 0].mean() < 60) == is_dark
            assert browser.evaluate("document.documentElement.scrollWidth") == width
            assert browser.evaluate("document.querySelectorAll('figure svg path').length") > 50
            ids = browser.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
            assert len(ids) == len(set(ids))
            assert browser.evaluate("document.title") == (HOSTILE if count == 1 else "2 runs")
        assert set(browser.requests) == {page.as_uri() for page in pages.values()}
        assert browser.complaints == []


def test_this_browser_notices_requests_and_errors(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>undefined_function()</script>")
    with chromium(tmp_path / "profile") as browser:
        browser.open(page, 800)
        assert "http://127.0.0.1:9/x.png" in browser.requests
        assert any("undefined_function" in complaint for complaint in browser.complaints)


def test_the_same_run_makes_the_same_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    assert page_of(folder) == page_of(folder)


def test_the_last_image_of_a_metric_is_in_the_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    for turn in (1, 2):
        path = f"media/images/curve-{turn}.png"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(f"picture {turn}".encode())
        row = {"dagger/cost_curve": {"media": "image", "path": path, "caption": None}}
        write_segment(folder, [(2000 + turn, row)], restart=2 + turn)
    page = page_of(folder)
    assert f"data:image/png;base64,{base64.b64encode(b'picture 2').decode()}" in page
    assert base64.b64encode(b"picture 1").decode() not in page
