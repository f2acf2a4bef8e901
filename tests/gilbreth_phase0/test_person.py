"""A person at the keyboard, on a real X server that has no screen."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import numpy as np
import pytest

from gilbreth_phase0.experts import display
from gilbreth_phase0.experts.person import check_device

from rank_pairs import PROGRAMS, ROOT, rank_environment
from support import free_port, refusal
from virtual_display import virtual_display

DX, DY, DZ, PITCH, GRIPPER = 0, 1, 2, 4, 6
# Display n is served on TCP port 6000 + n.
FIRST_PORT = 6000


def environment(name: str) -> dict[str, str]:
    """The variables of a program that shows itself on a display; the fastest way to render without a GPU."""
    return {**rank_environment(), "DISPLAY": name, "MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa"}


def test_no_display_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    said = refusal(lambda: check_device("keyboard"))
    assert "DISPLAY is not set" in said
    assert "next:" in said


def test_a_display_that_nobody_serves_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"127.0.0.1:{free_port() - FIRST_PORT}"
    monkeypatch.setenv("DISPLAY", name)
    said = refusal(lambda: check_device("keyboard"))
    assert f"DISPLAY={name} cannot be used" in said
    assert "refused" in said


def test_a_display_that_never_answers_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "_ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("DISPLAY", f"127.0.0.1:{silent.getsockname()[1] - FIRST_PORT}")
        assert "no answer within" in refusal(lambda: check_device("keyboard"))


@pytest.mark.sim
def test_a_spacemouse_that_is_not_there_is_refused() -> None:
    with virtual_display() as (name, _):
        tried = subprocess.run(
            [sys.executable, "-c", "from gilbreth_phase0.experts.person import *\ncheck_device('spacemouse')"],
            env=environment(name),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert "UserError: a SpaceMouse needs hidapi" in tried.stderr or "cannot be opened" in tried.stderr
    assert "next:" in tried.stderr


def play(program: str) -> str:
    """Runs a program that presses keys on a display of its own and returns what it prints."""
    with virtual_display() as (name, _):
        played = subprocess.run(
            [sys.executable, PROGRAMS / program],
            cwd=ROOT,
            env=environment(name),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert played.returncode == 0, played.stderr
    return played.stdout


@pytest.mark.sim
def test_a_person_takes_over_moves_hands_back_and_ends_roll_outs() -> None:
    played = play("at_keyboard.py")
    assert played.count("\n") == 1, "robosuite's words about its keys would be wrong here"
    facts = json.loads(played)

    assert facts["title"] == "the policy acts"
    assert facts["picture"], "the window shows what the camera sees"
    assert facts["colours"] > 100, "and that is no empty picture"
    assert all(f"\n  {key} " in facts["help"][0] for key in ("h", "1", "0", "n", "space"))

    assert facts["takeover"] == ["TAKE_OVER"]
    assert facts["repeated"] == [], "a key that is held counts once"
    assert (facts["up"][DX], facts["up"][GRIPPER]) == (-1.0, -1.0)
    assert facts["down"][DZ] == -1.0
    assert facts["pitch"][PITCH] < 0, "robosuite has this turn on h, which takes over here"

    assert facts["hand_back"] == ["TAKE_OVER"]
    assert facts["meanwhile"] == ["NEXT"]
    assert facts["again"] == ["TAKE_OVER"]
    assert np.array(facts["after"])[:GRIPPER].tolist() == [0.0] * 6, (
        "what was typed while the policy acted is forgotten"
    )
    assert facts["after"][GRIPPER] == 1.0, "what the gripper holds is not dropped"

    assert facts["endings"] == ["SUCCESS", "DISCARD", "NEXT"]
    told, action = facts["focus"]
    assert told == ["DISCARD"], "what is typed into another window is not meant for us"
    assert action[DY] == 0.0
    assert "the window was closed" in facts["closed"]


@pytest.mark.sim
def test_a_person_corrects_roll_outs() -> None:
    """GIVEN a policy that does nothing WHEN a person takes over, hands back, saves, discards and goes on
    THEN who acted, what counts and what becomes of it is as their keys say."""
    played = play("roll_out_at_keyboard.py")
    saved, discarded, over_budget, watched = json.loads(played)

    assert saved["by_expert"] == [False] * 3 + [True] * 3 + [False] * 2
    assert (saved["success"], saved["discarded"], saved["takeovers"]) == (True, False, 1)
    assert saved["episodes"] == [[0, False, 3], [1, True, 3], [0, True, 2]]
    assert (discarded["discarded"], discarded["episodes"]) == (True, [])
    assert over_budget["by_expert"] == [False] * 2, "no takeover is left, and n goes on"
    assert (over_budget["takeovers"], over_budget["success"]) == (0, False)
    assert watched["by_expert"] == [False] * 12
