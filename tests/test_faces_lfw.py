"""LFW: its lists, its protocols and its archive, against scikit-learn's reading of the same small tree of pictures."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import fetch_lfw_pairs, fetch_lfw_people

from faces import lfw as lfw_module
from faces.convert_lfw import lfw_of_pictures, lfw_of_scikit_learn, main
from faces.lfw import read_lfw, write_lfw
from faces.lfw_lists import LIST_FILES, Lists, find_lists, read_pairs, read_people
from faces.pictures import BadFileError

COUNTS = {  # in the order of the alphabet, where capitals come first; no order of folds
    "AJ_Cook": 3, "Aaron_B": 2, "Bo_C": 1, "Cy_D": 2, "Di_E": 4, "Ed_F": 1, "Flo_G": 2, "Gus_H": 2, "Ivy_J": 1,
}  # fmt: skip
FOLD = [0, 1, 0, 0, 1, 0, 1, 1, 1]
DEV_TEST = [False, False, True, True, False, True, True, True, False]
FILES = {
    "pairs.txt": "2\t2\n"
    "AJ_Cook\t1\t3\nCy_D\t1\t2\nAJ_Cook\t2\tBo_C\t1\nCy_D\t1\tEd_F\t1\n"
    "Di_E\t4\t1\nAaron_B\t1\t2\nFlo_G\t1\tGus_H\t2\nAaron_B\t2\tDi_E\t3\n",
    "pairsDevTrain.txt": "2\nAJ_Cook\t1\t2\nDi_E\t2\t3\nAaron_B\t1\tDi_E\t1\nAJ_Cook\t3\tAaron_B\t2\n",
    "pairsDevTest.txt": "1\nFlo_G\t1\t2\nCy_D\t2\tGus_H\t1\n",
    "people.txt": "2\n4\nAJ_Cook\t3\nBo_C\t1\nCy_D\t2\nEd_F\t1\n5\nAaron_B\t2\nDi_E\t4\nFlo_G\t2\nGus_H\t2\nIvy_J\t1\n",
    "peopleDevTrain.txt": "4\nAJ_Cook\t3\nAaron_B\t2\nDi_E\t4\nIvy_J\t1\n",
    "peopleDevTest.txt": "5\nBo_C\t1\nCy_D\t2\nEd_F\t1\nFlo_G\t2\nGus_H\t2\n",
}
PEOPLE_FILES = [name for name in FILES if name.startswith("people")]
# Rows of pictures by hand: 0-2 AJ_Cook, 3-4 Aaron_B, 5 Bo_C, 6-7 Cy_D, 8-11 Di_E, 12 Ed_F, 13-14, 15-16, 17 Ivy_J.
PAIRS = [[0, 2], [6, 7], [1, 5], [6, 12], [11, 8], [3, 4], [13, 16], [4, 10]]


def put_files(folder, **changed):
    for name, text in FILES.items():
        (folder / name).write_text(changed.get(name.removesuffix(".txt"), text))


def put_pictures(path):
    random = np.random.default_rng(0)
    for name, count in COUNTS.items():
        folder = path / name
        folder.mkdir(parents=True)
        for number in range(1, count + 1):
            coarse = random.integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(coarse).resize((250, 250)).save(folder / f"{name}_{number:04}.jpg", quality=90)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """As scikit-learn leaves it behind, with the lists of people put beside."""
    home = tmp_path_factory.mktemp("home")
    put_pictures(home / "lfw_home" / "lfw_funneled")
    put_files(home / "lfw_home")
    return home


@pytest.fixture(scope="module")
def pictures(home):
    return home / "lfw_home" / "lfw_funneled"


@pytest.fixture(scope="module")
def whole(home):
    return lfw_of_scikit_learn(home)


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        np.testing.assert_array_equal(one, other)


def test_pictures_and_people_are_those_of_scikit_learn(home, whole):
    theirs = fetch_lfw_people(data_home=home, download_if_missing=False)
    order = np.arange(len(theirs.images))
    np.random.RandomState(42).shuffle(order)  # as scikit-learn shuffles them
    assert whole.pictures.shape == (18, 62, 47, 1)
    assert np.abs(whole.pictures[order, ..., 0] - 255 * theirs.images).max() < 0.34  # rounded: a third at most
    assert whole.label[order].tolist() == theirs.target.tolist()
    assert [name.replace("_", " ") for name in whole.names] == theirs.target_names.tolist()
    assert whole.image_number.tolist() == [n for count in COUNTS.values() for n in range(1, count + 1)]


@pytest.mark.parametrize(
    ("subset", "pairs", "same"),
    [
        ("10_folds", "pairs_10folds", "pairs_10folds_same"),
        ("train", "pairs_dev_train", "pairs_dev_train_same"),
        ("test", "pairs_dev_test", "pairs_dev_test_same"),
    ],
)
def test_pairs_are_those_of_scikit_learn(subset, pairs, same, home, whole):
    theirs = fetch_lfw_pairs(subset=subset, data_home=home, download_if_missing=False)
    assert getattr(whole, same).tolist() == (theirs.target == 1).tolist()
    assert np.abs(whole.pictures[getattr(whole, pairs), ..., 0] - 255 * theirs.pairs).max() < 0.34


def test_lists_become_arrays(whole):
    assert whole.pairs_10folds.tolist() == PAIRS
    assert whole.pairs_10folds_fold.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert whole.person_fold.tolist() == FOLD
    assert whole.person_is_dev_test.tolist() == DEV_TEST


def test_colours_and_another_crop(home, pictures):
    slices = slice(40, 200), slice(60, 191)
    theirs = fetch_lfw_people(data_home=home, color=True, resize=0.5, slice_=slices, download_if_missing=False)
    order = np.arange(18)
    np.random.RandomState(42).shuffle(order)
    ours = lfw_of_pictures(pictures, Lists(), crop=((40, 200), (60, 191)), color=True)
    assert ours.pictures.shape == (18, 80, 65, 3)
    np.testing.assert_allclose(ours.pictures[order], 255 * theirs.images, atol=1e-3)
    uncut = lfw_of_pictures(pictures, Lists(), crop=None, size=(250, 250), color=True)
    with Image.open(pictures / "Cy_D" / "Cy_D_0002.jpg") as image:
        np.testing.assert_array_equal(uncut.pictures[7], np.asarray(image))


def same_pairs(ours, lfw, rows, same):
    np.testing.assert_array_equal(ours.pictures[ours.pairs], lfw.pictures[np.array(rows)])
    assert ours.same.tolist() == [bool(s) for s in same]
    assert len(ours.pictures) == len(np.unique(rows))


def test_the_development_protocol(whole):
    train, train_pairs, test_pairs = whole.development()
    assert train.names == ("AJ_Cook", "Aaron_B", "Di_E")
    assert train.labels.dtype == np.int32
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    np.testing.assert_array_equal(train.array, whole.pictures[[0, 1, 2, 3, 4, 8, 9, 10, 11]])
    same_pairs(train_pairs, whole, [[0, 1], [9, 10], [3, 8], [2, 4]], [1, 1, 0, 0])
    same_pairs(test_pairs, whole, [[13, 14], [7, 15]], [1, 0])
    assert whole.development(min_pictures=1).train.names == ("AJ_Cook", "Aaron_B", "Di_E", "Ivy_J")
    assert whole.development(min_pictures=3).train.labels.tolist() == [0] * 3 + [1] * 4


def test_the_folds(whole):
    train, train_pairs, test_pairs = whole.fold(1, min_pictures=1)
    assert train.names == ("AJ_Cook", "Bo_C", "Cy_D", "Ed_F")
    assert train.labels.tolist() == [0, 0, 0, 1, 2, 2, 3]
    same_pairs(train_pairs, whole, PAIRS[:4], [1, 1, 0, 0])
    same_pairs(test_pairs, whole, PAIRS[4:], [1, 1, 0, 0])
    assert test_pairs.fold.tolist() == [1] * 4
    assert train_pairs.fold.tolist() == [0] * 4
    assert whole.fold(0).train.names == ("Aaron_B", "Di_E", "Flo_G", "Gus_H")
    everything = whole.ten_folds()
    same_pairs(everything, whole, PAIRS, [1, 1, 0, 0] * 2)
    assert everything.fold.tolist() == [0] * 4 + [1] * 4


def test_without_lists_of_people_those_of_the_training_pairs_are_trained_on(home, pictures, whole):
    names = find_lists(pictures)
    lfw = lfw_of_pictures(pictures, names._replace(people=None, people_dev_train=None, people_dev_test=None))
    assert lfw.person_fold is None
    assert lfw.fold(0, min_pictures=1).train.names == ("Aaron_B", "Di_E", "Flo_G", "Gus_H")  # not Ivy_J: in no pair
    assert lfw.development(min_pictures=1).train.names == ("AJ_Cook", "Aaron_B", "Di_E")
    for ours, theirs in zip(lfw.fold(0)[1:], whole.fold(0)[1:], strict=True):
        np.testing.assert_array_equal(ours.pictures[ours.pairs], theirs.pictures[theirs.pairs])


def test_a_protocol_without_its_lists_says_so(pictures, whole):
    bare = lfw_of_pictures(pictures, Lists())
    with pytest.raises(ValueError, match=r"no development pairs.*pairsDevTrain.txt"):
        bare.development()
    for call in (lambda: bare.fold(0), bare.ten_folds):
        with pytest.raises(ValueError, match=r"no folds.*pairs.txt"):
            call()
    assert (bare.folds, whole.folds) == (0, 2)
    for k in (2, -1, None):
        with pytest.raises(ValueError, match=f"k: expected a fold from 0 to 1, came {k}. This LFW has 2 folds; .* ten"):
            whole.fold(k)
    with pytest.raises(ValueError, match="nobody to train on has 4; the most are 3"):
        whole.fold(1, min_pictures=4)


def test_the_archive_is_read_as_it_was_written(whole, tmp_path):
    write_lfw(tmp_path / "lfw.npz", whole)
    assert_same(read_lfw(tmp_path / "lfw.npz"), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["lfw.npz"]
    with np.load(tmp_path / "lfw.npz") as z:  # by NumPy alone
        images = np.cumsum(np.cumsum(z["images_delta"], axis=2, dtype=np.uint8), axis=1, dtype=np.uint8)
        np.testing.assert_array_equal(images, whole.pictures[..., 0])
        assert z["names"][z["label"]].tolist() == [name for name, count in COUNTS.items() for _ in range(count)]
        assert {key: str(z[key].dtype) for key in ("label", "image_number", "pairs_dev_test", "person_fold")} == {
            "label": "int16", "image_number": "int16", "pairs_dev_test": "int16", "person_fold": "uint8"
        }  # fmt: skip


def test_an_archive_with_colours_and_without_lists(pictures, tmp_path):
    lfw = lfw_of_pictures(pictures, Lists(), color=True)
    write_lfw(tmp_path / "lfw.npz", lfw)
    assert_same(read_lfw(tmp_path / "lfw.npz"), lfw)


def test_an_archive_half_written_leaves_the_former_one(whole, tmp_path, monkeypatch):
    (tmp_path / "lfw.npz").write_text("the former")

    def fails(file, **arrays):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez_compressed", fails)
    with pytest.raises(OSError, match="no space left"):
        write_lfw(tmp_path / "lfw.npz", whole)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the former"]


def test_one_command_makes_the_archive(pictures, whole, tmp_path, capsys):
    out = tmp_path / "lfw.npz"
    assert main([str(pictures), "--out", str(out)]) == 0
    assert "18 pictures of 9 people, (62, 47, 1)" in capsys.readouterr().out
    assert_same(read_lfw(out), whole)
    (tmp_path / "others.txt").write_text(FILES["pairs.txt"].replace("Aaron_B\t2\tDi_E\t3", "Aaron_B\t2\tDi_E\t4"))
    changed = [str(pictures), "--out", str(out), "--pairs", str(tmp_path / "others.txt")]
    assert main([*changed, "--crop", "10:90,20:80", "--size", "20,10", "--color"]) == 0
    lfw = read_lfw(out)
    assert lfw.pictures.shape == (18, 20, 10, 3)
    assert lfw.pairs_10folds.tolist() == [*PAIRS[:-1], [4, 11]]


def test_lists_that_are_missing_are_told(home, tmp_path, capsys):
    pictures = tmp_path / "lfw"
    pictures.symlink_to(home / "lfw_home" / "lfw_funneled")
    command = [str(pictures), "--out", str(tmp_path / "lfw.npz")]
    for name in ("pairs.txt", "people.txt"):
        with pytest.raises(SystemExit):
            main(command)
        assert f"{name} is not in" in capsys.readouterr().err
        (tmp_path / name).write_text(FILES[name])
    assert main(command) == 0
    assert "Not found, so not in it: pairsDevTrain.txt, pairsDevTest.txt" in capsys.readouterr().out
    assert read_lfw(tmp_path / "lfw.npz").pairs_dev_train is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--crop", "70-195"], "expected ROWS,COLUMNS, such as"),
        (["--size", "0,5"], "expected H,W, two whole numbers"),
        (["--out", "nowhere/lfw.npz"], "there is no folder"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, words, pictures, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(pictures), "--out", str(tmp_path / "lfw.npz"), *arguments])
    assert words in capsys.readouterr().err


def test_an_error_ends_the_command_and_leaves_nothing(pictures, tmp_path, capsys):
    out = tmp_path / "lfw.npz"
    assert main([str(pictures), "--out", str(out), "--crop", "70:300,0:10"]) == 1
    assert "crop: rows 70:300 and columns 0:10 do not lie in pictures of 250 rows" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_scikit_learn(home, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(home))
    assert_same(lfw_of_scikit_learn(), whole)
    with pytest.raises(BadFileError, match=r"lfw_home: scikit-learn has no pictures.*fetch_lfw_pairs\(data_home="):
        lfw_of_scikit_learn(tmp_path)


PEOPLE, DEV_PEOPLE = FILES["people.txt"], FILES["peopleDevTest.txt"]
TEN, DEV = FILES["pairs.txt"], FILES["pairsDevTrain.txt"]
BAD_LISTS = {
    "empty": (read_pairs, "", "it is empty"),
    "not text": (read_pairs, b"2\t2\nAJ_\xff", "at byte 7: it is no text"),
    "header": (read_pairs, TEN.replace("2\t2\n", "2\ttwo\n", 1), r"line 1: .* came '2\\ttwo'"),
    "three numbers": (read_pairs, TEN.replace("2\t2\n", "2\t2\t2\n", 1), "line 1: expected the number of folds"),
    "no header": (read_pairs, TEN[4:], "line 1: "),
    "a zero": (read_pairs, TEN.replace("2\t2\n", "0\t2\n", 1), "line 1: "),
    "cut off": (read_pairs, TEN[:-20], r"2 x \(2 \+ 2\) = 8 pairs, and 7 lines follow"),
    "too many": (read_pairs, DEV + "AJ_Cook\t1\t3\n", r"1 x \(2 \+ 2\) = 4 pairs, and 5 lines follow"),
    "a blank line": (read_pairs, DEV.replace("\nDi_E\t2\t3", "\n"), r"line 3: .* came ''"),
    "a name missing": (read_pairs, DEV.replace("Aaron_B\t1\tDi_E\t1", "Aaron_B\t1\t1"), "line 4: expected two people"),
    "a name more": (read_pairs, DEV.replace("Di_E\t2\t3", "Di_E\t2\tIvy_J\t1"), "line 3: expected .* of one person"),
    "one person as two": (read_pairs, DEV.replace("Aaron_B\t1\tDi_E\t1", "Di_E\t2\tDi_E\t1"), "line 4: "),
    "one picture twice": (read_pairs, DEV.replace("Di_E\t2\t3", "Di_E\t2\t2"), "line 3: "),
    "number 0": (read_pairs, DEV.replace("Di_E\t2\t3", "Di_E\t0\t3"), "line 3: "),
    "minus": (read_pairs, DEV.replace("Di_E\t2\t3", "Di_E\t-2\t3"), "line 3: "),
    "a fraction": (read_pairs, DEV.replace("Di_E\t2\t3", "Di_E\t2.5\t3"), "line 3: "),
    "another digit": (read_pairs, DEV.replace("Di_E\t2\t3", "Di_E\t²\t3"), "line 3: "),
    "very long": (read_pairs, DEV.replace("Di_E\t2\t3", "Di_E\t" + "9" * 5000 + "\t3"), "line 3: "),
    "people, cut off": (read_people, PEOPLE[:-9], "line 7 announces 5 people, and 4 lines follow"),
    "people, more": (read_people, DEV_PEOPLE + "Ivy_J\t1\n", r"line 7: expected the end .* came 'Ivy_J\\t1'"),
    "people, fewer announced": (read_people, PEOPLE.replace("4\nAJ", "3\nAJ"), "line 6: expected a number"),
    "people, more announced": (read_people, PEOPLE.replace("4\nAJ", "5\nAJ"), "line 7: expected a person .* came '5'"),
    "people, no fold": (read_people, "2\n1\nBo_C\t1\n", "line 4: expected a number: .* came the end"),
    "people, no header": (read_people, DEV_PEOPLE[2:], "line 1: expected a number"),
    "people, no number": (read_people, DEV_PEOPLE.replace("Bo_C\t1", "Bo_C\tone"), "line 2: expected a person"),
    "people, twice": (read_people, DEV_PEOPLE.replace("Flo_G", "Bo_C"), "line 5: Bo_C was on line 2 already"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_LISTS)
def test_a_list_that_is_none_is_refused_with_its_line(name, tmp_path):
    read, text, words = BAD_LISTS[name]
    (tmp_path / "list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadFileError, match=r"list\.txt.*" + words):
        read(tmp_path / "list.txt")


def test_line_ends_and_blank_ends_do_not_matter(tmp_path):
    for name, read in (("pairs.txt", read_pairs), ("people.txt", read_people)):
        (tmp_path / name).write_text(FILES[name])
        expected = read(tmp_path / name)
        for text in (FILES[name].replace("\n", "\r\n"), FILES[name].rstrip(), "\ufeff" + FILES[name] + "\n \n"):
            (tmp_path / name).write_bytes(text.encode())
            assert_same(read(tmp_path / name)[1:], expected[1:])
    with pytest.raises(BadFileError, match="nowhere: it cannot be read"):
        read_pairs(tmp_path / "nowhere")


BAD_TOGETHER = {
    "no picture": ("pairs", "Cy_D\t1\t2", "Cy_D\t1\t3", "pairs.txt: line 3: .* no picture Cy_D_0003, and of Cy_D .* 2"),
    "no person": ("pairsDevTest", "Cy_D", "Cy", "pairsDevTest.txt: line 3: .* no picture Cy_0002, and of Cy .* 0"),
    "a count": ("people", "Cy_D\t2", "Cy_D\t3", "people.txt: line 5: 3 pictures of Cy_D, and of Cy_D there are 2"),
    "nobody": ("people", "Cy_D\t2", "Cy_Dee\t2", "people.txt: line 5: 2 pictures of Cy_Dee, .* there are 0"),
    "on no list": ("peopleDevTest", "5\nBo_C\t1", "4", "peopleDevTest.txt: Bo_C, of whom there are 1 .* on no list"),
    "on both": ("peopleDevTest", "5\n", "6\nAJ_Cook\t3\n", "line 2: AJ_Cook is in .*peopleDevTrain.txt already"),
    "another fold": ("pairs", "Gus_H\t2", "Bo_C\t1", "line 8: this pair is in group 1, and Bo_C in group 0"),
    "tested on": ("pairsDevTrain", "Aaron_B\t1", "Flo_G\t1", "line 4: this pair is in group 0, and Flo_G in group 1"),
    "development pairs": ("pairs", TEN, DEV, "pairs.txt: it is a development list"),
    "folds": ("pairsDevTest", FILES["pairsDevTest.txt"], TEN, "pairsDevTest.txt: it has folds"),
    "folds of people": ("peopleDevTrain", FILES["peopleDevTrain.txt"], PEOPLE, "peopleDevTrain.txt: it has folds"),
    "development people": ("people", PEOPLE, DEV_PEOPLE, "people.txt: it is a development list"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TOGETHER)
def test_lists_that_do_not_fit_are_refused_with_their_line(name, pictures, tmp_path):
    file, was, now, words = BAD_TOGETHER[name]
    assert was in FILES[f"{file}.txt"]
    put_files(tmp_path, **{file: FILES[f"{file}.txt"].replace(was, now)})
    with pytest.raises(BadFileError, match=words):
        lfw_of_pictures(pictures, find_lists(tmp_path))


def test_a_person_in_two_folds_is_seen_without_lists_of_people(pictures, tmp_path):
    put_files(tmp_path, pairs=TEN.replace("Flo_G\t1\tGus_H\t2", "Flo_G\t1\tBo_C\t1"))
    with pytest.raises(BadFileError, match=r"line 4: this pair is in group 0, and Bo_C in group 1"):
        lfw_of_pictures(pictures, Lists(pairs=tmp_path / "pairs.txt"))
    with pytest.raises(ValueError, match="pairs_dev_train and pairs_dev_test belong together"):
        lfw_of_pictures(pictures, Lists(pairs_dev_train=tmp_path / "pairsDevTrain.txt"))
    with pytest.raises(ValueError, match="people_dev_train and people_dev_test belong together"):
        lfw_of_pictures(pictures, Lists(people_dev_test=tmp_path / "peopleDevTest.txt"))


def test_pictures_with_other_names_are_refused(tmp_path):
    (tmp_path / "Bo_C").mkdir()
    for file in ("Bo_C_1.jpg", "Bo_D_0001.png", "Bo_C_0000.png"):
        Image.new("RGB", (250, 250)).save(tmp_path / "Bo_C" / file)
        with pytest.raises(BadFileError, match=file + r": expected a name such as Bo_C_0001\.jpg"):
            lfw_of_pictures(tmp_path, Lists())
        (tmp_path / "Bo_C" / file).unlink()
    for file in ("Bo_C_0001.jpg", "Bo_C_0001.png"):
        Image.new("RGB", (250, 250)).save(tmp_path / "Bo_C" / file)
    with pytest.raises(BadFileError, match=r"Bo_C_0001.png: its folder holds two pictures Bo_C_0001"):
        lfw_of_pictures(tmp_path, Lists())


def without(key):
    return lambda arrays: arrays.pop(key)


def changed(key, index, value):
    def change(arrays):
        arrays[key] = arrays[key].copy()
        arrays[key][index] = value

    return change


def as_type(key, dtype):
    return lambda arrays: arrays.update({key: arrays[key].astype(dtype)})


BAD_ARCHIVES = {
    "no pictures": (without("images_delta"), "it lacks 'images_delta', and holds label"),
    "no labels": (without("label"), "it lacks 'label'"),
    "no same": (without("pairs_dev_test_same"), "it lacks 'pairs_dev_test_same'"),
    "no fold": (without("pairs_10folds_fold"), "it lacks 'pairs_10folds_fold'"),
    "half a protocol": (without("pairs_dev_test"), "pairs_dev_train and pairs_dev_test: expected both"),
    "objects": (as_type("names", object), "ValueError: Object arrays"),
    "reals": (as_type("images_delta", np.float32), "images_delta: expected .* came .* of float32"),
    "wide": (as_type("images_delta", np.uint16), "images_delta: expected uint8, came uint16"),
    "a label past the names": (changed("label", -1, 9), "label: expected pictures of each of the people 0 to 8"),
    "a label below 0": (changed("label", 0, -1), "label: expected"),
    "nobody's": (changed("label", 5, 4), "label: expected"),
    "fewer labels": (lambda a: a.update(label=a["label"][1:]), r"label: expected shape \[18\] .* came \(17,\)"),
    "a picture past the end": (changed("pairs_10folds", (2, 1), 18), "pairs_10folds: expected rows .* 0 to 17"),
    "a picture below 0": (changed("pairs_dev_test", (1, 0), -1), "pairs_dev_test: expected rows"),
    "three in a pair": (lambda a: a.update(pairs_10folds=a["pairs_10folds"].reshape(4, 4)), r"\[any, 2\]"),
    "no pairs": (lambda a: a.update(pairs_dev_test=np.zeros((0, 2), int), pairs_dev_test_same=np.zeros(0, bool)),
                 "pairs_dev_test: expected rows"),
    "same, or not": (changed("pairs_10folds_same", 3, True), "pairs_10folds_same: label says otherwise"),
    "numbers for same": (as_type("pairs_10folds_same", np.uint8), "pairs_10folds_same: expected .* kind 'b'"),
    "another fold": (changed("person_fold", 0, 1), r"pairs_10folds, row 0: this pair is in group 0, and AJ_Cook"),
    "a fold of a pair": (changed("pairs_10folds_fold", 4, 0), r"pairs_10folds, row 4: this pair is in group 0"),
    "a gap": (changed("pairs_10folds_fold", slice(4, 8), 255), r"_fold: expected .* every fold .*, came \[0, 255\]"),
    "before the first": (changed("pairs_10folds_fold", slice(0, 4), 2), r"every fold from 0 .*, came \[1, 2\]"),
    "another key": (lambda a: a.update(pictures=a["label"]), "expected the keys images_delta, .*; came pictures too"),
    "tested on": (changed("person_is_dev_test", 6, False), r"pairs_dev_test, row 0: .* in group 1, and Flo_G"),
    "fewer people": (lambda a: a.update(person_fold=a["person_fold"][1:]), r"person_fold: expected shape \[9\]"),
}  # fmt: skip


@pytest.fixture(scope="module")
def archive(whole, tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "lfw.npz"
    write_lfw(path, whole)
    return path


@pytest.mark.parametrize("name", BAD_ARCHIVES)
def test_an_archive_that_contradicts_itself_is_refused(name, archive, tmp_path):
    change, words = BAD_ARCHIVES[name]
    with np.load(archive) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(BadFileError, match=r"bad\.npz: .*" + words):
        read_lfw(tmp_path / "bad.npz")


def test_a_file_that_is_no_archive_is_refused(archive, tmp_path):
    data, path = archive.read_bytes(), tmp_path / "bad.npz"
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("images_delta.npy", b"no array")
    for bad in (b"", b"no archive", data[:-30], data[: len(data) // 2], other.getvalue()):
        path.write_bytes(bad)
        with pytest.raises(BadFileError, match=r"bad\.npz: (expected an archive|images_delta: expected shape)"):
            read_lfw(path)
    with pytest.raises(BadFileError, match=r"nowhere\.npz: expected an archive .*No such file"):
        read_lfw(tmp_path / "nowhere.npz")


def test_an_archive_that_would_fill_the_memory_is_refused(archive, monkeypatch):
    monkeypatch.setattr(lfw_module, "MOST_BYTES", 10_000)
    with pytest.raises(BadFileError, match=r"lfw\.npz: expected an archive of .* at most 10,000 bytes unpacked"):
        read_lfw(archive)


@pytest.mark.parametrize("seed", range(2))
def test_a_changed_byte_is_seen_or_changes_nothing(seed, archive, whole, tmp_path):
    random, path, refused = np.random.default_rng(seed), tmp_path / "bad.npz", 0
    for _ in range(10):
        data = bytearray(archive.read_bytes())
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        path.write_bytes(data)
        try:
            lfw = read_lfw(path)
        except BadFileError:
            refused += 1
        else:
            assert_same(lfw, whole)
    assert refused > 0


def test_the_help_names_every_list(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in LIST_FILES)
