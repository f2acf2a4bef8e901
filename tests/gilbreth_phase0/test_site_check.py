"""What one node sees of the site."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gilbreth_phase0 import site_check

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slurm
def test_a_node_with_a_disk_of_its_own_does_not_see_the_login_nodes_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN a mount namespace in which another disk stands at the root's place THEN that node says so."""
    probe = tmp_path / "runs" / ".site-check-x"
    probe.mkdir(parents=True)
    (probe / "login").write_text("token")
    program = (
        "import sys; from pathlib import Path; from gilbreth_phase0 import site_check as s; "
        "s._SECONDS_UNTIL_SEEN = 0.2; s.say('shared', *s.shared(Path(sys.argv[1]), 'token'))"
    )
    command = [sys.executable, "-c", program, str(probe)]
    environment = {**os.environ, "SLURMD_NODENAME": "n1", "PYTHONPATH": str(ROOT)}
    here = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert here.stdout == f"site-check shared n1 yes {tmp_path}/runs\n"
    assert (probe / "node-n1").read_text() == "token"
    # As the lab's nodes do it, for an ordinary user too.
    hidden = ["unshare", "--user", "--map-root-user", "--mount"] if os.getuid() else ["unshare", "--mount"]
    mount = ["bash", "-c", 'mount -t tmpfs none "$1" && shift && exec "$@"', "x", str(tmp_path / "runs")]
    there = subprocess.run([*hidden, *mount, *command], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout == (
        f"site-check shared n1 no {tmp_path}/runs: the login node's file is not seen (No such file or directory)\n"
    )


def test_an_older_file_of_the_same_name_is_not_taken_for_the_login_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_check, "_SECONDS_UNTIL_SEEN", 0.0)
    (tmp_path / "login").write_text("another")
    ok, words = site_check.shared(tmp_path, "token")
    assert (ok, "holds something else" in words) == (False, True)


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path.split("/")[1]))
        self.end_headers()


def test_which_answers_mean_that_w_and_b_is_reached() -> None:
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{httpd.server_address[1]}"
    for code, ok in ((200, True), (404, True), (401, True), (403, False), (407, False), (503, False)):
        assert site_check.reaches(f"{base}/{code}")[0] is ok, code
    httpd.shutdown()
    httpd.server_close()
    ok, words = site_check.reaches(f"{base}/200")
    assert (ok, "Connection refused" in words) == (False, True)
    assert site_check.reaches("not a url")[0] is False


def test_a_server_that_takes_the_call_and_says_nothing_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_check, "_SECONDS_FOR_W_AND_B", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ok, words = site_check.reaches(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert (ok, "no answer" in words or "timed out" in words) == (False, True)


QUOTA = """\
Disk quotas for user ann (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
nas:/homes/a 10000000  26214400 31457280           250000  300000  400000
nas:/homes/b 31000000* 26214400 31457280   6days   250000  300000  400000
nas:/homes/c 10000000  26214400 31457280           299900  300000  400000
nas:/homes/d 10000000  0 0           299900  0 0
nas:/homes/e none
"""


@pytest.mark.parametrize(
    ("mount", "expected"),
    [
        ("nas:/homes/a", (True, "home quota: 10.2 of 26.8 GB and 250,000 of 300,000 files used")),
        ("nas:/homes/b", (False, "home quota: 31.7 of 26.8 GB and 250,000 of 300,000 files used")),
        ("nas:/homes/c", (False, "home quota: 10.2 of 26.8 GB and 299,900 of 300,000 files used")),
        ("nas:/homes/d", (True, "home quota: no limit used")),
        ("nas:/homes/e", None),
        ("nas:/scratch", None),
    ],
)
def test_the_users_quota(mount: str, expected: tuple[bool, str] | None) -> None:
    assert site_check.quota_of(mount, QUOTA) == expected


def test_without_a_quota_the_disk_tells(tmp_path: Path) -> None:
    ok, words = site_check.room(tmp_path)
    disk = os.statvfs(tmp_path)
    assert ok in (None, False)
    assert f"of {disk.f_blocks * disk.f_frsize / 1e9:.1f} GB" in words
    assert site_check.room(tmp_path / "none")[0] is False


def test_it_needs_nothing_but_the_standard_library() -> None:
    """A node where the project's environment is not there runs it by the Python that it has."""
    script = "import sys; import gilbreth_phase0.site_check; print(*sorted({n.partition('.')[0] for n in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {script}"],
        capture_output=True,
        text=True,
        check=True,
    )
    foreign = set(done.stdout.split()) - set(sys.stdlib_module_names) - {"gilbreth_phase0", "__main__"}
    assert not {name for name in foreign if not name.startswith("_")}
