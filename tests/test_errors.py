"""Mistakes as one clean line."""

import pytest

from jclip_fewshot import console
from jclip_fewshot.errors import UserError, one_line


@pytest.mark.parametrize("text, said", [
    ("as it is: ü 一 ✓", "as it is: ü 一 ✓"), ("two\nlines\r\n  and\ttabs", "two lines and tabs"),
    ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"), ("\udc80", "\\udc80"), ("a\0b", "a\\x00b"), ("", "")])
def test_any_text_is_one_line_that_prints(text, said, capsys):
    assert one_line(text) == said == str(UserError(text))
    console.warn(text)
    assert capsys.readouterr().err == f"warning: {said}\n"
    one_line(text).encode("utf-8")


def test_what_is_told_may_have_lines(capsys):
    console.tell("a\nb\x1b[2J")
    assert capsys.readouterr().err == "a\nb\\x1b[2J\n"
