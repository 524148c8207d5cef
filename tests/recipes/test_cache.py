from __future__ import annotations

from pathlib import Path

import pytest

from sam_algos.recipes.cache import cached

Patch = pytest.MonkeyPatch


def count(value: str = "x", key: object = 1) -> tuple[str, bool]:
    """What is returned, and whether it was made."""
    made = []

    def make() -> str:
        made.append(value)
        return value

    found = cached("word", key, make, save=lambda text, path: path.write_text(text), load=Path.read_text)
    return found, bool(made)


def test_a_value_is_made_once_for_each_key(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    assert count("first") == ("first", True)
    assert count("second") == ("first", False)
    assert count("third", key={"version": "2"}) == ("third", True)
    assert {path.name[:5] for path in (tmp_path / "new" / "sam_algos").iterdir()} == {"word-"}


@pytest.mark.parametrize("given", ["", "relative"])
def test_the_home_folder_is_used_without_a_valid_setting(tmp_path: Path, monkeypatch: Patch, given: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    monkeypatch.chdir(tmp_path)
    count()
    assert len(list((tmp_path / ".cache" / "sam_algos").iterdir())) == 1


def test_a_damaged_file_is_made_again(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    count()
    (file,) = (tmp_path / "sam_algos").iterdir()
    file.write_bytes(b"\xff\xfe\xfa")
    assert count() == ("x", True)
    assert count() == ("x", False)


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: Patch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [count(), count()] == [("x", True), ("x", True)]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def save(value: str, path: Path) -> None:
        path.write_text(value[:1])
        raise OSError(28, "No space left on device")

    assert cached("word", 1, lambda: "whole", save=save, load=Path.read_text) == "whole"
    assert list((tmp_path / "sam_algos").iterdir()) == []


def test_old_files_of_a_name_give_way_to_new_ones(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    other = tmp_path / "sam_algos" / "other-file"
    for key in range(20):
        count(key=key)
        other.touch()
    kept = {path.name for path in (tmp_path / "sam_algos").iterdir()}
    assert len(kept) == 16 + 1 and other.name in kept
    assert count(key=19) == ("x", False)
