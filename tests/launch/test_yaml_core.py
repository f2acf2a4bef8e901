from __future__ import annotations

import pytest
import yaml

from launch import yaml_core
from tracking.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.5", 1.5),
        ("10", 10),
        ("010", 10),
        ("-3", -3),
        ("true", True),
        ("on", "on"),
        ("4:00:00", "4:00:00"),
        ("null", None),
        ("", None),
        ("[a, 1]", ["a", 1]),
        ("it's", "it's"),
    ],
)
def test_values_are_read_as_people_write_them(text: str, value: object) -> None:
    read = yaml_core.parse(text, "--set")
    assert read == value
    assert type(read) is type(value)


def test_what_is_written_is_read_back_by_us_and_by_plain_pyyaml() -> None:
    value = {
        "a": "1e-3",
        "b": "4:00:00",
        "c": "on",
        "d": 1e-6,
        "e": "null",
        "f": None,
        "g": 'it\'s "x"\n',
        "h": [1, "2"],
    }
    value |= {"i": True, "j": {"k": "#x", "l": ": "}, "m": "~", "n": "-1"}
    text = yaml_core.dump(value)
    assert yaml_core.parse(text, "dump") == value
    assert yaml.safe_load(text) == value


def test_a_key_that_stands_twice_is_refused() -> None:
    with pytest.raises(UserError, match="key 'a' stands twice"):
        yaml_core.parse("a: 1\nb: 2\na: 3", "stage.yaml")


def test_no_object_can_be_constructed() -> None:
    with pytest.raises(UserError, match=r"stage\.yaml is not valid YAML"):
        yaml_core.parse("!!python/object/apply:os.system ['true']", "stage.yaml")
