"""Secrets never reach a file: by name, by form, and by what the environment holds."""

from __future__ import annotations

import pytest

from tracking.redact import REDACTED, is_secret_name, redact, redact_arguments, redact_text


@pytest.mark.parametrize(
    "name", ["WANDB_API_KEY", "hf_token", "HF_TOKEN", "apiKey", "db_password", "AWS_SECRET_ACCESS_KEY", "--token"]
)
def test_secret_names(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["tokenizer", "max_tokens", "num_tokens", "keyboard", "monkey", "key", "seed", "access", "passes"]
)
def test_hyperparameters_are_not_secrets(name: str) -> None:
    assert not is_secret_name(name)


def test_a_configuration_keeps_its_form() -> None:
    config = {
        "lr": 1e-4, "max_tokens": 512, "token": 7, "wandb": {"api_key": "abc", "project": "p"}, "hf_token": "",
        "nested": [{"password": "x"}, "hf_" + "a" * 30],
    }  # fmt: skip
    assert redact(config, {}) == {
        "lr": 1e-4, "max_tokens": 512, "token": 7, "wandb": {"api_key": REDACTED, "project": "p"}, "hf_token": "",
        "nested": [{"password": REDACTED}, REDACTED],
    }  # fmt: skip


def test_text_is_searched_for_known_forms_and_for_the_environments_secrets() -> None:
    environ = {"WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567", "HOME": "/home/someone"}
    text = "key 0123456789abcdef0123456789abcdef01234567 in /home/someone"
    assert redact_text(text, environ) == f"key {REDACTED} in /home/someone"
    commit = "fedcba9876543210fedcba9876543210fedcba98"
    assert redact_text(f"commit {commit}", environ) == f"commit {commit}"
    assert (
        redact_text("git clone https://me:ghp_x@example.org/r.git", {})
        == f"git clone https://{REDACTED}@example.org/r.git"
    )
    assert redact_text("token=abc password: hunter2 max_tokens=5 token=17", {}) == (
        f"token={REDACTED} password: {REDACTED} max_tokens=5 token=17"
    )


def test_a_diff_keeps_its_code_and_loses_its_literals() -> None:
    lines = {
        '+api_key = "abc def"': f'+api_key = "{REDACTED}"',
        "+    'hf_token': 'it\"s',": f"+    'hf_token': '{REDACTED}',",
        "+token = tokenizer.encode(text)": "+token = tokenizer.encode(text)",
        "+run(token=read_token())": "+run(token=read_token())",
        "+export WANDB_API_KEY=0123abcd": f"+export WANDB_API_KEY={REDACTED}",
        "+export TOKEN=$OTHER": "+export TOKEN=$OTHER",
        '+name = "plain"': '+name = "plain"',
    }
    for line, expected in lines.items():
        assert redact_text(line, {}) == expected


def test_a_command_line_hides_the_value_after_a_flag() -> None:
    arguments = ["train.py", "--api-key", "abc", "--hf_token=xyz", "--lr", "0.1", "--token", "--verbose"]
    assert redact_arguments(arguments, {}) == [
        "train.py", "--api-key", REDACTED, f"--hf_token={REDACTED}", "--lr", "0.1", "--token", "--verbose"
    ]  # fmt: skip
