"""alerts.toml: what it may hold, and the one line that says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.core.errors import BadInput
from edgekit.fleet.alerts.rules import KINDS, default_rules, parse_duration, read_rules


def read(folder: Path, text: str) -> object:
    file = folder / "alerts.toml"
    file.write_text(text)
    return read_rules(file)


def test_the_default_rules_have_every_kind_and_tell_nobody() -> None:
    rules = default_rules()
    assert {rule.kind for rule in rules.rules} == set(KINDS)
    assert rules.sending.urls == ()


def test_a_rule_is_read_with_its_thresholds_and_durations(tmp_path: Path) -> None:
    (tmp_path / "alerts.toml").write_text(
        '[rules.slow]\nkind = "p99"\nabove = 40\nto = "tag=site-a"\nfor = "2m"\nclear_for = "1.5h"\n'
        'window = "30m"\nseverity = "critical"\nmin_requests = 7\ngroup_by = "profile"\nrepeat = "never"\n'
    )
    (rule,) = read_rules(tmp_path / "alerts.toml").rules
    assert (rule.above, rule.clear, rule.for_s, rule.clear_for_s, rule.window_s) == (40, 36, 120, 5400, 1800)
    assert (rule.selector, rule.severity, rule.min_requests) == ("tag=site-a", "critical", 7)
    assert (rule.group_by, rule.repeat_s) == ("profile", None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[rules.a]\nkind = "of"', "rules.a.kind must be one of offline,"),
        ('[rules.a]\nkind = "p99"', 'rules.a.above must be a number of ms, or "bundle"'),
        ('[rules.a]\nkind = "p99"\nabove = 5\nclear = 6', "rules.a.clear must be not above 5"),
        (
            '[rules.a]\nkind = "errors"\nabove = 5',
            "rules.a.above must be a number from 0 to 1 (share), got 5",
        ),
        ('[rules.a]\nkind = "offline"\nfor = "soon"', 'rules.a.for must be a duration such as "30s"'),
        ('[rules.a]\nkind = "offline"\nabove = 5', "does not know the key rules.a.above"),
        ('[rules.a]\nkind = "offline"\nto = "site-a"', "rules.a.to: "),
        ('[rules.a]\nkind = "disk"\nto = "tag=b"', "rules.a.to must be left out"),
        ('[rules.a]\nkind = "errors"\nwindow = "5h"', "rules.a.window must be from 1m to 3h"),
        (
            '[rules.a]\nkind = "expiry"\nabove = "2d"\nclear = "1d"',
            "rules.a.clear must be not shorter than above",
        ),
        ('[rules."a b"]\nkind = "disk"', "called by a name"),
        ("[send]\nurls = [5]", "send.urls must be a list of texts"),
        ('[send]\nurls_file = "none"', "send.urls_file"),
        ("[rules]\na = 5", "rules.a must be a table, got 5"),
    ],
)
def test_a_mistake_is_one_line_with_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        read(tmp_path, text)
    line = str(caught.value)
    assert str(tmp_path / "alerts.toml") in line
    assert said in line
    assert "\n" not in line


def test_addresses_come_from_a_file_that_nobody_else_may_read(tmp_path: Path) -> None:
    urls = tmp_path / "urls"
    urls.write_text("# mine\njson://secret-word@127.0.0.1/\n")
    (tmp_path / "alerts.toml").write_text('[send]\nurls_file = "urls"\n')
    urls.chmod(0o640)
    with pytest.raises(BadInput, match="chmod 600"):
        read_rules(tmp_path / "alerts.toml")
    urls.chmod(0o600)
    found = read_rules(tmp_path / "alerts.toml")
    assert found.sending.urls == ("json://secret-word@127.0.0.1/",)
    assert "secret-word" not in repr(found)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1.5h", 5400), ("2d", 172_800), ("2", None), ("400d", None), (5, None)],
)
def test_durations(text: object, seconds: float | None) -> None:
    assert parse_duration(text) == seconds
