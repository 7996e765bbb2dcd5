"""Atomic writing: complete or absent under the final name, with nothing left behind."""

import os

import pytest

from alexnet.native import atomic


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("fsync", [False, True])
def test_a_file_is_replaced_when_the_block_succeeds(tmp_path, fsync, unique):
    path = tmp_path / "curves.png"
    path.write_text("old")
    with atomic.replacing(path, fsync=fsync, unique=unique) as temporary:
        assert temporary.name == path.name
        assert temporary.parent.parent == tmp_path       # the same file system, so that renaming is atomic
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["curves.png"]


@pytest.mark.parametrize("unique", [False, True])
def test_an_error_leaves_the_old_file(tmp_path, unique):
    path = tmp_path / "metrics.csv"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="disk"), atomic.replacing(path, unique=unique) as temporary:
        temporary.write_text("half")
        temporary.with_name("file of a library").write_text("half")
        raise RuntimeError("disk")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["metrics.csv"]


def test_a_folder_appears_complete(tmp_path):
    with atomic.replacing(tmp_path / "weights", fsync=True) as temporary:
        temporary.mkdir()
        (temporary / "W_0.npy").write_bytes(b"W")
    assert (tmp_path / "weights" / "W_0.npy").read_bytes() == b"W"
    assert os.listdir(tmp_path) == ["weights"]


def test_fsync_before_and_after_renaming(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint"
    synced = []
    monkeypatch.setattr(atomic, "sync", lambda each: synced.append((each, path.exists())))
    with atomic.replacing(path, fsync=True) as temporary:
        temporary.write_bytes(b"content")
    assert synced == [(temporary, False), (tmp_path, True)]


def test_unique_writers_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "kernel.so"
    with atomic.replacing(path, unique=True) as first, atomic.replacing(path, unique=True) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"           # the last one that is renamed
    assert os.listdir(tmp_path) == ["kernel.so"]


@pytest.mark.parametrize(("content", "expected"), [("ä\r\n", b"\xc3\xa4\r\n"), (b"\x00\xff", b"\x00\xff")])
def test_write_text_and_bytes(tmp_path, content, expected):
    atomic.write(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == expected


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    (tmp_path / ".0001.hkl.partial").mkdir()
    (tmp_path / ".0001.hkl.partial" / "0001.hkl").write_text("half")
    (tmp_path / "0002.hkl.4711.partial").write_text("half")
    (tmp_path / "0003.hkl").write_text("whole")
    atomic.write(tmp_path / "0001.hkl", "whole")
    atomic.remove_partial(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["0001.hkl", "0003.hkl"]


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        atomic.write(tmp_path / "missing" / "file", "text")
