"""docs/preflight.md: its table is the rules, and each row names tests that there are."""

from __future__ import annotations

import re
import subprocess
import sys

from launch.config import ROOT
from launch.preflight.rules import all_rules


def rows() -> dict[str, tuple[str, str, list[str]]]:
    page = (ROOT / "docs" / "preflight.md").read_text()
    found = re.findall(r"^\| `([a-z-]+)` \| (\w+) \| (.+?) \| (`.+`) \|$", page, re.MULTILINE)
    return {rule: (level, why, re.findall(r"`(.+?)`", tests)) for rule, level, why, tests in found}


def test_the_table_is_the_rules() -> None:
    assert {name: row[:2] for name, row in rows().items()} == {
        name: (rule.level, rule.why) for name, rule in all_rules().items()
    }


def test_every_rule_has_a_test_that_speaks_of_it() -> None:
    files = sorted((ROOT / "tests" / "launch").glob("test_preflight*.py"))
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *map(str, files)]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    there = {line.rpartition("/")[2] for line in listed.splitlines() if "::" in line}
    for rule, (_, _, tests) in rows().items():
        assert tests, rule
        for test in tests:
            assert test in there or any(one.startswith(f"{test}[") for one in there), test
            file, _, name = test.partition("::")
            function = name.partition("[")[0]
            text = (ROOT / "tests" / "launch" / file).read_text()
            body = re.search(rf"def {function}\(.*?(?=\ndef |\Z)", text, re.DOTALL)
            shown = f"[{rule}]" in test or f'"{rule}"' in text or ("-" in rule and body and rule in body[0])
            assert body and shown, f"{test} does not show {rule}"
