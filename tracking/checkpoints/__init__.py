"""A DeepSpeed checkpoint is whole or absent.

    checkpoints/
      latest                    the tag of the newest whole checkpoint (DeepSpeed's own convention)
      best                      the tag of the best one, where something has said which
      step-00000100/            one checkpoint
        manifest.json           what must be here: files, sizes, digests, step, world size, run id
        *_states.pt             DeepSpeed's shards
      universal-step-00000100/  the same for another number of ranks, with a manifest of its own
      .tmp-step-00000200-…/     a save or a deletion under way, or what a killed one left; never read
      .pin-step-00000100-…      somebody reads this one now: it is not deleted

A save goes: shards under the temporary tag → every rank syncs and digests its own → manifest → rename → `latest`.
"""

from tracking.checkpoints.choice import (
    NoWholeCheckpointError,
    candidates,
    has_all_files,
    newest_step,
    newest_whole,
    verify,
)
from tracking.checkpoints.manifest import BEST, LATEST, MANIFEST, FileRecord, Manifest
from tracking.checkpoints.retention import Retention, clear_leftovers, mark_best, pinned, prune
from tracking.checkpoints.saving import (
    TEMPORARY,
    client_state,
    commit,
    files_of_rank,
    publish_folder,
    record_files,
    step_tag,
    temporary_tag,
    universal_copy,
)

__all__ = [
    "BEST",
    "LATEST",
    "MANIFEST",
    "TEMPORARY",
    "FileRecord",
    "Manifest",
    "NoWholeCheckpointError",
    "Retention",
    "candidates",
    "clear_leftovers",
    "client_state",
    "commit",
    "files_of_rank",
    "has_all_files",
    "mark_best",
    "newest_step",
    "newest_whole",
    "pinned",
    "prune",
    "publish_folder",
    "record_files",
    "step_tag",
    "temporary_tag",
    "universal_copy",
    "verify",
]
