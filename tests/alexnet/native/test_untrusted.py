"""Messages that contain text of untrusted files are one line of printable text, and JSON never ends in a traceback."""

import pickle

import pytest

from alexnet.native.untrusted import LONGEST, InputError, parse_json


@pytest.mark.parametrize(("text", "message"), [
    ("a b", "a b"),
    ("é €", "é €"),
    ("one\n  two", "one two"),
    ("\x1b[31m\r\t\u202e\ud800\udce9", r"\x1b[31m\r\t\u202e\ud800\udce9"),
    ("malformed: <ast.BinOp object at 0x7fb2b481e1d0>", "malformed: <ast.BinOp object>"),
])
def test_message_is_one_printable_line(text, message):
    assert str(InputError(text)) == message
    assert str(pickle.loads(pickle.dumps(InputError(text)))) == message


@pytest.mark.parametrize("letter", ["a", "\0"])
def test_long_message_keeps_start_and_end(letter):
    message = str(InputError(f"net.onnx has {letter * 10**6}; give --preprocessing"))
    assert len(message) == LONGEST and message.startswith("net.onnx has") and message.endswith("; give --preprocessing")


@pytest.mark.parametrize("text", ["[" * 100_000, b'{"a":' * 100_000, b"\xff", "", "NaN,"])
def test_invalid_json_raises_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_valid_json_is_parsed():
    assert parse_json(b'{"a": [1, null]}') == {"a": [1, None]}
