"""From folders to a data set: correct contents, byte-identical for every way of making it, and refusals."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from alexnet.data import batch_file
from alexnet.data.batch_file import DataError
from alexnet.data.dataset import open_dataset
from alexnet.data.image_listing import find_images
from alexnet.data.images import read_image
from preprocess import batches
from preprocess.batches import Settings, make_batches
from preprocess.command import main

pytestmark = pytest.mark.slow

ROOT = Path(batches.__file__).parents[1]


def made(tree, out="out", workers=1, limit=None, **settings):
    """Preprocess the tree into its subfolder `out`, in batches of 6 images."""
    settings = Settings(batch_size=6, limit=limit, **settings)
    make_batches(find_images(tree / "train", tree / "val", settings.seed, limit), tree / out, settings, workers)
    return tree / out


def contents(folder):
    """Return {name: sha256} of all files in a folder."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}


def stored(split):
    """Return all images of a Split as (image, row, column, channel)."""
    return np.concatenate([read(f, n) for f, n in zip(split.files, split.counts, strict=True)])


def read(file, images):
    out = np.empty((3, 256, 256, images), np.uint8)
    batch_file.read_into(file, out)
    return out.transpose(3, 1, 2, 0)


@pytest.fixture
def finished(tree):
    return made(tree)


def test_layout_is_that_of_upstream(finished):
    assert sorted(contents(finished)) == sorted([
        *(f"train_hkl_b6_b_6/{i:04d}.hkl" for i in range(4)), "val_hkl_b6_b_6/0000.hkl", "val_hkl_b6_b_6/0001.hkl",
        "labels/train_labels.npy", "labels/val_labels.npy", "misc/img_mean.npy", "misc/train.txt", "misc/val.txt",
        "misc/shuffled_train_filenames.npy", "manifest.json"])


def test_every_image_is_stored_with_its_label(tree, finished):
    dataset = open_dataset(finished)
    assert dataset.train.counts.tolist() == [6, 6, 6, 2] and dataset.validation.counts.tolist() == [6, 1]
    sources = find_images(tree / "train", tree / "val")
    for half, images in ((dataset.train, sources.train), (dataset.validation, sources.validation)):
        np.testing.assert_array_equal(half.labels, images.labels)
        expected = [read_image(os.path.join(images.root, name)) for name in images.names]
        np.testing.assert_array_equal(stored(half), expected)
    assert dataset.class_names == ("n01440764", "n02119789", "n03000000")


def test_mean_is_exact(finished):
    dataset = open_dataset(finished)
    expected = stored(dataset.train).astype(np.float64).mean(axis=0).transpose(2, 0, 1)
    np.testing.assert_array_equal(dataset.mean, expected.astype(np.float32))


def test_name_lists_match_caffe_and_upstream(tree, finished):
    names = np.load(finished / "misc" / "shuffled_train_filenames.npy").astype(str).tolist()
    assert names == list(find_images(tree / "train", tree / "val").train.names)
    lines = (finished / "misc" / "train.txt").read_text().splitlines()
    assert lines[0] == "n01440764/0.JPEG 0" and lines == sorted(lines) and len(lines) == 20
    labels = dict(zip(names, np.load(finished / "labels" / "train_labels.npy").tolist(), strict=True))
    assert {name: int(label) for name, label in map(str.split, lines)} == labels


def test_result_is_independent_of_the_number_of_processes(tree, finished):
    assert contents(made(tree, "two", workers=2)) == contents(finished)


def test_second_run_does_nothing(tree, finished, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    made(tree)
    assert "is complete: 20 training images in 4 files, 7 validation images in 2 files, 3 classes; nothing to do" \
        in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


@pytest.mark.parametrize(("options", "message"), [
    ({"resize": "crop"}, "another setting of resize: squash before, crop now"),
    ({"seed": 2}, "another setting of seed: 1 before, 2 now"),
    ({"limit": 5}, "another setting of limit: None before, 5 now"),
    ({"on_bad_image": "skip"}, "another setting of on-bad-image: fail before, skip now"),
])
def test_other_settings_are_refused(tree, finished, options, message):
    with pytest.raises(DataError, match=message):
        made(tree, **options)


def test_other_images_are_refused(tree, finished):
    next((tree / "train").rglob("*.png")).unlink()
    with pytest.raises(DataError, match="another setting of the list of images; use the same, or another folder"):
        made(tree)


def test_batches_of_unknown_origin_are_refused(tree):
    folder = tree / "out" / "train_hkl_b256_b_256"
    folder.mkdir(parents=True)
    (folder / "0000.hkl").write_bytes(b"upstream's")
    with pytest.raises(DataError, match="holds batch files of unknown origin"):
        made(tree)


def test_limit_bounds_the_number_of_images(tree):
    dataset = open_dataset(made(tree, limit=4))
    assert (dataset.train.n, dataset.validation.n) == (4, 4)


def test_what_is_left_out_or_implausible_is_noted(tree, capsys):
    for name in ("readme.txt", "a.heic", ".hidden.jpg"):
        (tree / "train" / "n02119789" / name).touch()
    shutil.rmtree(tree / "val" / "n01440764")
    made(tree)
    assert capsys.readouterr().err.splitlines() == [
        f"note: left out of {tree}/train: 1 hidden (n02119789/.hidden.jpg); 1 of other types (n02119789/readme.txt); "
        "1 of type .heic (n02119789/a.heic)",
        "note: 1 of 3 classes has no validation images: n01440764"]
    manifest = json.loads((tree / "out" / "manifest.json").read_bytes())
    assert manifest["train"]["omitted"][0] == {"reason": "hidden", "n": 1, "first": "n02119789/.hidden.jpg"}
    make_batches(find_images(tree / "train", tree / "train"), tree / "same", Settings(batch_size=6), 1)
    assert "the validation images are the training images" in capsys.readouterr().err


def test_single_class_is_refused(tree):
    for name in ("n02119789", "n03000000"):
        for half in ("train", "val"):
            shutil.rmtree(tree / half / name)
    with pytest.raises(DataError, match="holds the single class n01440764; a classifier needs at least two"):
        made(tree)


# ---- bad images


def add_bad_images(tree):
    """Truncate one training image, empty another and a validation image; return the names of the training images."""
    cut, emptied = tree / "train/n01440764/3.JPEG", tree / "train/n02119789/4.png"
    cut.write_bytes(cut.read_bytes()[:200])
    for path in (emptied, tree / "val/n01440764/0.JPEG"):
        path.write_bytes(b"")
    return {"n01440764/3.JPEG", "n02119789/4.png"}


def test_bad_images_are_named(tree):
    add_bad_images(tree)
    with pytest.raises(DataError, match="--on-bad-image skip leaves such images out") as caught:
        made(tree)
    assert any(f"{name} is" in str(caught.value) for name in ("n01440764/3.JPEG", "n02119789/4.png"))


def test_bad_images_are_skipped_and_listed(tree, capsys):
    bad = add_bad_images(tree)
    out = made(tree, on_bad_image="skip", workers=2)
    output = capsys.readouterr()
    assert "3 bad images skipped" in output.out
    assert "note: skipped 1 bad image of validation: n01440764/0.JPEG is empty" in output.err
    assert all(name in output.err for name in bad)
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert {name for name, _ in manifest["train"]["skipped"]} == bad
    assert manifest["validation"]["skipped"] == [["n01440764/0.JPEG", "is empty"]]
    dataset = open_dataset(out)
    sources = find_images(tree / "train", tree / "val")
    good = [i for i, name in enumerate(sources.train.names) if name not in bad]
    np.testing.assert_array_equal(dataset.train.labels, sources.train.labels[good])
    expected = [read_image(tree / "train" / sources.train.names[i]) for i in good]
    np.testing.assert_array_equal(stored(dataset.train), expected)
    assert len(np.load(out / "misc/shuffled_train_filenames.npy")) == 18 == len(
        (out / "misc/train.txt").read_text().splitlines())


def test_run_failed_at_bad_image_resumes_with_skip(tree):
    names = find_images(tree / "train", tree / "val").train.names
    (tree / "train" / names[-1]).write_bytes(b"")
    with pytest.raises(DataError, match="--on-bad-image skip leaves such images out"):
        made(tree)
    first = tree / "out" / "train_hkl_b6_b_6" / "0000.hkl"
    before = first.stat().st_ino
    assert contents(made(tree, on_bad_image="skip")) == contents(made(tree, "whole", on_bad_image="skip"))
    assert first.stat().st_ino == before


def test_run_that_skipped_images_cannot_resume_with_fail(tree, monkeypatch):
    monkeypatch.setattr(batches, "write_manifest", lambda *rest: (_ for _ in ()).throw(KeyboardInterrupt))
    for way in ("fail", "skip"):
        with pytest.raises(KeyboardInterrupt):
            made(tree, on_bad_image=way)
    with pytest.raises(DataError, match="another setting of on-bad-image: skip before, fail now"):
        made(tree)


def test_batch_of_only_bad_images_has_no_file(tree):
    for file in (tree / "val").rglob("*.JPEG"):
        if file.name != "6.JPEG":
            file.write_bytes(b"")
    out = made(tree, on_bad_image="skip")
    dataset = open_dataset(out)
    assert dataset.validation.n == 1 and main(["verify", str(out)]) == 0


def test_half_without_good_images_is_refused(tree):
    for file in (tree / "val").rglob("*.JPEG"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="no usable validation images"):
        made(tree, on_bad_image="skip")


def test_names_that_are_not_utf8_are_preserved(tree):
    (tree / "train/n01440764/0.JPEG").rename(tree / "train/n01440764" / os.fsdecode(b"caf\xe9.JPEG"))
    (tree / "train/n01440764" / os.fsdecode(b"bad\xe9.JPEG")).touch()
    out = made(tree, on_bad_image="skip")
    assert b"n01440764/caf\xe9.JPEG 0\n" in (out / "misc/train.txt").read_bytes()
    assert b"n01440764/caf\xe9.JPEG" in np.load(out / "misc/shuffled_train_filenames.npy").tolist()
    assert main(["verify", str(out)]) == 0


# ---- interruption, resuming, concurrent runs


def started(tree, *options):
    """Start python -m preprocess in a new session."""
    command = [sys.executable, "-m", "preprocess", "imagenet", str(tree / "train"), str(tree / "val"),
               str(tree / "out"), "--batch-size", "2", *options]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def group_of(leader):
    """Return the ids of the live processes of a session, from /proc."""
    alive = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(session) == leader and state != "Z":
            alive.append(int(stat.parent.name))
    return alive


def wait_until(true, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize("lines", [1, 9])
def test_killed_run_resumes_to_the_same_bytes(tree, lines):
    with started(tree, "--workers", "2") as process:
        journal = tree / "out" / "misc" / "journal.jsonl"
        wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= lines)
        process.kill()
        process.wait()
        wait_until(lambda: not group_of(process.pid), 10)          # the workers exit with their parent
    assert journal.exists() and not (tree / "out" / "manifest.json").exists()
    with open(journal, "ab") as file:
        file.write(b'{"half": "train", "num')                      # truncated by the kill
    files = tree / "out" / "train_hkl_b2_b_2"
    files.mkdir(exist_ok=True)                                     # killed before its first file
    (files / "0000.hkl.1.partial").write_bytes(b"half a file")
    batch_two = Settings(batch_size=2)
    sources = find_images(tree / "train", tree / "val")
    make_batches(sources, tree / "out", batch_two, 1)
    make_batches(sources, tree / "whole", batch_two, 1)
    assert contents(tree / "out") == contents(tree / "whole")


def test_resumed_run_keeps_finished_and_rewrites_damaged_files(tree, monkeypatch):
    monkeypatch.setattr(batches, "write_manifest", lambda *rest: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        made(tree)
    monkeypatch.undo()
    kept, damaged, lost = (tree / "out" / "train_hkl_b6_b_6" / f"000{i}.hkl" for i in range(3))
    damaged.write_bytes(damaged.read_bytes()[:-9] + b"\0" * 9)
    lost.unlink()
    before = kept.stat().st_ino
    assert contents(made(tree)) == contents(made(tree, "whole"))
    assert kept.stat().st_ino == before


def test_journal_of_run_killed_at_its_end_is_removed(tree, finished):
    before = contents(finished)
    (finished / batches.JOURNAL).write_bytes(b"{}\n")
    assert contents(made(tree)) == before


def test_interrupted_run_cannot_resume_with_other_settings(tree, monkeypatch):
    monkeypatch.setattr(batches, "write_manifest", lambda *rest: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        made(tree)
    with pytest.raises(DataError, match="another setting of resize"):
        made(tree, resize="crop")


def test_twice_truncated_journal_keeps_complete_lines(tmp_path):
    path = tmp_path / "out" / "misc" / "journal.jsonl"
    for number in range(3):
        with batches.opened_journal(path, {"seed": 1}) as journal:
            assert list(journal.finished) == [("train", i) for i in range(number)]
            journal.append({"half": "train", "number": number})
        with open(path, "ab") as file:
            file.write(b'{"half": "tr')


@pytest.fixture
def heard():
    """Restore the default SIGINT handler for child processes, in case the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_ctrl_c_ends_all_processes(tree):
    picture = next((tree / "train").glob("*/*.JPEG"))
    for i in range(400):                                     # so that it does not finish before the signal arrives
        os.link(picture, picture.with_name(f"again {i}.JPEG"))
    with started(tree, "--workers", "1") as process:
        wait_until(lambda: (tree / "out" / "misc" / "journal.jsonl").exists())
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(10) in (130, -signal.SIGINT)
        wait_until(lambda: not group_of(process.pid), 10)


def test_death_of_worker_is_reported(tree):
    with started(tree, "--workers", "1") as process:
        wait_until(lambda: (tree / "out" / "misc" / "journal.jsonl").exists())
        wait_until(lambda: [p for p in group_of(process.pid) if is_worker(p)])
        os.kill(next(p for p in group_of(process.pid) if is_worker(p)), signal.SIGKILL)
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 2 and "a worker process died with exit status -9" in output


def is_worker(process):
    """Return whether a process was spawned by multiprocessing."""
    try:
        return b"spawn_main" in Path(f"/proc/{process}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


def test_concurrent_runs_in_one_folder_are_refused(tree):
    with batches.opened_journal(tree / "out" / "misc" / "journal.jsonl", {}), \
            pytest.raises(DataError, match="another run of preprocess is writing into"):
        made(tree)


def test_too_small_disk_is_refused_before_writing(tree, monkeypatch):
    usage = batches.shutil.disk_usage(tree)
    monkeypatch.setattr(batches.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(DataError, match=r"has 0.0 GB free, but 0.01 GB are to be written; --ignore-space writes"):
        made(tree)
    assert not list((tree / "out").rglob("*.hkl"))
    folders = [str(tree / name) for name in ("train", "val", "out")]
    assert main(["imagenet", *folders, "--batch-size", "6", "--workers", "1", "--ignore-space"]) == 0


def test_write_error_has_the_message_of_the_system(tree):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))"
    program = f"{limit}; from preprocess.command import main; raise SystemExit(main())"
    command = [sys.executable, "-c", program, "imagenet", *(str(tree / name) for name in ("train", "val", "out")),
               "--workers", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    written = tree / "out" / "train_hkl_b256_b_256" / "0000.hkl"
    assert (done.returncode, done.stderr) == (2, f"preprocess: {written} cannot be written: File too large\n")
    assert not list(written.parent.iterdir())


def test_estimate_is_measured_on_the_images(tree, capsys, monkeypatch):
    clock = [0.0]

    def slow(path, *settings):
        clock[0] += 2                                         # seconds; the clock of this process, not of the workers

    monkeypatch.setattr(batches, "read_image", slow)
    monkeypatch.setattr(batches.time, "perf_counter", lambda: clock[0])
    made(tree)
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("20 training and 7 validation images of 3 classes -> ")
    assert "writing 6 batch files (0.01 GB; " in first and "GB free), about 54 s with 1 process" in first
    assert second.startswith("preprocess 27 of 27 images, ")


# ---- the command


def test_command_makes_the_same_set(tree, finished, capsys):
    for name in ("folders", "imagenet"):
        assert main([name, str(tree / "train"), str(tree / "val"), str(tree / name), "--batch-size", "6",
                     "--workers", "1"]) == 0
        assert contents(tree / name) == contents(finished)


def test_command_refuses_with_status_2(tree, capsys):
    assert main(["imagenet", str(tree / "nowhere"), str(tree / "val"), str(tree / "out")]) == 2
    assert capsys.readouterr().err == f"preprocess: {tree}/nowhere is neither a folder of images nor a tar file\n"
    for wrong in (["--batch-size", "0"], ["--seed", "-1"], ["--resize", "stretch"]):
        with pytest.raises(SystemExit, match="2"):
            main(["imagenet", str(tree / "train"), str(tree / "val"), str(tree / "out"), *wrong])


def test_tars_give_the_same_bytes_as_folders(tree, finished):
    """A tar of a tar for each class, as ILSVRC's, and a tar of class folders, as `tar -cf val.tar val` writes it."""
    with tarfile.open(tree / "train.tar", "w") as outer:
        for folder in sorted((tree / "train").iterdir(), reverse=True):
            with tarfile.open(tree / f"{folder.name}.tar", "w") as inner:
                for file in folder.iterdir():
                    inner.add(file, file.name)
            outer.add(tree / f"{folder.name}.tar", f"{folder.name}.tar")
    with tarfile.open(tree / "val.tar", "w") as archive:
        archive.add(tree / "val", "val")
    command = ["folders", f"{tree}/train.tar", f"{tree}/val.tar", f"{tree}/from_tars", "--batch-size", "6"]
    assert main([*command, "--workers", "2"]) == 0
    assert contents(tree / "from_tars") == contents(finished)
