"""Taking secrets out of what is written down: by a value's name, by its form, and by what the environment holds."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

REDACTED = "[redacted]"

# Words are compared one by one: `tokenizer` and `max_tokens` are hyperparameters, `hf_token` is not.
_SECRET_WORDS = {"token", "secret", "password", "passwd", "passphrase", "credential", "credentials", "apikey", "netrc"}
_SECRET_PAIRS = {("api", "key"), ("access", "key"), ("private", "key"), ("secret", "key"), ("auth", "key")}

_FORMS = re.compile(
    r"""
    hf_[A-Za-z0-9]{20,}                       # Hugging Face
    | wandb_v\d+_[A-Za-z0-9_-]{20,}           # W&B
    | \bsk-[A-Za-z0-9_-]{20,}                 # OpenAI and others
    | \bgh[pousr]_[A-Za-z0-9]{20,}            # GitHub
    | \bgithub_pat_[A-Za-z0-9_]{20,}
    | \bxox[abprs]-[A-Za-z0-9-]{10,}          # Slack
    | \bAKIA[0-9A-Z]{16}\b                    # AWS
    | \beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,} # JSON web token
    | (?<=://)[^/\s:@]+:[^/\s@]+(?=@)         # user:password in a URL
    | (?<=Bearer\ )\S{8,}
    | -----BEGIN[ A-Z]*PRIVATE\ KEY-----[\s\S]*?(?:-----END[ A-Z]*PRIVATE\ KEY-----|\Z)
    """,
    re.VERBOSE,
)
# Bare (`TOKEN=abc`, `password: abc`) or in quotes with spaces around (`"api_key": "abc"`, `token = 'abc'`). A name is
# tried from its first letter alone and as a whole, so that a long word takes time in proportion to its length.
_ASSIGNMENT = re.compile(
    r"""(?<![A-Za-z])(?P<name>[A-Za-z][A-Za-z0-9_.-]*+)(?P<sign>["']?\s*[=:]\s*(?P<quote>["'])|=|:\s?)"""
    r"""(?P<value>(?(quote)(?:(?!(?P=quote))[^\n])+|[^\s,;'"]+))"""
)


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Tells whether a value of that name is a secret: `WANDB_API_KEY`, `hf_token`, `dbPassword`; not `max_tokens`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    words = [word.lower() for word in re.split(r"[^A-Za-z0-9]+", spaced) if word]
    return any(word in _SECRET_WORDS for word in words) or any(pair in _SECRET_PAIRS for pair in pairwise(words))


def redact_text(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """Replaces secrets inside a text: known forms, `name=value` with a secret's name, and values of secret variables.

    Args:
        text: Any text, such as a command line or a diff.
        environ: Where the values of secret variables are looked up.

    Returns:
        The text with each secret replaced by `[redacted]`.
    """
    for name, value in environ.items():
        if len(value) >= 8 and value in text and is_secret_name(name):
            text = text.replace(value, REDACTED)
    text = _FORMS.sub(REDACTED, text)
    return _ASSIGNMENT.sub(_redact_assignment, text)


def redact(value: Any, environ: Mapping[str, str] = os.environ) -> Any:
    """Replaces secrets in a configuration of dicts, lists and plain values; numbers and bools always stay.

    Args:
        value: What `tracking.values.plain` returns.
        environ: Where the values of secret variables are looked up.

    Returns:
        A copy of the same form.
    """
    if isinstance(value, str):
        return redact_text(value, environ)
    if isinstance(value, list):
        return [redact(item, environ) for item in value]
    if isinstance(value, Mapping):
        return {
            key: REDACTED if isinstance(item, str) and item and is_secret_name(key) else redact(item, environ)
            for key, item in value.items()
        }
    return value


def redact_arguments(arguments: list[str], environ: Mapping[str, str] = os.environ) -> list[str]:
    """Replaces secrets in a command line: as `redact_text` does, and the value after a flag with a secret's name."""
    shown: list[str] = []
    for argument in arguments:
        flag = shown[-1] if shown else ""
        if flag.startswith("-") and "=" not in flag and not argument.startswith("-") and is_secret_name(flag):
            shown.append(REDACTED)
        else:
            shown.append(redact_text(argument, environ))
    return shown


def _redact_assignment(match: re.Match[str]) -> str:
    value = match["value"]
    # A number after `token:` is a size; `token=read()` and `token=$TOKEN` are code.
    is_number = not match["quote"] and re.fullmatch(r"[-+]?[\d.]+(?:e[-+]?\d+)?", value, re.IGNORECASE)
    is_code = not match["quote"] and re.search(r"[(\[{$]", value) is not None
    if is_number or is_code or not is_secret_name(match["name"]):
        return match[0]
    return f"{match['name']}{match['sign']}{REDACTED}"
