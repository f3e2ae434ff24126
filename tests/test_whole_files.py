"""Files that have their names only once they are whole."""

import os

import pytest

from whole_files import whole


def test_what_is_written_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    path, done = tmp_path / "a.json", []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: done.append(("fsync", os.fstat(file).st_size)) or fsync(file))
    monkeypatch.setattr(os, "replace", lambda part, to: done.append(("replace", to)) or replace(part, to))
    with whole(path) as part:
        part.write_text("all of it")
        assert not path.exists()
    assert done == [("fsync", 9), ("replace", path)]
    assert path.read_text() == "all of it"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ended_by", [ValueError, KeyboardInterrupt, SystemExit])
def test_what_is_not_finished_leaves_the_old_file_and_nothing_else(ended_by, tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def written():
        with whole(path) as part:
            part.write_text("half")
            raise ended_by

    with pytest.raises(ended_by):
        written()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
