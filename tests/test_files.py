"""Files that several processes write: locks, and JSON lines whose last one may be torn."""

import pytest

from src.runtime.errors import InputError, one_line
from src.runtime.files import append_json_lines, json_lines, lock


def test_a_second_lock_fails_until_the_first_file_is_closed(tmp_path):
    with open(tmp_path / "x", "w") as first, open(tmp_path / "x") as second:
        assert lock(first) and not lock(second)
        first.close()
        assert lock(second)


@pytest.mark.parametrize("tail, whole", [('{"torn": ', [1, 2]), ('{"complete": 3}', [1, {"complete": 3}, 2])])
def test_a_last_line_without_end_is_completed_or_removed(tmp_path, tail, whole):
    path = tmp_path / "x.jsonl"
    append_json_lines(path, [1])
    path.write_text(path.read_text() + tail)
    assert list(json_lines(path, str)) == ["1"]  # another process may be writing the last line
    append_json_lines(path, [2])
    assert list(json_lines(path, lambda row: row)) == whole


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_text("{}\n{\n")
    lines = json_lines(tmp_path / "x.jsonl", lambda row: row)
    assert next(lines) == {}
    with pytest.raises(InputError, match=r"x\.jsonl: line 2 is damaged; remove it"):
        next(lines)


def test_an_error_is_one_line():
    assert one_line(ValueError("a\n b")) == "a b" and one_line(KeyError()) == "KeyError"
