"""The pure parts of the page server example: records, logs, layers, versions, the source, the wire.

What its tasks do together is shown by the demo, which checks itself.
"""

import hashlib
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from quiesce.examples.pageserver import layers, remote, source, versions, wal, wire
from quiesce.examples.pageserver.reader import (
    LayerNotLocalError,
    TimelineReader,
    VersionCollectedError,
    VersionUnknownError,
)
from quiesce.examples.pageserver.tenant_paths import TenantFile, Work, slug
from quiesce.examples.pageserver.timeline import Manifest, Timeline

PAGE = 64
LAST = 5
KEY = "tenant\0timeline"


def original_bytes(size: int) -> bytes:
    return hashlib.shake_128(b"original").digest(size)


def new_timeline(folder: Path) -> Timeline:
    timeline = Timeline(folder / "timeline")
    timeline.create()
    return timeline


def nothing() -> None:
    """A checkpoint that never stops anything."""


records_lists = st.lists(st.tuples(st.integers(0, 9), st.binary(max_size=40)), max_size=12).map(
    lambda pages: [
        wal.Record(10 * (number + 1), page, data) for number, (page, data) in enumerate(pages)
    ]
)


# Records and logs


@given(records_lists, st.data())
def test_a_log_cut_anywhere_gives_the_whole_records_before_the_cut(
    records: list[wal.Record], data: st.DataObject
) -> None:
    encoded = [wal.encode(record) for record in records]
    log = b"".join(encoded)
    cut = data.draw(st.integers(0, len(log)))
    whole = 0
    while whole < len(records) and sum(map(len, encoded[: whole + 1])) <= cut:
        whole += 1
    found = wal.scan(log[:cut])
    assert found.records == records[:whole]
    assert found.end == sum(map(len, encoded[:whole]))
    assert found.torn == (found.end < cut)


@given(records_lists.filter(bool), st.data())
def test_a_changed_byte_ends_the_log_at_its_record(
    records: list[wal.Record], data: st.DataObject
) -> None:
    encoded = [wal.encode(record) for record in records]
    log = bytearray(b"".join(encoded))
    at = data.draw(st.integers(0, len(log) - 1))
    log[at] ^= data.draw(st.integers(1, 255))
    before = 0
    while sum(map(len, encoded[: before + 1])) <= at:
        before += 1
    assert wal.scan(bytes(log)).records == records[:before]


def test_what_was_written_twice_is_no_record() -> None:
    record = wal.encode(wal.Record(10, 1, b"page"))
    assert wal.scan(record + record) == wal.Scan([wal.Record(10, 1, b"page")], len(record), True)
    assert wal.scan(record, after=10) == wal.Scan([], 0, True)


def test_a_writer_cuts_a_torn_tail_and_goes_on_behind_it(tmp_path: Path) -> None:
    whole = [wal.Record(10, 0, b"a" * 30), wal.Record(20, 1, b"b" * 30)]
    last = wal.encode(wal.Record(30, 2, b"c" * 30))
    for kept in range(len(last)):
        timeline = new_timeline(tmp_path / str(kept))
        with timeline.open_log() as log:
            for record in whole:
                log.append(record)
        (segment,) = wal.segments(timeline.log)
        with open(segment, "ab") as file:
            file.write(last[:kept])
        with timeline.open_log() as log:
            assert (log.cut, log.position) == (kept, 20)
            log.append(wal.Record(40, 3, b"d"))
        assert wal.read_sealed(segment) == [*whole, wal.Record(40, 3, b"d")]


def test_damage_in_a_sealed_segment_is_no_torn_tail(tmp_path: Path) -> None:
    timeline = new_timeline(tmp_path)
    with timeline.open_log() as log:
        log.append(wal.Record(10, 0, b"a" * 30))
        log.append(wal.Record(20, 0, b"b" * 30))
        log.roll()
    (segment,) = timeline.sealed()
    content = bytearray(segment.read_bytes())
    content[-1] ^= 1
    segment.write_bytes(content)
    with pytest.raises(wal.LogDamagedError, match="sealed"):
        timeline.flush()
    assert segment.exists()


def test_a_log_has_one_writer_and_only_grows(tmp_path: Path) -> None:
    timeline = new_timeline(tmp_path)
    with timeline.open_log() as log:
        with pytest.raises(wal.LogInUseError):
            timeline.open_log()
        log.append(wal.Record(10, 0, b"a"))
        with pytest.raises(ValueError, match="comes after"):
            log.append(wal.Record(10, 0, b"b"))
    with timeline.open_log() as log:
        assert log.position == 10


def test_rolling_an_empty_segment_does_nothing(tmp_path: Path) -> None:
    timeline = new_timeline(tmp_path)
    with timeline.open_log() as log:
        log.roll()
        log.append(wal.Record(10, 0, b"a"))
        log.roll()
        log.roll()
    assert [wal.segment_start(path) for path in wal.segments(timeline.log)] == [0, 10]
    assert [wal.segment_start(path) for path in timeline.sealed()] == [0]


# Versions


@pytest.mark.parametrize("size", [1, PAGE - 1, PAGE, PAGE + 1, 10 * PAGE + 7])
def test_a_stream_brings_every_version_and_the_last_is_the_original(size: int) -> None:
    original = original_bytes(size)
    pages: dict[int, bytes] = {}
    seen = []
    for record in versions.stream(original, KEY, LAST, PAGE):
        if record.is_commit:
            commit = wal.parse_commit(record)
            content = b"".join(pages[number] for number in sorted(pages))
            expected = versions.version_bytes(original, KEY, commit.version, LAST, PAGE)
            assert (content, commit.size) == (expected, size)
            assert (content == original) == (commit.version == LAST)
            seen.append(commit.version)
        else:
            pages[record.page] = record.data
    assert seen == [1, 2, 3, 4, 5]


def test_a_stream_resumes_behind_any_record() -> None:
    original = original_bytes(7 * PAGE + 3)
    whole = list(versions.stream(original, KEY, LAST, PAGE))
    assert len(whole) == versions.stream_length(len(original), KEY, LAST, PAGE)
    for number, record in enumerate(whole):
        assert list(versions.stream(original, KEY, LAST, PAGE, record.lsn)) == whole[number + 1 :]


@given(st.binary(min_size=1, max_size=200), st.integers(1, 9), st.integers(0, 9))
def test_a_mask_taken_twice_is_none(page: bytes, version: int, number: int) -> None:
    once = versions.mask(page, KEY, version, number)
    assert len(once) == len(page)
    assert versions.mask(once, KEY, version, number) == page


# Layers


def newest(records: list[wal.Record], page: int, lsn: int) -> bytes | None:
    images = [r for r in records if r.page == page and r.lsn <= lsn]
    return max(images, key=lambda r: r.lsn).data if images else None


@given(records_lists)
def test_a_layer_finds_what_a_search_through_its_records_finds(records: list[wal.Record]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ordered = layers.merge([records])
        info = layers.write_layer(folder, 1, 0, 200, ordered)
        path = folder / info.name
        assert layers.read_layer(path) == ordered
        assert (info.entries, info.size) == (len(records), path.stat().st_size)
        assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        layer = layers.Layer(path)
        for page in range(11):
            for lsn in range(0, 150, 5):
                assert layer.find(page, lsn) == newest(records, page, lsn)
        layer.close()
        assert [entry.name for entry in folder.iterdir()] == [info.name]


@given(records_lists, st.integers(0, 3))
def test_merging_parts_gives_the_whole(records: list[wal.Record], parts: int) -> None:
    pieces = [records[start :: parts + 1] for start in range(parts + 1)]
    assert layers.merge([*pieces, records]) == layers.merge([records])


def test_two_images_of_one_page_at_one_lsn_are_damage() -> None:
    with pytest.raises(layers.LayerDamagedError):
        layers.merge([[wal.Record(10, 1, b"a")], [wal.Record(10, 1, b"b")]])


@given(records_lists, st.integers(0, 150))
def test_collecting_keeps_what_any_later_read_needs_and_nothing_else(
    records: list[wal.Record], horizon: int
) -> None:
    kept = layers.keep_from(layers.merge([records]), horizon)
    for page in range(10):
        for lsn in range(horizon, 160, 5):
            assert newest(kept, page, lsn) == newest(records, page, lsn)
        assert sum(r.page == page and r.lsn <= horizon for r in kept) <= 1


@pytest.mark.parametrize("place", ["page", "index", "footer", "end"])
def test_a_damaged_layer_is_noticed(tmp_path: Path, place: str) -> None:
    info = layers.write_layer(tmp_path, 1, 0, 20, [wal.Record(10, 1, b"x" * 50)])
    path = tmp_path / info.name
    content = bytearray(path.read_bytes())
    if place == "end":
        del content[-1:]
    else:
        content[{"page": 20, "index": 60, "footer": -20}[place]] ^= 1
    path.write_bytes(content)
    with pytest.raises(layers.LayerDamagedError):
        layers.read_layer(path)


# Timelines: whatever is done in whatever order, what is kept reads as it must


class Model:
    """A timeline and what it must hold."""

    def __init__(self, folder: Path, size: int) -> None:
        self.timeline = new_timeline(folder)
        self.remote = folder / "remote"
        self.original = original_bytes(size)
        self.stream = list(versions.stream(self.original, KEY, LAST, PAGE))
        self.arrived = 0
        self.committed = 0
        self.reader = TimelineReader(self.timeline, PAGE)

    def append(self, count: int) -> None:
        with self.timeline.open_log() as log:
            assert log.position == (self.stream[self.arrived - 1].lsn if self.arrived else 0)
            for record in self.stream[self.arrived : self.arrived + count]:
                log.append(record)
                self.arrived += 1
                if record.is_commit:
                    self.committed = wal.parse_commit(record).version

    def crash(self, torn: int) -> None:
        """A writer dies inside a record."""
        if self.arrived < len(self.stream):
            encoded = wal.encode(self.stream[self.arrived])
            with self.timeline.open_log():
                pass  # there is a segment now
            with open(wal.segments(self.timeline.log)[-1], "ab") as file:
                file.write(encoded[: torn % len(encoded)])

    def roll(self, _: int) -> None:
        with self.timeline.open_log() as log:
            log.roll()

    def flush(self, _: int) -> None:
        self.timeline.flush()

    def compact(self, _: int) -> None:
        self.timeline.compact(2)

    def collect(self, retained: int) -> None:
        self.timeline.collect(1 + retained % LAST)

    def upload(self, drop: int) -> None:
        remote.upload(self.timeline, self.remote, nothing)
        assert remote.is_settled(self.timeline, self.remote)
        if drop % 2:
            remote.drop_local(self.timeline, self.remote)

    def fetch(self, _: int) -> None:
        for name in self.timeline.missing():
            remote.download(self.timeline, self.remote, name, nothing)

    def check(self) -> None:
        """Read all that is kept, with a reader that saw it all happen and with a new one."""
        with TimelineReader(self.timeline, PAGE) as fresh:
            self.reader.refresh()
            for reader in (self.reader, fresh):
                self._check(reader)

    def _check(self, reader: TimelineReader) -> None:
        horizon = self.timeline.manifest().horizon
        assert list(reader.available()) == list(range(horizon, self.committed + 1))
        for version in range(1, LAST + 1):
            if version < horizon:
                with pytest.raises(VersionCollectedError):
                    reader.read(version, 0)
            elif version > self.committed:
                with pytest.raises(VersionUnknownError):
                    reader.read(version, 0)
            else:
                content = b"".join(
                    self._read(reader, version, page) for page in range(reader.page_count(version))
                )
                expected = versions.version_bytes(self.original, KEY, version, LAST, PAGE)
                assert content == expected

    def _read(self, reader: TimelineReader, version: int, page: int) -> bytes:
        while True:
            try:
                return reader.read(version, page)
            except LayerNotLocalError as missing:
                name = missing.name
            assert name in self.timeline.missing()
            assert remote.download(self.timeline, self.remote, name, nothing) > 0


ACTIONS: dict[str, Callable[[Model, int], None]] = {
    "append": Model.append,
    "crash": Model.crash,
    "roll": Model.roll,
    "flush": Model.flush,
    "compact": Model.compact,
    "collect": Model.collect,
    "upload": Model.upload,
    "fetch": Model.fetch,
}


@hypothesis_settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 5 * PAGE),
    st.lists(st.tuples(st.sampled_from(sorted(ACTIONS)), st.integers(0, 12)), max_size=40),
)
def test_every_kept_version_reads_as_it_must_whatever_is_done(
    size: int, actions: list[tuple[str, int]]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = Model(folder, size)
        for action, number in actions:
            ACTIONS[action](model, number)
            model.check()
        model.append(len(model.stream))
        model.roll(0)
        model.flush(0)
        model.fetch(0)
        model.compact(0)
        model.collect(1)
        model.check()
        assert model.committed == LAST
        assert model.timeline.manifest().horizon >= LAST - 1
        model.reader.close()


def test_a_reader_does_not_take_flushed_log_for_the_newest(tmp_path: Path) -> None:
    """A segment that a reader knows may be flushed together with a newer one that it never saw."""
    timeline = new_timeline(tmp_path)
    with timeline.open_log() as log:
        log.append(wal.Record(10, 0, b"old"))
        log.append(wal.commit_record(20, 1, 3))
        reader = TimelineReader(timeline, PAGE)
        log.roll()
        log.append(wal.Record(30, 0, b"new"))
        log.append(wal.commit_record(40, 2, 3))
        log.roll()
    known = dict(reader._segments)
    timeline.flush()
    reader.refresh()
    reader._segments = known  # as if the names had been read before all this
    assert (reader.read(1, 0), reader.read(2, 0)) == (b"old", b"new")
    reader.close()


def test_a_reader_goes_on_when_its_layer_is_superseded_under_it(tmp_path: Path) -> None:
    timeline = new_timeline(tmp_path)
    with timeline.open_log() as log:
        for number in (1, 2):
            log.append(wal.Record(20 * number, 0, b"page"))
            log.append(wal.commit_record(20 * number + 10, number, 4))
            log.roll()
            timeline.flush()
    reader = TimelineReader(timeline, PAGE)
    assert timeline.compact(2) == 2
    assert reader.read(2, 0) == b"page"
    with pytest.raises(IndexError):
        reader.read(2, 1)
    reader.close()


def test_a_flush_that_was_killed_before_it_removed_the_log_is_harmless(tmp_path: Path) -> None:
    timeline = new_timeline(tmp_path)
    with timeline.open_log() as log:
        log.append(wal.Record(10, 0, b"page"))
        log.append(wal.commit_record(20, 1, 4))
        log.roll()
    (segment,) = timeline.sealed()
    content = segment.read_bytes()
    assert timeline.flush() == 2
    segment.write_bytes(content)
    (timeline.layers / "leftover.layer").touch()
    assert timeline.remove_leftovers() == 1
    assert timeline.flush() == 0
    assert timeline.sealed() == []
    assert len(timeline.manifest().layers) == 1
    with TimelineReader(timeline, PAGE) as reader:
        assert reader.read(1, 0) == b"page"


def test_manifests_survive_their_text() -> None:
    info = layers.LayerInfo("name", 1, 2, 3, 4, "hash")
    manifest = Manifest(layers=(info,), flushed=2, commits={1: (2, 3)}, horizon=1, serial=7)
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_nothing_comes_back_after_a_timeline_was_removed(tmp_path: Path) -> None:
    model = Model(tmp_path, 3 * PAGE)
    model.append(9)
    model.roll(0)
    shutil.rmtree(model.timeline.folder)
    timeline = model.timeline
    for action in (
        timeline.open_log,
        timeline.flush,
        timeline.compact,
        lambda: timeline.collect(1),
        timeline.remove_leftovers,
        timeline.sealed,
        model.reader.refresh,
        lambda: TimelineReader(timeline, PAGE),
        lambda: remote.upload(timeline, model.remote, nothing),
        lambda: remote.download(timeline, model.remote, "name", nothing),
        lambda: layers.write_atomic(timeline.size_file, b"{}"),
    ):
        with pytest.raises(FileNotFoundError):
            action()
    assert list(tmp_path.iterdir()) == []


# The remote store


def test_a_damaged_copy_is_not_taken_for_the_layer(tmp_path: Path) -> None:
    model = Model(tmp_path, 3 * PAGE)
    model.append(9)
    model.roll(0)
    model.flush(0)
    model.upload(1)
    (name,) = model.timeline.missing()
    content = bytearray((model.remote / name).read_bytes())
    content[12] ^= 1
    (model.remote / name).write_bytes(content)
    with pytest.raises(layers.LayerDamagedError):
        remote.download(model.timeline, model.remote, name, nothing)
    assert list(model.timeline.layers.iterdir()) == []


def test_an_upload_that_is_stopped_goes_on_next_time(tmp_path: Path) -> None:
    model = Model(tmp_path, 3 * PAGE)
    for _ in range(3):
        model.append(5)
        model.roll(0)
        model.flush(0)
    calls = iter([None, None])

    def stop_at_the_third() -> None:
        if next(calls, "stop") == "stop":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remote.upload(model.timeline, model.remote, stop_at_the_third)
    assert remote.index(model.remote) == Manifest()
    assert remote.drop_local(model.timeline, model.remote) == 0
    assert remote.upload(model.timeline, model.remote, nothing) == 1
    assert remote.index(model.remote) == model.timeline.manifest()
    model.timeline.compact()
    assert remote.upload(model.timeline, model.remote, nothing) == 1
    assert len(list(model.remote.glob("*.layer"))) == 1


def test_a_timeline_can_be_attached_from_its_remote_copy(tmp_path: Path) -> None:
    model = Model(tmp_path, 3 * PAGE)
    model.append(len(model.stream))
    model.roll(0)
    model.flush(0)
    model.upload(0)
    shutil.rmtree(model.timeline.folder)
    model.timeline.create(remote.index(model.remote))
    model.reader = TimelineReader(model.timeline, PAGE)
    model.check()
    model.reader.close()
    with model.timeline.open_log() as log:
        assert log.position == model.stream[-1].lsn


# The source and the folders


def make_tree(folder: Path, files: dict[str, int]) -> None:
    for name, size in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(original_bytes(size))


def test_the_source_takes_what_it_says_and_counts_the_rest(tmp_path: Path) -> None:
    make_tree(
        tmp_path,
        {
            "loose": 5,
            "a/1": 10,
            "a/2": 20,
            "a/deep/3": 30,
            "a/empty": 0,
            "a/.hidden": 7,
            "a/__pycache__/x": 7,
            "b/large": 2000,
            "b/small": 6,
            "c/1": 4,
            ".git/x": 9,
            "nothing/empty": 0,
        },
    )
    (tmp_path / "c" / "link").symlink_to(tmp_path / "a" / "1")
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    limits = source.Limits(tenants=3, timelines_per_tenant=2, file_bytes=1000)
    plan = source.scan(tmp_path, limits)
    assert {t: [f.timeline for f in files] for t, files in plan.tenants.items()} == {
        "_root": ["loose"],
        "a": ["1", "2"],
        "b": ["small"],
    }
    assert plan.found == source.Found(tenants=5, files=9, size=5 + 60 + 2006 + 4, complete=True)
    assert plan.size == 5 + 30 + 6
    for file in plan.files:
        assert file.sha256 == hashlib.sha256(Path(file.path).read_bytes()).hexdigest()


def test_a_folder_may_have_the_name_of_the_root_tenant(tmp_path: Path) -> None:
    make_tree(tmp_path, {"loose": 5, "_root/x": 5})
    assert set(source.scan(tmp_path).tenants) == {"_root", "_root_"}


def test_a_tree_too_large_to_count_is_not_counted(tmp_path: Path) -> None:
    make_tree(tmp_path, {f"a/{number}": 5 for number in range(10)})
    plan = source.scan(tmp_path, source.Limits(looked_at=4))
    assert (plan.found.files, plan.found.complete, len(plan.files)) == (4, False, 4)


@pytest.mark.parametrize("files", [{}, {"a/empty": 0}, {".a/x": 5}])
def test_a_folder_with_nothing_to_serve_is_refused(tmp_path: Path, files: dict[str, int]) -> None:
    make_tree(tmp_path, files)
    with pytest.raises(source.NoSourceError, match="Give a folder"):
        source.scan(tmp_path)
    with pytest.raises(source.NoSourceError, match="no folder"):
        source.scan(tmp_path / "absent")


def test_a_tenant_is_described_by_files_in_its_own_folder(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", {"a/ü/1": 10, "a/2": 20})
    work = Work(tmp_path / "work")
    plan = source.scan(tmp_path / "tree")
    work.create(plan, source.Settings(versions=7))
    planned = work.read_plan("a")
    with pytest.raises(FileNotFoundError):
        work.write_tenant(planned)
    with pytest.raises(FileNotFoundError):
        work.read_tenant("a")
    assert work.attached() == []
    work.tenant("a").mkdir()
    work.write_tenant(planned)
    assert work.attached() == ["a"]
    assert work.read_tenant("a") == TenantFile(
        tenant="a",
        active=False,
        settings=source.Settings(versions=7),
        timelines={file.timeline: file for file in plan.files},
    )


def test_folder_names_of_timelines_are_short_plain_and_different() -> None:
    names = {slug(timeline) for timeline in ("a/b", "a-b", "ä", "x" * 300, "../..", ".")}
    assert len(names) == 6
    for name in names:
        assert len(name) <= 60
        assert "/" not in name
        assert not name.startswith(".")


# The wire


def test_messages_arrive_whole_however_they_are_cut() -> None:
    left, right = socket.socketpair()
    sender, receiver = wire.Channel(left), wire.Channel(right)
    sent = [({"page": number}, b"x" * number) for number in range(50)]
    for header, payload in sent:
        sender.send(header, payload)
    assert [receiver.receive() for _ in sent] == [wire.Message(h, p) for h, p in sent]
    sender.close()
    assert receiver.receive() is None
    receiver.close()


def test_a_channel_watches_another_descriptor_while_it_waits() -> None:
    left, right = socket.socketpair()
    stop, stopper = socket.socketpair()
    with left, stop, stopper:
        channel = wire.Channel(right)
        stopper.send(b"!")
        with pytest.raises(wire.StopAskedError):
            channel.receive(watch=stop.fileno())
        channel.close()


@pytest.mark.parametrize(
    "nonsense",
    [b"\xff" * 8, b"\0\0\0\1\0\0\0\0x", b"\0\0\0\2\0\0\0\x0012", b"\0\0\0\2\0\0"],
    ids=["too large", "no JSON", "no object", "cut short"],
)
def test_nonsense_breaks_the_connection_and_nothing_else(nonsense: bytes) -> None:
    left, right = socket.socketpair()
    channel = wire.Channel(right)
    with left:
        left.sendall(nonsense)
    with pytest.raises(wire.ConnectionBrokenError):
        channel.receive()
    channel.close()
