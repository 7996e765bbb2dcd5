"""Folders of images to evaluate on: what is left out is noted, and names of classes are compared in composed form."""

from PIL import Image

from alexnet.inference.evaluation_data import ImageFolder

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_what_a_folder_leaves_out_is_noted(tmp_path):
    for folder in (DECOMPOSED, "tea"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / folder / "1.jpg")
    (tmp_path / "tea" / "2.heic").touch()
    (tmp_path / "tea" / ".3.jpg").touch()
    labelled = ImageFolder(tmp_path, 2, ("tea", COMPOSED))
    assert sorted(zip(labelled.images.names, labelled.images.labels.tolist(), strict=True)) == [
        (f"{DECOMPOSED}/1.jpg", 1), ("tea/1.jpg", 0)]
    assert labelled.notes == (f"left out of {tmp_path}: 1 hidden (tea/.3.jpg); 1 of type .heic (tea/2.heic)",)
    assert ImageFolder(tmp_path, 2, (DECOMPOSED, "tea")).images.labels.tolist() == [0, 1]
