"""Images in a folder: formats, sizes, colours, labels, and faults."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from pyro_vae import data


def draw(color, size=(20, 16), mode="RGB"):
    image = Image.new("RGB", size, color)
    ImageDraw.Draw(image).rectangle([2, 2, 8, 5], fill=(10, 200, 30))
    return image.convert(mode)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    for label, color in (("cats", (200, 10, 10)), ("dogs", (10, 10, 200))):
        (root / label).mkdir(parents=True)
        for i in range(6):
            draw(color).save(root / label / f"{i}.png")
    return root


def test_images_keep_their_pixels_and_get_the_labels_of_their_folders(folder):
    mine = data.images(folder, valid=2, test=2)
    assert mine.event_shape == (3, 16, 20)
    assert mine.label_names == ("cats", "dogs")
    x, labels = torch.cat(mine.x), torch.cat(mine.labels)
    for image, label in zip(x, labels, strict=True):
        color = (200, 10, 10) if label == 0 else (10, 10, 200)
        assert (image[:, -1, -1] * 255).round().tolist() == list(color)
    expected = torch.from_numpy(np.array(draw((200, 10, 10)))).movedim(-1, 0) / 255
    assert torch.equal(x[labels == 0][0], expected)
    assert mine.name == "photos"
    assert mine.source == "12 images of 16 x 20 pixels"


def test_the_label_can_be_a_covariate(folder):
    mine = data.images(folder, valid=2, test=2, covariates="label")
    assert mine.covariate_columns.describe() == "label ('cats', 'dogs')"
    assert torch.equal(mine.covariates.train.argmax(1), mine.labels.train)


def test_other_sizes_are_cropped_or_stretched(folder):
    draw((1, 2, 3), (64, 32)).save(folder / "cats" / "wide.jpg")
    with pytest.raises(ValueError, match=r"one size in .*, got 2 sizes, such as 16 x 20 \('0.png'\)"
                       r" and 32 x 64 \('wide.jpg'\): set the size"):  # fmt: skip
        data.images(folder)
    for options, shape in (({"size": 8}, (3, 8, 8)), ({"size": [8, 12], "fit": "stretch"},
                                                      (3, 8, 12))):  # fmt: skip
        mine = data.images(folder, **options)
        assert mine.event_shape == shape
        assert all(bool(((p >= 0) & (p <= 1)).all()) for p in mine.x)


def test_the_centre_is_cut_out(tmp_path):
    pixels = np.zeros((8, 24), dtype=np.uint8)
    pixels[:, 8:16] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    cropped = data.images(tmp_path, size=8, valid=0, test=0).x.train
    stretched = data.images(tmp_path, size=8, fit="stretch", valid=0, test=0).x.train
    assert (cropped == 1).all()
    assert stretched.min() == 0


@pytest.mark.parametrize("color", ["auto", "grey", "rgb"])
def test_colours(tmp_path, color):
    for i in range(4):
        draw((90, 90, 90), mode="L").save(tmp_path / f"{i}.png")
    channels = {"auto": 1, "grey": 1, "rgb": 3}[color]
    assert data.images(tmp_path, color=color, valid=1, test=1).event_shape == (channels, 16, 20)
    draw((1, 2, 3)).save(tmp_path / "colour.bmp")
    channels = {"auto": 3, "grey": 1, "rgb": 3}[color]
    assert data.images(tmp_path, color=color, valid=1, test=1).event_shape == (channels, 16, 20)


def test_formats_of_pillow(tmp_path):
    for suffix in ("png", "jpg", "bmp", "gif", "tiff", "webp", "ppm"):
        draw((200, 100, 50)).save(tmp_path / f"a.{suffix}")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_bytes(b"not an image")
    assert len(torch.cat(data.images(tmp_path).x)) == 7


def test_transparency_becomes_white_and_sixteen_bits_are_rounded(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (data.images(tmp_path, valid=0, test=0).x.train == 1).all()
    (tmp_path / "a.png").unlink()
    Image.fromarray(np.full((4, 4), 51 * 257, dtype=np.uint16)).save(tmp_path / "b.png")
    assert (data.images(tmp_path, valid=0, test=0).x.train * 255 == 51).all()


def test_pixels_of_32_bits_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 255, dtype=np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"'a.tif' .*pixels of 32 bits"):
        data.images(tmp_path)


def test_orientation_tags_are_applied(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    draw((1, 2, 3)).save(tmp_path / "a.jpg", exif=exif)
    assert data.images(tmp_path, valid=0, test=0).event_shape == (3, 20, 16)


def test_all_damaged_files_are_named_at_once(folder):
    whole = (folder / "cats" / "0.png").read_bytes()
    (folder / "cats" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dogs" / "text.jpg").write_text("not an image")
    with pytest.raises(
        ValueError, match=r"2 that cannot be read: 'cats/cut.png', 'dogs/text.jpg' .*'cut.png': "
    ):
        data.images(folder)


def test_a_png_without_its_end_is_damaged(folder):
    whole = (folder / "cats" / "0.png").read_bytes()
    (folder / "cats" / "0.png").write_bytes(whole[:-12])
    with pytest.raises(ValueError, match=r"1 that cannot be read: 'cats/0.png' "):
        data.images(folder)


def test_other_faults(folder, tmp_path):
    for options, message in (
        ({"path": None}, "data.path to name a folder of images, as in"),
        ({"path": tmp_path / "gone"}, "which does not exist"),
        ({"path": folder / "cats" / "0.png"}, "which is a file"),
        ({"path": folder, "size": 0}, "size to be"),
        ({"path": folder, "size": 10**9}, "size to be at most 16384 pixels, got 1000000000"),
        ({"path": folder, "size": [8, 8, 3]}, r"size to be a number of pixels or \[height, width"),
        ({"path": folder, "size": "8"}, "size to be"),
        ({"path": folder, "fit": "pad"}, "fit to be 'crop' or 'stretch', got 'pad'"),
        ({"path": folder, "color": "bgr"}, "color to be .*, got 'bgr'"),
        ({"path": folder, "binarize": "no"}, "binarize to be"),
        ({"path": folder, "covariates": "kind"}, "covariates of 'photos' to be label"),
    ):
        with pytest.raises(ValueError, match=message):
            data.images(**options)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="to have images of a format that Pillow reads"):
        data.images(tmp_path / "empty")
    draw((1, 2, 3)).save(folder / "loose.png")
    with pytest.raises(ValueError, match=r"all images in subfolders, .*got 'loose.png' beside"):
        data.images(folder)


def test_arrays_with_the_channels_last(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 5, 6, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    mine = data.array(tmp_path / "a.npy", channels_last=True, scale=255, valid=0, test=0)
    assert mine.event_shape == (3, 5, 6)
    assert torch.equal(mine.x.train[3, 1] * 255, torch.from_numpy(pixels[3, :, :, 1]).float())
    np.save(tmp_path / "b.npy", pixels[..., 0])
    with pytest.raises(ValueError, match=r"shape \(N, H, W, C\) for channels_last=True"):
        data.array(tmp_path / "b.npy", channels_last=True)
