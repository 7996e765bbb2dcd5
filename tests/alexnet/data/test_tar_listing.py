"""Tars of images: the same list as from folders, and refusal of everything that would change it silently."""

import gzip
import io
import tarfile

import pytest

from alexnet.data.batch_file import DataError
from alexnet.data.images import MOST_BYTES, BadImage, read_member
from alexnet.data.omissions import Omissions
from alexnet.data.tar_listing import tar_images

FILES = {"n02/n02_10.JPEG": b"ten", "n02/n02_9.JPEG": b"nine", "n01/n01_1.JPEG": b"one"}


def add(archive, name, content=b"", kind=tarfile.REGTYPE):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.type = kind
    archive.addfile(member, io.BytesIO(content))


def tar_of(files):
    """Return the bytes of a tar with these files."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as archive:
        for name, content in files.items():
            add(archive, name, content)
    return memory.getvalue()


def ilsvrc(files, extra=None):
    """Return the bytes of a tar of a tar for each class."""
    classes = {}
    for name, content in files.items():
        folder, file = name.split("/")
        classes.setdefault(folder, {})[file] = content
    return tar_of({f"{folder}.tar": tar_of(inside) for folder, inside in classes.items()} | (extra or {}))


def written(folder, content):
    (folder / "train.tar").write_bytes(content)
    return folder / "train.tar"


@pytest.mark.parametrize("make", [ilsvrc, tar_of], ids=["tar of tars", "tar of folders"])
def test_names_labels_and_bytes_are_those_of_class_folders(tmp_path, make):
    path = written(tmp_path, make(FILES))
    images = tar_images(path, Omissions())
    assert images.classes == ["n01", "n02"]
    assert images.names == ("n01/n01_1.JPEG", "n02/n02_10.JPEG", "n02/n02_9.JPEG")
    assert images.labels.tolist() == [0, 1, 1]
    with path.open("rb") as file:
        contents = [read_member(file, *map(int, extent)).read() for extent in images.extents]
    assert contents == [FILES[name] for name in images.names]


def test_flat_tar_has_no_classes(tmp_path):
    images = tar_images(written(tmp_path, tar_of({"b.JPEG": b"b", "a.JPEG": b"a"})), Omissions())
    assert (images.classes, images.names) == ([], ("a.JPEG", "b.JPEG"))


def test_a_later_member_replaces_an_earlier_one(tmp_path):
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as archive:
        for content in (b"old", b"newer"):
            add(archive, "n01/a.JPEG", content)
    images = tar_images(written(tmp_path, memory.getvalue()), Omissions())
    assert images.extents[:, 1].tolist() == [5]


def test_everything_else_is_counted(tmp_path):
    memory = io.BytesIO(ilsvrc(FILES, {"readme.txt": b"", "n01/.DS_Store": b""}))
    with tarfile.open(fileobj=memory, mode="a") as archive:
        add(archive, "n01/link.JPEG", kind=tarfile.SYMTYPE)
    omissions = Omissions()
    assert len(tar_images(written(tmp_path, memory.getvalue()), omissions).names) == 3
    assert [str(each) for each in omissions.listed()] == [
        "1 hidden (n01/.DS_Store)", "1 links or special files (n01/link.JPEG)", "1 of other types (readme.txt)"
    ]


def empty_folder():
    memory = io.BytesIO(tar_of(FILES))
    with tarfile.open(fileobj=memory, mode="a") as archive:
        add(archive, "n00", kind=tarfile.DIRTYPE)
    return memory.getvalue()


@pytest.mark.parametrize(("content", "message"), [
    (lambda: gzip.compress(ilsvrc(FILES)), "is damaged, or no tar file: .*; decompress it first: gunzip"),
    (lambda: b"JPEG" * 1000, "is damaged, or no tar file"),
    (lambda: ilsvrc(FILES)[:3000], "is damaged, or no tar file"),
    (lambda: tar_of({"n01.tar": ilsvrc(FILES)[:700]}), "is cut off"),
    (lambda: tar_of({"a.txt": b""}), "holds no images; it holds 1 of other types"),
    (lambda: ilsvrc(FILES, {"n00.tar": tar_of({"notes.txt": b""})}), "n00.tar in .* holds no image"),
    (empty_folder, "class folder n00 of .* holds no image"),
    (lambda: tar_of(FILES | {"a.JPEG": b""}), "holds class folders and images beside them, such as a.JPEG"),
    (lambda: tar_of({"café/a.JPEG": b"", "cafe\u0301/b.JPEG": b""}), "two class folders café, which differ only in"),
])
def test_invalid_tars_are_refused_in_one_sentence(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        tar_images(written(tmp_path, content()), Omissions())
    assert "\n" not in str(caught.value)


def test_member_that_is_gone_or_absurdly_large_is_a_bad_image(tmp_path):
    path = written(tmp_path, tar_of(FILES))
    with path.open("rb") as file:
        with pytest.raises(BadImage, match="is cut off"):
            read_member(file, path.stat().st_size - 1, 2)
        with pytest.raises(BadImage, match="is absurdly large"):
            read_member(file, 0, MOST_BYTES + 1)
