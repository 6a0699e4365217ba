"""Units: how a dataset is cut, and publishing that is all or nothing, first one wins."""

import errno
import os
import stat

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_engine.store import sealed, units
from data_engine.store.units import UnitResult


@pytest.mark.parametrize(
    ("questions", "size"), [(0, 8), (1, 8), (8192, 8), (8193, 9), (100_000, 98), (262_144, 256), (10_000_000, 256)]
)
def test_the_unit_size_follows_from_the_number_of_questions_alone(questions, size):
    assert units.auto_unit_size(questions) == size


def test_units_cover_every_question_once_in_order():
    assert units.split_units(7, 3) == [range(0, 3), range(3, 6), range(6, 7)]
    assert units.split_units(0, 3) == []


def test_the_first_published_unit_stays(tmp_path):
    path = units.unit_path(tmp_path, "sampled_answer", 3)
    units.publish(path, pa.table({"a": [1]}))
    units.publish(path, pa.table({"a": [2]}))
    assert units.read_unit(tmp_path, "sampled_answer", 3).table.to_pydict() == {"a": [1]}
    assert units.published(tmp_path, "sampled_answer") == {3}
    assert [file.name for file in path.parent.iterdir()] == ["unit-00003.parquet"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(_table, path, _facts):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(units, "write_sealed", fail)
    path = units.unit_path(tmp_path, "sampled_answer", 0)
    with pytest.raises(OSError, match="disk full"):
        units.publish(path, pa.table({"a": [1]}))
    assert list(path.parent.iterdir()) == []


def test_only_unit_files_count_as_published(tmp_path):
    folder = tmp_path / "reward_logps"
    folder.mkdir()
    for name in ("unit-00001.parquet", ".unit-00002.parquet.ab12", "unit-00003.parquet.tmp", "unit-4.parquet", "x"):
        (folder / name).touch()
    assert units.published(tmp_path, "reward_logps") == {1}
    assert units.published(tmp_path, "no_such_stage") == set()


def test_missing_units_are_listed_in_runs():
    assert units.compressed([3, 4, 5, 9]) == "3-5, 9"
    # Those of the second of two shards, and a last run of three.
    odd = [*range(1, 2001, 2), 2003, 2004, 2005]
    first = "1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 33, 35, 37, 39"
    assert units.compressed(odd) == f"{first} and 983 others"
    assert units.compressed(odd[:20]) == first


def test_a_unit_holds_its_table_and_the_same_table_makes_the_same_bytes(tmp_path):
    table = pa.table({"idx": ["a", "b"], "token_ids": pa.array([[1, 2], []], pa.list_(pa.int32()))})
    for name in ("one", "other"):
        units.write_sealed(table, tmp_path / name, {"a fact": [1, None]})
    found = units.read_sealed(tmp_path / "one")
    assert found.table.to_pydict() == table.to_pydict()
    assert found.table.schema.metadata is None
    assert found.facts == {"a fact": [1, None]}
    assert sealed.read_facts(tmp_path / "one") == (found.facts, found.seal)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    # Whoever reads the file without this program sees a plain parquet file.
    assert pq.read_table(tmp_path / "one").to_pydict() == table.to_pydict()


def test_a_text_like_the_place_of_the_checksum_stays_as_it_is(tmp_path):
    """The footer repeats it as the smallest and the largest cell."""
    path, text = units.unit_path(tmp_path, "sampled_answer", 0), sealed.BLANK.decode()
    units.publish(path, pa.table({"a": [text]}))
    assert path.read_bytes().count(sealed.BLANK) >= 2
    assert units.read_unit(tmp_path, "sampled_answer", 0).table.to_pydict() == {"a": [text]}


def test_a_unit_with_any_byte_changed_is_set_aside_and_counts_as_missing(tmp_path):
    path = units.unit_path(tmp_path, "reward_logps", 7)
    table = pa.table({"sum": [0.5, -0.25]})
    units.publish(path, table)
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(units.DamagedUnitError, match="will be computed again"):
            units.read_unit(tmp_path, "reward_logps", 7)
        assert units.published(tmp_path, "reward_logps") == set()
    assert len(list((tmp_path / "damaged").iterdir())) == len(whole)
    units.publish(path, table)
    assert units.read_unit(tmp_path, "reward_logps", 7).table.equals(table)


@pytest.mark.parametrize("read", [units.read_unit, units.read_unit_facts])
def test_a_damaged_unit_that_another_rank_has_computed_again_meanwhile_is_read(tmp_path, monkeypatch, read):
    """The other one comes between this one's look at the damage and its setting aside."""
    path, table = units.unit_path(tmp_path, "reward_logps", 7), pa.table({"sum": [0.5, -0.25]})
    units.publish(path, table)
    whole, rename = path.read_bytes(), os.rename
    path.write_bytes(whole[:-9])

    def late(source, target):
        path.write_bytes(whole)
        rename(source, target)

    monkeypatch.setattr(units.os, "rename", late)
    found = read(tmp_path, "reward_logps", 7)
    assert (found.facts if read is units.read_unit else found[0]) == {}
    assert path.read_bytes() == whole
    assert not list((tmp_path / "damaged").iterdir())


def test_a_damaged_unit_that_another_rank_has_set_aside_meanwhile_is_gone(tmp_path, monkeypatch):
    path, rename = units.unit_path(tmp_path, "reward_logps", 7), os.rename
    path.parent.mkdir()
    path.write_bytes(b"")

    def late(source, target):
        path.unlink(missing_ok=True)
        rename(source, target)

    monkeypatch.setattr(units.os, "rename", late)
    with pytest.raises(units.DamagedUnitError, match="is gone"):
        units.read_unit(tmp_path, "reward_logps", 7)


def test_the_sizes_of_units_are_those_that_are_still_there(tmp_path, monkeypatch):
    for unit in (1, 2):
        units.publish(units.unit_path(tmp_path, "reward_logps", unit), pa.table({"sum": [0.5]}))
    listdir = os.listdir

    def then_lost(folder):
        found = listdir(folder)
        units.unit_path(tmp_path, "reward_logps", 2).unlink()
        return found

    monkeypatch.setattr(units.os, "listdir", then_lost)
    assert units.sizes(tmp_path, "reward_logps") == [units.unit_path(tmp_path, "reward_logps", 1).stat().st_size]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all"])
def test_a_unit_that_is_cut_off_or_something_else_is_set_aside(tmp_path, content):
    path = units.unit_path(tmp_path, "sampled_answer", 0)
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(units.DamagedUnitError, match="is no whole unit"):
        units.read_unit(tmp_path, "sampled_answer", 0)
    with pytest.raises(units.DamagedUnitError, match="is gone"):
        units.read_unit(tmp_path, "sampled_answer", 0)


def test_a_plain_parquet_file_in_a_units_place_is_no_unit(tmp_path):
    path = units.unit_path(tmp_path, "sampled_answer", 0)
    path.parent.mkdir()
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(units.DamagedUnitError):
        units.read_unit(tmp_path, "sampled_answer", 0)


def test_a_file_that_a_stale_listing_does_not_show_is_not_missing(tmp_path, monkeypatch):
    for unit in (0, 2):
        units.publish(units.unit_path(tmp_path, "sampled_answer", unit), pa.table({"a": [1]}))
    monkeypatch.setattr(units.os, "listdir", lambda _folder: ["unit-00000.parquet"])
    assert units.published(tmp_path, "sampled_answer") == {0}
    assert units.missing(tmp_path, "sampled_answer", range(4)) == [1, 3]


def test_of_two_that_are_in_the_middle_of_publishing_the_first_wins(tmp_path, monkeypatch):
    """The other one publishes after this one has looked, and before it links."""
    path = units.unit_path(tmp_path, "sampled_answer", 0)
    write = units.write_sealed

    def slow(table, place, facts):
        write(table, place, facts)
        monkeypatch.setattr(units, "write_sealed", write)
        units.publish(path, pa.table({"whose": ["the other's"]}))

    monkeypatch.setattr(units, "write_sealed", slow)
    units.publish(path, pa.table({"whose": ["mine"]}))
    assert units.read_unit(tmp_path, "sampled_answer", 0).table.to_pydict() == {"whose": ["the other's"]}
    assert [file.name for file in path.parent.iterdir()] == ["unit-00000.parquet"]


def test_a_unit_is_on_the_disk_before_it_has_its_name_and_the_name_before_it_counts(tmp_path, monkeypatch):
    """A power cut after publishing leaves the unit; one before leaves no file under a unit's name."""
    done, link, fsync = [], os.link, os.fsync

    def synced(descriptor):
        done.append(f"sync {'folder' if stat.S_ISDIR(os.fstat(descriptor).st_mode) else 'file'}")
        fsync(descriptor)

    monkeypatch.setattr(units.os, "fsync", synced)
    monkeypatch.setattr(units.os, "link", lambda *paths: done.append("link") or link(*paths))
    units.publish(units.unit_path(tmp_path, "sampled_answer", 0), pa.table({"a": [1]}))
    assert done == ["sync file", "link", "sync folder"]


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE])
def test_a_unit_that_another_host_removes_while_it_is_read_is_gone(tmp_path, monkeypatch, number):
    units.publish(units.unit_path(tmp_path, "sampled_answer", 0), pa.table({"a": [1]}))

    def stale(*_):
        raise OSError(number, os.strerror(number))

    for function in ("read_sealed", "read_facts"):
        monkeypatch.setattr(units, function, stale)
    for read in (units.read_unit, units.read_unit_facts):
        with pytest.raises(units.DamagedUnitError, match="is gone"):
            read(tmp_path, "sampled_answer", 0)
    monkeypatch.setattr(units.os, "listdir", stale)
    assert units.published(tmp_path, "sampled_answer") == set()


def test_a_footer_with_any_byte_of_its_facts_changed_is_believed_in_nothing(tmp_path):
    """A start reads footers alone: a flipped bit must not make a unit one of another run, which is refused."""
    path = units.unit_path(tmp_path, "sampled_answer", 0)
    units.publish(path, pa.table({"a": [1]}), {"made_from": {"bound": {"dataset": "abc", "seed": 12}}})
    whole = path.read_bytes()
    start = whole.index(b'{"made_from"')
    for position in range(start, start + len('{"made_from": {"bound": {"dataset": "abc", "seed": 12}}}')):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(units.DamagedUnitError, match="will be computed again"):
            units.read_unit_facts(tmp_path, "sampled_answer", 0)


def test_answers_left_out_alone_come_behind_rows_and_none_of_a_row_that_another_stage_left_out(tmp_path):
    table = pa.table({"idx": ["a", "b", "c"]})
    alone = [("a", 3, "too long"), ("b", 0, "too long"), ("c", 1, "too long")]
    first = UnitResult(table, [("d", "broken")], answers_left_out=alone)
    second = UnitResult(table, [("b", "not finite")], answers_left_out=[("a", 3, "longer"), ("a", 4, "longer")])
    for stage, result in (("instruct_logps", first), ("reward_logps", second)):
        units.publish_result(tmp_path, stage, 0, result, {"bound": {}})
    common = {"missing": False, "unit": 0}
    assert list(units.left_out(tmp_path)) == [
        {"idx": "d", "stage": "instruct_logps", "reason": "broken", **common},
        {"idx": "b", "stage": "reward_logps", "reason": "not finite", **common},
        {"idx": "a", "sample_index": 3, "stage": "instruct_logps", "reason": "too long", **common},
        {"idx": "c", "sample_index": 1, "stage": "instruct_logps", "reason": "too long", **common},
        {"idx": "a", "sample_index": 4, "stage": "reward_logps", "reason": "longer", **common},
    ]


def test_rows_left_out_are_in_the_file_of_their_unit(tmp_path):
    """One file and one seal: no kill can leave one without the other."""
    result = UnitResult(pa.table({"idx": ["a"]}), [("b", "broken")], [("c", "not there")])
    units.publish_result(tmp_path, "sampled_answer", 4, result, {"bound": {}})
    assert [path.name for path in tmp_path.rglob("*")] == ["sampled_answer", "unit-00004.parquet"]
    common = {"stage": "sampled_answer", "unit": 4}
    assert list(units.left_out(tmp_path)) == [
        {"idx": "b", "reason": "broken", "missing": False, **common},
        {"idx": "c", "reason": "not there", "missing": True, **common},
    ]
    path = units.unit_path(tmp_path, "sampled_answer", 4)
    path.write_bytes(path.read_bytes().replace(b"broken", b"broker"))
    with pytest.raises(units.DamagedUnitError):
        units.read_unit(tmp_path, "sampled_answer", 4)
