"""A checkpoint is whole or absent; the shards here are plain files, DeepSpeed's own are in the training tests."""

import contextlib
import os
from pathlib import Path

import pytest

from tracking import checkpoints
from tracking.checkpoints import Manifest, NoWholeCheckpointError, Retention
from tracking.files import read_json, write_json
from tracking.intents import Intent, acknowledge, put_intent
from tracking.ownership import AttemptKey, Owner, OwnershipLostError


def save(folder: Path, step: int, before_rename=lambda: None, contents: bytes = b"shard") -> Path:
    tag = checkpoints.temporary_tag(step, "7-000")
    temporary = folder / tag
    temporary.mkdir(parents=True)
    for rank in range(2):
        (temporary / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_bytes(contents + bytes([rank]))
    (temporary / "mp_rank_00_model_states.pt").write_bytes(contents)
    records = {}
    for rank in range(2):
        records |= checkpoints.record_files(temporary, checkpoints.files_of_rank(temporary, rank))
    manifest = Manifest(step, 2, 1, "abc", None, records)
    return checkpoints.commit(folder, tag, manifest, before_rename)


def test_each_rank_records_its_own_files_and_all_are_recorded(tmp_path: Path):
    checkpoint = save(tmp_path, 100)
    manifest = checkpoints.verify(checkpoint)
    assert set(manifest.files) == {path.name for path in checkpoint.iterdir()} - {"manifest.json"}
    assert checkpoints.files_of_rank(checkpoint, 1) == ["zero_pp_rank_1_mp_rank_00_optim_states.pt"]


def test_the_newest_whole_one_is_taken_and_the_others_are_named(tmp_path: Path):
    for step in (100, 200, 300, 400):
        save(tmp_path, step)
    (tmp_path / "step-00000200" / "mp_rank_00_model_states.pt").write_bytes(b"SHARD")  # same size, other contents
    (tmp_path / "step-00000300" / "zero_pp_rank_1_mp_rank_00_optim_states.pt").write_bytes(b"cut")
    (tmp_path / "step-00000400" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    said: list[str] = []
    found = checkpoints.newest_whole(tmp_path, said.append)
    assert found is not None and found[0].name == "step-00000100"
    assert [line.split(":")[0] for line in said] == [f"passing over step-00000{step}" for step in (400, 300, 200)]
    assert "zero_pp_rank_0" in said[0] and "missing" in said[0]
    assert "3 bytes, 6 were saved" in said[1]
    assert "SHA-256 differs" in said[2]


def test_one_that_the_disk_does_not_give_back_is_passed_over(tmp_path: Path):
    save(tmp_path, 100)
    manifest = save(tmp_path, 200) / "manifest.json"
    manifest.unlink()
    manifest.mkdir()
    said: list[str] = []
    found = checkpoints.newest_whole(tmp_path, said.append)
    assert found is not None and found[0].name == "step-00000100"
    assert said == [f"passing over step-00000200: [Errno 21] Is a directory: {str(manifest)!r}"]


def test_no_checkpoint_is_not_a_broken_checkpoint(tmp_path: Path):
    assert checkpoints.newest_whole(tmp_path / "none", print) is None
    save(tmp_path, 100)
    (tmp_path / "step-00000100" / "manifest.json").unlink()
    with pytest.raises(NoWholeCheckpointError, match=r"manifest.json is missing(.|\n)*not started again at step 0"):
        checkpoints.newest_whole(tmp_path, print)


def test_a_save_under_way_is_no_checkpoint(tmp_path: Path):
    (tmp_path / checkpoints.temporary_tag(100, "7-000")).mkdir()
    assert checkpoints.newest_whole(tmp_path, print) is None


def test_a_tag_is_never_used_twice(tmp_path: Path):
    broken = save(tmp_path, 100)
    (broken / "mp_rank_00_model_states.pt").unlink()
    again = save(tmp_path, 100)
    assert (broken.name, again.name) == ("step-00000100", "step-00000100-2")
    assert (tmp_path / "latest").read_text() == again.name
    found = checkpoints.newest_whole(tmp_path, print)
    assert found is not None and found[0] == again


@pytest.mark.parametrize("checks_before_loss", [0, 1])
def test_an_attempt_that_lost_the_run_changes_neither_checkpoints_nor_latest(tmp_path: Path, checks_before_loss: int):
    save(tmp_path, 100)
    owner = Owner.claim(tmp_path, AttemptKey("7", 0))
    checks = 0

    def check() -> None:
        nonlocal checks
        if checks == checks_before_loss:
            Owner.claim(tmp_path, AttemptKey("7", 1))
        checks += 1
        owner.check()

    with pytest.raises(OwnershipLostError, match="restart 1"):
        save(tmp_path, 200, check)
    assert (tmp_path / "latest").read_text() == "step-00000100"


def test_the_order_of_syncs_and_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A power cut may come between any two of these; the page cache of one machine hides it, so the order is tested."""
    events: list[str] = []
    real_fsync, real_rename, real_replace = os.fsync, Path.rename, Path.replace

    def fsync(descriptor: int) -> None:
        events.append("sync " + Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real_fsync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        events.append(f"rename to {Path(target).name}")
        return real_rename(self, target)

    def replace(self: Path, target: Path) -> Path:
        events.append(f"replace {Path(target).name}")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(Path, "replace", replace)
    save(tmp_path, 100)
    temporary = checkpoints.temporary_tag(100, "7-000")
    order = [
        "sync mp_rank_00_model_states.pt",
        "replace manifest.json",
        f"sync {temporary}",
        "rename to step-00000100",
        f"sync {tmp_path.name}",
        "replace latest",
    ]
    positions = [events.index(event) for event in order]
    assert positions == sorted(positions), events
    manifest_synced = next(i for i, event in enumerate(events) if event.startswith("sync .manifest.json"))
    assert manifest_synced < events.index("replace manifest.json")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"latest", "best"}


def tags(*steps: int) -> set[str]:
    return {f"step-{step:08d}" for step in steps}


def cut(checkpoint: Path) -> None:
    (checkpoint / "mp_rank_00_model_states.pt").write_bytes(b"cut")


def test_pruning_keeps_the_newest_and_clears_what_killed_saves_left(tmp_path: Path):
    for step in (100, 200, 300):
        save(tmp_path, step)
    (tmp_path / checkpoints.temporary_tag(400, "7-000")).mkdir()
    gone = checkpoints.prune(tmp_path, Retention(last=2))
    assert [path.name for path in gone] == ["step-00000100"]
    assert names(tmp_path) == tags(200, 300)


def test_pruning_keeps_every_kth_and_the_best(tmp_path: Path):
    saved = {step: save(tmp_path, step) for step in range(100, 800, 100)}
    checkpoints.mark_best(saved[200])
    checkpoints.prune(tmp_path, Retention(last=1, every=300))
    assert names(tmp_path) == tags(200, 300, 600, 700)
    checkpoints.mark_best(saved[600])
    checkpoints.prune(tmp_path, Retention(last=1))
    assert names(tmp_path) == tags(600, 700)


@pytest.mark.parametrize(("last", "every"), [(0, 0), (-1, 0), (1, -1)])
def test_a_retention_that_could_keep_nothing_is_refused(last: int, every: int):
    with pytest.raises(ValueError, match=r"last is|every is"):
        Retention(last, every)


def test_an_upload_that_waits_holds_its_checkpoint(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    saved = {step: save(folder, step) for step in (100, 200, 300)}
    files = {"model_states.pt": "checkpoints/step-00000100/mp_rank_00_model_states.pt"}
    absolute = {"model_states.pt": str(saved[200] / "mp_rank_00_model_states.pt")}
    waiting = [put_intent(tmp_path, Intent(name, "model", given)) for name, given in (("a", files), ("b", absolute))]
    assert checkpoints.prune(folder, Retention(last=1)) == []
    acknowledge(waiting[0], {"version": "v0"})
    assert checkpoints.prune(folder, Retention(last=1)) == [saved[100]]
    assert names(folder) == tags(200, 300)


def test_nothing_goes_while_the_uploads_cannot_be_read(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    for step in (100, 200):
        save(folder, step)
    (tmp_path / "intents").mkdir()
    (tmp_path / "intents" / "000-a.json").write_text("{")
    said: list[str] = []
    assert checkpoints.prune(folder, Retention(last=1), say=said.append) == []
    assert "000-a.json" in said[0]


def test_a_pin_holds_a_checkpoint_until_it_is_let_go_or_forgotten(tmp_path: Path):
    saved = {step: save(tmp_path, step) for step in (100, 200, 300)}
    with checkpoints.pinned(saved[100]):
        assert checkpoints.prune(tmp_path, Retention(last=1)) == [saved[200]]
    forgotten = tmp_path / ".pin-step-00000100.node.1"
    forgotten.touch()
    assert checkpoints.prune(tmp_path, Retention(last=1)) == []
    os.utime(forgotten, (0, 0))
    assert checkpoints.prune(tmp_path, Retention(last=1)) == [saved[100]]
    assert names(tmp_path) == tags(300), "the pin that nobody holds is gone too"


def test_broken_ones_do_not_count_among_the_last(tmp_path: Path):
    saved = {step: save(tmp_path, step) for step in (100, 200, 300)}
    cut(saved[300])
    checkpoints.prune(tmp_path, Retention(last=1))
    assert names(tmp_path) == tags(200)


def test_the_only_whole_one_stays_even_where_only_digests_tell(tmp_path: Path):
    saved = {step: save(tmp_path, step) for step in (100, 200, 300)}
    for step in (200, 300):
        (saved[step] / "mp_rank_00_model_states.pt").write_bytes(b"SHARD")  # same size, other contents
    said: list[str] = []
    assert checkpoints.prune(tmp_path, Retention(last=2), say=said.append) == []
    assert "none of those that would stay" in said[0]
    found = checkpoints.newest_whole(tmp_path, said.append)
    assert found is not None and found[0] == saved[100]


def test_what_was_just_saved_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for step in (100, 200):
        newest = save(tmp_path, step)
    monkeypatch.setattr("tracking.checkpoints.retention.verify", lambda checkpoint: pytest.fail(f"read {checkpoint}"))
    assert len(checkpoints.prune(tmp_path, Retention(last=1), trusted=newest)) == 1


def test_a_copy_for_other_ranks_stays_until_a_newer_checkpoint_is_there(tmp_path: Path):
    for step in (100, 200):
        copy = checkpoints.universal_copy(save(tmp_path, step))
        copy.mkdir()
        checkpoints.prune(tmp_path, Retention(last=2))
        assert names(tmp_path) == tags(*range(100, step + 1, 100)) | {copy.name}


@pytest.mark.parametrize("calls", range(1, 12))
def test_pruning_that_is_killed_leaves_nothing_half_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
):
    """Ended at its n-th change of the disk, whichever that is: all that is named as a checkpoint is whole."""
    for step in (100, 200, 300):
        save(tmp_path, step)
    left = calls

    def ends(real):
        def change(*given, **named):
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            return real(*given, **named)

        return change

    with monkeypatch.context() as patched:
        for place, name in ((Path, "rename"), (os, "unlink"), (os, "rmdir"), (os, "fsync")):
            patched.setattr(place, name, ends(getattr(place, name)))
        with contextlib.suppress(KeyboardInterrupt):
            checkpoints.prune(tmp_path, Retention(last=1))
    for checkpoint in checkpoints.candidates(tmp_path):
        checkpoints.verify(checkpoint)
    assert checkpoints.candidates(tmp_path)[0].name == "step-00000300"
    checkpoints.prune(tmp_path, Retention(last=1))
    assert names(tmp_path) == tags(300)


def test_wandb_run_id_stands_at_the_top_of_the_client_state():
    assert checkpoints.client_state("abc", {"step": 3}) == {"wandb_run_id": "abc", "gilbreth": {"step": 3}}


def test_the_manifest_is_readable_json(weird_tmp_path: Path):
    manifest = read_json(save(weird_tmp_path, 5) / "manifest.json")
    assert (manifest["step"], manifest["world_size"], manifest["run_id"]) == (5, 2, "abc")


def test_a_manifest_of_before_the_time_was_measured_is_read(tmp_path: Path):
    checkpoint = save(tmp_path, 5)
    manifest = read_json(checkpoint / "manifest.json")
    del manifest["save_seconds"]
    write_json(checkpoint / "manifest.json", manifest)
    assert checkpoints.verify(checkpoint).save_seconds is None
