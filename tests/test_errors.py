import pytest

from mtlsi.errors import message_of


def raised_by(action):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        action()
    return caught.value


def test_of_a_file_that_the_system_refuses_only_why_is_said(tmp_path):
    assert message_of(raised_by((tmp_path / "none").read_text)) == "no such file or directory"
    assert message_of(raised_by(tmp_path.read_bytes)) == "Is a directory"


def test_a_key_and_several_lines_become_one_line_that_reads():
    assert message_of(raised_by(lambda: {}["scores"])) == "'scores' is missing"
    assert message_of(ValueError("first\n  second")) == "first second"
