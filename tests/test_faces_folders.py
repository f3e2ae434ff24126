"""Image folders: the order of people and pictures, sizes, colours, and what is refused or left out."""

import pickle

import numpy as np
import pytest
from PIL import Image

from faces.folders import FolderPictures
from faces.images import FORMATS
from faces.pictures import BadFileError

RANDOM = np.random.default_rng(0)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    lossless = {"lossless": True} if path.suffix.lower() == ".webp" else {}
    Image.fromarray(array).save(path, **lossless)
    return array


def tones(height=6, width=5, channels=(3,)):
    return RANDOM.integers(0, 256, (height, width, *channels), np.uint8)


@pytest.fixture
def people(tmp_path):
    """Four pictures of three people, in the order of their names; and what is no part of it."""
    files = ["B b/10.png", "B b/9.BMP", "a/x.webp", "ö/1.png"]
    pictures = [save(tmp_path / file, tones()) for file in reversed(files)][::-1]
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "a" / ".thumbnail.png").write_bytes(b"no picture")
    (tmp_path / "README.txt").write_text("Whose pictures these are.")
    return tmp_path, files, pictures


def test_people_and_pictures_stand_in_the_order_of_their_names(people):
    path, files, expected = people
    pictures = FolderPictures(path)
    assert len(pictures) == 4
    assert pictures.names == ("B b", "a", "ö")
    assert pictures.labels.dtype == np.int32
    assert pictures.labels.tolist() == [0, 0, 1, 2]
    assert pictures.shape == (6, 5, 3)
    for index in (3, 0, np.int64(2), 1, -1):  # in any order
        assert pictures[index].dtype == np.uint8
        np.testing.assert_array_equal(pictures[index], expected[index])
        assert pictures.file(index) == path / files[index]
    with pytest.raises(IndexError):
        pictures[4]


def test_another_process_reads_the_same(people):
    path, _, expected = people
    pictures = pickle.loads(pickle.dumps(FolderPictures(str(path))))
    np.testing.assert_array_equal(np.stack([pictures[i] for i in range(4)]), expected)
    assert pictures.labels.tolist() == [0, 0, 1, 2]


def test_a_jpeg_is_read_as_pillow_reads_it(tmp_path):
    save(tmp_path / "a" / "1.JPG", tones(32, 32))
    save(tmp_path / "a" / "2.jpeg", tones(32, 32))
    pictures = FolderPictures(tmp_path)
    for index, name in enumerate(["1.JPG", "2.jpeg"]):
        with Image.open(tmp_path / "a" / name) as image:
            np.testing.assert_array_equal(pictures[index], np.asarray(image))


def test_every_format_that_can_be_read_is_found(tmp_path):
    names = ["1.bmp", "2.gif", "3.jfif", "4.pgm", "5.png", "6.ppm", "7.TIF", "8.tiff", "9.webp"]
    formats = set()
    for name in names:
        save(tmp_path / "a" / name, tones(channels=() if name == "4.pgm" else (3,)))
        with Image.open(tmp_path / "a" / name) as image:
            formats.add(image.format)
    assert formats == set(FORMATS)
    pictures = FolderPictures(tmp_path)
    assert [pictures.file(index).name for index in range(len(pictures))] == names
    assert {pictures[index].shape for index in range(len(pictures))} == {(6, 5, 3)}


def test_grey_pictures_have_one_channel_or_three(tmp_path):
    grey, equal = save(tmp_path / "a" / "1.png", tones(channels=())), tones(channels=())
    save(tmp_path / "a" / "2.png", np.stack([equal] * 3, axis=-1))  # grey, in a file with colours
    pictures = FolderPictures(tmp_path)
    assert pictures.shape == (6, 5, 1)
    np.testing.assert_array_equal(pictures[0], grey[..., None])
    np.testing.assert_array_equal(pictures[1], equal[..., None])
    in_colour = FolderPictures(tmp_path, channels=3)
    assert in_colour.shape == (6, 5, 3)
    np.testing.assert_array_equal(in_colour[0], np.stack([grey] * 3, axis=-1))


def test_a_grey_file_among_colours_is_read_in_colour(tmp_path):
    save(tmp_path / "a" / "1.png", tones())
    grey = save(tmp_path / "a" / "2.png", tones(channels=()))
    np.testing.assert_array_equal(FolderPictures(tmp_path)[1], np.stack([grey] * 3, axis=-1))


def test_pictures_are_resized_where_asked(tmp_path):
    save(tmp_path / "a" / "1.png", np.full((8, 8), 70, np.uint8))
    halves = save(tmp_path / "a" / "2.png", np.repeat([[0, 200]], 10, axis=0).repeat(20, axis=1).astype(np.uint8))
    pictures = FolderPictures(tmp_path, size=(5, 4))
    assert pictures.shape == (5, 4, 1)
    np.testing.assert_array_equal(pictures[0], np.full((5, 4, 1), 70))
    assert halves.shape == (10, 40)
    assert pictures[1].shape == (5, 4, 1)
    assert (pictures[1][:, 0] < 20).all()
    assert (pictures[1][:, 3] > 180).all()
    same = FolderPictures(tmp_path, size=(8, 8))
    np.testing.assert_array_equal(same[0], np.full((8, 8, 1), 70))


def test_what_is_left_out_is_told(people):
    path, _, expected = people
    (path / "a" / "notes.txt").write_text("no picture")
    save(path / "a" / "more" / "1.png", tones())
    save(path / "stray.png", tones())
    with pytest.warns(UserWarning, match=r"3 left out, .* first .*stray.png"):
        pictures = FolderPictures(path)
    np.testing.assert_array_equal(np.stack([pictures[i] for i in range(4)]), expected)


def test_a_picture_of_another_size_is_refused_with_both(people):
    path, _, _ = people
    save(path / "a" / "y.png", tones(7, 5))
    pictures = FolderPictures(path)
    with pytest.raises(BadFileError, match=r"a.y.png: it is 7 x 5 .*10.png, 6 x 5\. Align .*size=\(6, 5\)"):
        pictures[3]


def test_a_colour_picture_is_not_made_grey(tmp_path):
    save(tmp_path / "a" / "1.png", tones(channels=()))
    save(tmp_path / "a" / "2.png", tones())
    pictures = FolderPictures(tmp_path)
    assert pictures[0].shape == (6, 5, 1)
    with pytest.raises(BadFileError, match=r"2.png: it has colours.*channels=3, which is --channels 3 of"):
        pictures[1]
    save(tmp_path / "a" / "0.png", tones())
    with pytest.raises(BadFileError, match=r"0.png: it has colours"):
        FolderPictures(tmp_path, channels=1)[0]


def test_a_file_that_goes_or_breaks_is_named(people):
    path, files, _ = people
    pictures = FolderPictures(path)
    (path / files[1]).unlink()
    with pytest.raises(BadFileError, match=r"9.BMP: it cannot be read"):
        pictures[1]
    (path / files[2]).write_bytes((path / files[2]).read_bytes()[:30])
    with pytest.raises(BadFileError, match=r"x.webp"):
        pictures[2]


def one_level_too_high(path):
    save(path / "train" / "a" / "1.png", tones())


def flat(path):
    save(path / "1.png", tones())


def nobody_on_one(path):
    save(path / "a" / "1.png", tones())
    (path / "b").mkdir()


def broken(path):
    (path / "a").mkdir()
    (path / "a" / "1.png").write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "there is nobody in it"),
        (flat, "there is nobody in it"),
        (nobody_on_one, r"b: there is no picture of this person\. Remove"),
        (one_level_too_high, "train: there is no picture .* such as 'a': is the path one level too high"),
        (broken, r"1.png: expected a picture"),
    ],
)
def test_folders_that_hold_no_faces_are_refused(make, words, tmp_path):
    make(tmp_path)
    with pytest.raises(BadFileError, match=words):
        FolderPictures(tmp_path)


def test_no_folder_and_no_sense_are_refused(tmp_path):
    with pytest.raises(BadFileError, match="nowhere: there is no such folder"):
        FolderPictures(tmp_path / "nowhere")
    flat(tmp_path)
    with pytest.raises(BadFileError, match=r"1.png: there is no such folder"):
        FolderPictures(tmp_path / "1.png")
    for size in (112, (0, 5), (5.0, 5), (5,), (True, 5)):
        with pytest.raises(ValueError, match="size: expected"):
            FolderPictures(tmp_path, size=size)
    with pytest.raises(ValueError, match="channels: expected 1, 3 or None, came 4"):
        FolderPictures(tmp_path, channels=4)
