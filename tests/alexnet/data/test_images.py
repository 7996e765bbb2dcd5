"""Image files: every format decodes to an independent reference, and damaged files are refused with a reason."""

import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from alexnet.data import images
from alexnet.data.images import TURNS, BadImage, batch_of, pixels_of, read_image
from tests.hostile_images import BAD, GOOD, bomb, encoded, photograph


def squashed(image):
    return np.asarray(image.resize((256, 256), Image.Resampling.BILINEAR)).astype(int)


def saved(image, path, form="JPEG", **options):
    with open(path, "wb") as file:
        image.save(file, form, **({"quality": 95} if form == "JPEG" else {}) | options)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "n01440764_1.JPEG"


def test_squash_is_bilinear_resize(path):
    saved(photograph(500, 400), path)
    out = read_image(path)
    assert out.shape == (256, 256, 3) and out.dtype == np.uint8
    with Image.open(path) as image:
        np.testing.assert_array_equal(out, squashed(image))


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (256, 256), (1024, 512)])
def test_crop_is_the_central_square(path, width, height):
    saved(photograph(width, height), path, "PNG")
    scale = 256 / min(width, height)
    whole = photograph(width, height).resize(
        (round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    left, top = (whole.width - 256) // 2, (whole.height - 256) // 2
    expected = np.asarray(whole.crop((left, top, left + 256, top + 256))).astype(int)
    assert np.abs(read_image(path, "crop") - expected).mean() < 1


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (301, 259), (256, 256), (2500, 2100)])
def test_shorter_has_the_pixels_of_torchvision(path, width, height):
    saved(photograph(width, height), path)
    with Image.open(path) as image:
        short = min(width, height)
        whole = image.resize((int(256 * width / short), int(256 * height / short)), Image.Resampling.BILINEAR)
    left, top = (int(round((n - 224) / 2.0)) for n in whole.size)                # torchvision's center_crop
    expected = np.asarray(whole.crop((left, top, left + 224, top + 224)))
    np.testing.assert_array_equal(read_image(path, "shorter")[16:240, 16:240], expected)


def test_draft_decoding_changes_pixels_little(path):
    saved(photograph(2500, 2100), path)
    with Image.open(path) as image:
        difference = np.abs(read_image(path) - squashed(image))
    assert difference.mean() < 0.3 and difference.max() <= 4


def test_flipped_bit_in_a_png_is_refused(path, rng):
    whole = encoded(photograph(), "PNG")
    for place in [*rng.integers(len(whole), size=60).tolist(), len(whole) - 1]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(BadImage, match="^is "):
            read_image(path)


def test_cmyk_is_converted_within_a_grey_level(path):
    rgb = photograph()
    cmyk = np.empty((200, 300, 4), np.uint8)
    cmyk[..., :3], cmyk[..., 3] = 255 - np.asarray(rgb), 0             # no black: c = 255 - r
    saved(Image.frombytes("CMYK", (300, 200), cmyk.tobytes()), path, quality=100)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
    assert np.abs(read_image(path) - squashed(rgb)).mean() < 1


def test_black_channel_darkens_cmyk(path):
    cmyk = np.random.default_rng(0).integers(0, 256, (4, 4, 4)).astype(np.uint8)
    picture = Image.frombytes("CMYK", (4, 4), cmyk.tobytes()).resize((256, 256), Image.Resampling.NEAREST)
    saved(picture, path, quality=100)
    c, m, y, k = np.moveaxis(np.asarray(picture).astype(float), 2, 0)
    expected = np.stack([(255 - ink) * (255 - k) / 255 for ink in (c, m, y)], axis=2)
    assert np.abs(read_image(path) - expected).mean() < 1


def test_png_named_jpeg_is_read_as_png(path):
    saved(photograph(), path, "PNG")
    np.testing.assert_array_equal(read_image(path), squashed(photograph()))


def test_grey_has_three_equal_channels(path):
    saved(photograph().convert("L"), path)
    out = read_image(path)
    with Image.open(path) as image:
        np.testing.assert_array_equal(out, np.repeat(squashed(image)[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_become_white(path, mode):
    picture = photograph().convert(mode)
    alpha = np.zeros((200, 300), np.uint8)
    alpha[:, 150:] = 255
    picture.putalpha(Image.fromarray(alpha))
    saved(picture, path, "PNG")
    out, opaque = read_image(path), squashed(photograph().convert(mode[:-1]).convert("RGB"))
    assert (out[:, :120] == 255).all()
    np.testing.assert_array_equal(out[:, 136:], opaque[:, 136:])


LOSSLESS = [("WEBP", {"lossless": True}), ("BMP", {}), ("PPM", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})]


@pytest.mark.parametrize(("form", "options"), LOSSLESS)
def test_lossless_formats_keep_every_pixel(path, form, options):
    saved(photograph(), path, form, **options)
    np.testing.assert_array_equal(read_image(path), squashed(photograph()))


def test_avif_keeps_the_colours(path):
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    saved(photograph(), path, "AVIF", quality=95)
    assert np.abs(read_image(path) - squashed(photograph())).mean() < 2


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_first_frame_is_read(path, form):
    first, second = Image.new("RGB", (64, 48), (200, 30, 10)), Image.new("RGB", (64, 48), (10, 30, 200))
    first.save(path, form, save_all=True, append_images=[second])
    assert np.abs(read_image(path).astype(int) - [200, 30, 10]).max() <= 4


def test_tiff_orientation_is_applied_once(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    saved(photograph(), path, "TIFF", exif=exif)
    np.testing.assert_array_equal(read_image(path), squashed(photograph().transpose(Image.Transpose.ROTATE_270)))


def test_float_tiff_from_0_to_1_is_scaled(path):
    grey = photograph().convert("L")
    saved(Image.fromarray(np.asarray(grey, np.float32) / 255), path, "TIFF")
    np.testing.assert_array_equal(read_image(path), squashed(grey.convert("RGB")))


def test_palette_is_applied(path):
    picture = photograph().quantize(16)
    saved(picture, path, "PNG")
    np.testing.assert_array_equal(read_image(path), squashed(picture.convert("RGB")))


def test_transparent_palette_entry_is_white(path):
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([10, 20, 30, 200, 0, 0])
    picture.paste(0, (0, 0, 4, 8))
    saved(picture, path, "PNG", transparency=0)
    out = read_image(path)
    assert (out[:, :96] == 255).all() and (out[:, 160:] == [200, 0, 0]).all()


def test_sixteen_bit_grey_keeps_its_upper_bits(path):
    grey = np.random.default_rng(0).integers(0, 2**16, (256, 256), dtype=np.uint16)
    saved(Image.fromarray(grey), path, "PNG")
    np.testing.assert_array_equal(read_image(path), np.repeat((grey >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    saved(photograph(), path, exif=exif)
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_image(path), squashed(ImageOps.exif_transpose(image)))
    assert (orientation in TURNS) == (orientation != 1)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")     # raised by Pillow in the test itself
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\0" * 9])
def test_broken_exif_data_is_ignored(path, exif):
    saved(photograph(), path, exif=exif)
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_image(path), squashed(image))


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 20_000), (20_000, 1)])
def test_thin_images_are_read(path, resize, width, height):
    saved(Image.new("RGB", (width, height), (10, 200, 30)), path)
    assert np.abs(read_image(path, resize).astype(int) - [10, 200, 30]).max() <= 3


def test_name_that_is_not_utf8_is_read(tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    saved(photograph(), name)
    assert read_image(os.fsdecode(name)).shape == (256, 256, 3)


@pytest.mark.parametrize("kind", GOOD)
def test_usable_images_are_read(path, kind):
    path.write_bytes(GOOD[kind]())
    assert read_image(path).shape == (256, 256, 3)


@pytest.mark.parametrize(("content", "reason"), [
    *((make(), reason) for make, reason in BAD.values()),
    (encoded(photograph(), "GIF")[:500], "is damaged"),
    (encoded(photograph(), "TIFF")[:2000], "is damaged"),
    (encoded(Image.new("I", (9, 9), 70_000), "TIFF"), "has 32-bit whole numbers, whose range is unknown"),
    (encoded(photograph(), "EPS"), "is PostScript, not a JPEG"),          # Pillow would start Ghostscript
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is HEIC, not a JPEG"),
    (b"<!DOCTYPE html>\n<html>", "is HTML, not a JPEG"),                 # what a failed download often saves
    (encoded(photograph(), "PNG")[:2000], "is damaged"),
    (encoded(photograph(), "PNG")[:20], "is "),
])
def test_unusable_image_is_refused_with_its_reason(path, content, reason):
    path.write_bytes(content)
    with pytest.raises(BadImage, match=reason) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_unreadable_file_is_refused(path):
    path.mkdir()
    with pytest.raises(BadImage, match="is a folder, not an image"):
        read_image(path)
    with pytest.raises(BadImage, match="cannot be opened: No such file"):
        read_image(path / "gone")


def test_pipe_is_refused_without_waiting(path):
    os.mkfifo(path)
    with pytest.raises(BadImage, match="is no file but a pipe or a device"):
        read_image(path)


def test_threads_leave_warning_filters_unchanged(path):
    """Decompression bombs are refused and Pillow's warnings suppressed while other threads read images."""
    saved(photograph(), path, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\0" * 9)
    bombs = path.with_name("bomb.png")
    bombs.write_bytes(bomb(12_000))
    read_image(path)
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(read_image, each) for each in [path, bombs] * 40]
    assert all(answer.result().shape == (256, 256, 3) for answer in answers[::2])
    assert all("is absurdly large" in str(answer.exception()) for answer in answers[1::2])
    assert warnings.filters == before


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_pixels_and_file_are_resized_identically(path, resize):
    saved(photograph(), path, "PNG")
    np.testing.assert_array_equal(pixels_of(np.asarray(photograph()), resize), read_image(path, resize))


def test_arrays_are_grey_or_colour_bytes_or_floats(rng):
    colour = rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)
    grey = colour[..., 0]
    expected, grey_expected = pixels_of(colour), pixels_of(np.repeat(grey[..., np.newaxis], 3, axis=2))
    for array in (colour / 255, (colour / 255).astype(np.float32), colour.astype(np.float16), colour.astype(float),
                  np.dstack([colour, np.full((40, 30), 255, np.uint8)])):
        np.testing.assert_array_equal(pixels_of(array), expected)
    for array in (grey, grey[..., np.newaxis], grey / 255, grey.astype(np.float32)):
        np.testing.assert_array_equal(pixels_of(array), grey_expected)
    assert (pixels_of(np.dstack([colour, np.zeros((40, 30), np.uint8)])) == 255).all()      # transparent


@pytest.mark.parametrize(("wrong", "reason"), [
    ([1], "must be a path, a Pillow image or a NumPy array, got list"),
    (np.zeros((0, 4, 3), np.uint8), r"must have shape \(rows, columns\), .* got \(0, 4, 3\)"),
    (np.zeros((3, 40, 30), np.uint8), r"put the channels last: array.transpose\(1, 2, 0\)"),
    (np.zeros((2, 40, 30, 3), np.uint8), "pass the images of a batch one by one"),
    (np.full((4, 4, 3), 200), "must be uint8, or float .* got int64; convert"),
    (np.linspace(-2, 2, 48).reshape(4, 4, 3), "has floats from -2 to 2; .* without subtracting a mean"),
    (np.full((4, 4, 3), np.nan), "has floats from nan to nan"),
    (np.linspace(0, 1.1, 48).reshape(4, 4, 3), "has floats from 0 to 1.1, which is neither 0 to 1 nor clearly"),
    (np.eye(4), "has only the floats 0 and 1"),
    (Image.new("LAB", (4, 4)), "has CIELAB colours"),
    (Image.new("I", (4, 4)), "has 32-bit whole numbers"),
    (Image.new("RGB", (0, 4)), "has no pixels"),
    (Image.new("L", (10_000, 9_000)), "is absurdly large: 10000 x 9000 pixels"),
])
def test_unclear_images_in_memory_are_refused(wrong, reason):
    with pytest.raises(BadImage, match=reason):
        pixels_of(wrong)


@pytest.mark.parametrize("kind", GOOD)
def test_pillow_images_and_files_agree(path, kind):
    path.write_bytes(GOOD[kind]())
    with Image.open(path) as image, path.open("rb") as file:
        difference = np.abs(pixels_of(image).astype(int) - read_image(path))
        assert difference.max() <= 3             # draft decoding of a large file
        np.testing.assert_array_equal(read_image(file), read_image(path))


def test_opened_files_of_refused_formats_are_not_decoded():
    image = Image.open(io.BytesIO(encoded(photograph(), "EPS")))             # decoding would start Ghostscript
    with pytest.raises(BadImage, match="is an opened EPS file, which is not decoded here"):
        pixels_of(image)


def test_threads_may_decode_the_same_pillow_image(path):
    saved(photograph(1500, 1000), path)
    with Image.open(path) as image, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(pixels_of, [image] * 16))
        expected = squashed(photograph(1500, 1000))
    for pixels in found:
        assert np.abs(pixels - expected).mean() < 2


def test_images_are_the_innermost_axis(rng):
    images = [rng.integers(0, 256, (256, 256, 3), dtype=np.uint8) for _ in range(3)]
    batch = batch_of(images)
    assert batch.shape == (3, 256, 256, 3) and batch.flags.c_contiguous
    for place, image in enumerate(images):
        np.testing.assert_array_equal(batch[..., place], np.moveaxis(image, 2, 0))


JPEGS = {
    "4:2:0": {}, "4:4:4": {"subsampling": 0}, "4:2:2": {"subsampling": 1}, "progressive": {"progressive": True},
    "poor": {"quality": 5}, "restart markers": {"restart_marker_blocks": 4}, "not a multiple of 8": {},
}


@pytest.mark.parametrize("kind", JPEGS)
def test_direct_decoder_has_the_pixels_of_pillow(path, kind, monkeypatch):
    pytest.importorskip("simplejpeg", reason="needs simplejpeg, which is not installed")
    saved(photograph(501 if kind == "not a multiple of 8" else 400, 299), path, **JPEGS[kind])
    direct = read_image(path)
    monkeypatch.setattr(images, "optional_decoder", lambda: None)
    np.testing.assert_array_equal(direct, read_image(path))


def test_direct_decoder_leaves_damage_to_pillow(path, monkeypatch):
    """A file with bytes after its end, which Pillow accepts, and one that is cut off."""
    saved(photograph(400, 300), path)
    content = path.read_bytes()
    path.write_bytes(content + b"rest")
    assert read_image(path).shape == (256, 256, 3)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadImage, match="is damaged: image file is truncated"):
        read_image(path)


@pytest.mark.parametrize("resize", ["squash", "crop", "shorter"])
def test_fast_decoding_differs_little(path, resize):
    saved(photograph(1100, 900), path)
    exact, fast = (read_image(path, resize, decode).astype(int) for decode in ("exact", "fast"))
    difference = np.abs(exact - fast).mean()
    assert difference < 0.5 and (difference > 0) == (resize != "shorter")
