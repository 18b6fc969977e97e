from __future__ import annotations

import os
import shlex
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from execwatch.render import command_line, escape, quote
from execwatch.testing import exec_event

#: Bytes that a program can pass as an argument, and text as execwatch decodes it.
WORDS = st.one_of(
    st.binary(max_size=30),
    st.text(max_size=15).map(lambda text: text.encode("utf-8", "replace")),
    st.text("'\"\\$`!~*?[]{}()<>|&;# \t\n\r\x1b\x7f=-a0", max_size=15).map(str.encode),
).map(lambda word: word.replace(b"\0", b""))


def decode(word: bytes) -> str:
    return word.decode("utf-8", "surrogateescape")


TEXTS = st.one_of(WORDS.map(decode), st.text())


@settings(max_examples=60)
@given(st.lists(WORDS, min_size=1, max_size=40))
@example([b"a\nb", b"", b"'", b"\xff1", b"\x1b[2K", b"\\n", b"$'x'", b"\xc2\xa0", "\u202e".encode()])
def test_bash_reads_the_same_bytes_back(argv: list[bytes]) -> None:
    line = command_line(map(decode, argv))
    script = rf'printf "%s\0" {line}'.encode()
    output = subprocess.run(
        ["bash", "-c", script], stdout=subprocess.PIPE, check=True, env={**os.environ, "LC_ALL": "C"}
    ).stdout
    assert output == b"".join(word + b"\0" for word in argv)


@given(TEXTS)
def test_nothing_unprintable_leaves(text: str) -> None:
    for rendered in (quote(text), escape(text), command_line([text, text])):
        assert rendered.isprintable()
        assert len(rendered.splitlines()) <= 1
        rendered.encode("utf-8")


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1))
def test_words_without_escapes_are_those_of_shlex(text: str) -> None:
    assert shlex.split(quote(text)) == [text]
    assert "\\x" not in quote(text.replace("\\", ""))


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("/usr/bin/env", "/usr/bin/env"),
        ("-x", "-x"),
        ("", "''"),
        ("two words", "'two words'"),
        ("it's", "'it'\"'\"'s'"),
        ("héllo", "'héllo'"),
        ("\x1b[31m", r"$'\x1b[31m'"),
        ("a\nb\tc\r", r"$'a\nb\tc\r'"),
        ("it's\n", r"$'it\'s\n'"),
        ("\udcff", r"$'\xff'"),
        ("\u2028", r"$'\xe2\x80\xa8'"),
        ("\u202e", r"$'\xe2\x80\xae'"),
        ("back\\slash", "'back\\slash'"),
        ("$HOME", "'$HOME'"),
    ],
)
def test_quotes(text: str, quoted: str) -> None:
    assert quote(text) == quoted


def test_an_escape_that_a_program_wrote_itself_is_told_from_ours() -> None:
    assert escape("\n") == r"\n"
    assert escape(r"\n") == r"\\n"


@given(TEXTS, TEXTS)
def test_different_texts_stay_different(one: str, other: str) -> None:
    assert (escape(one) == escape(other)) == (one == other)
    assert (quote(one) == quote(other)) == (one == other)


def test_escapes_each_of_the_characters_that_are_asked_for() -> None:
    assert escape("a,b|c", also="|,") == r"a\,b\|c"
    assert escape("a,b", also=",;") == r"a\,b"


def test_an_event_shows_its_command_line() -> None:
    assert exec_event(argv=("ls", "a b", "\x1b")).command_line == r"ls 'a b' $'\x1b'"
    assert exec_event(argv=()).command_line == ""
