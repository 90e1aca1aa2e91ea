import pytest

from mtlsi.errors import MOST, MistakeError, clipped, message_of, one_line


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
    assert message_of(ValueError("first\n  second"), 9) == "fi ... nd"
    assert len(message_of(ValueError("x" * 5000))) == 1000


def test_the_middle_of_a_long_message_is_left_out():
    assert str(MistakeError("lr 'x'; expected a number")) == "lr 'x'; expected a number"
    whole = f"lr {'1' * 10**6}; expected a number"
    line = str(MistakeError(whole))
    assert len(line) == MOST
    assert line.startswith("lr 111")
    assert line.endswith("1; expected a number")
    assert clipped("abcdefghijklmnopqrstuvwxyz", 20) == "abcdefg ... stuvwxyz"
    assert clipped("abcdefghijklmnopqrstuvwxyz", 21) == "abcdefgh ... stuvwxyz"
    assert clipped("abc", 3) == "abc"


def test_a_message_steers_no_terminal():
    assert one_line("a\n\n  b\tc  d\n") == r"a b\tc  d"
    assert one_line("küche/图片 😀 [x]") == "küche/图片 😀 [x]"
    assert one_line("\x1b[2J\x07\x9b\u202e\x00\udcff") == r"\x1b[2J\x07\x9b\u202e\x00\udcff"
