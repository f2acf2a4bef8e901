"""The journal of a run: every logged row once, in order, in append-only files that any host can read.

```
RUN/
  journal-000.jsonl   one file a segment (an attempt of the job), written by one process, never by another
  journal-001.jsonl
```
Each line is one JSON object with a `kind`:

- `segment` (the first line): `segment`, `first_row`, `run_id`, `time`, `host`, `job`, `resumed_step`, `tags`,
  `group`, `job_type`, `notes`
- `config`: `config`, merged over the earlier ones
- `metadata`: `metadata`, what was known of the process
- `row`: `n` (the row's number in the whole run), `step`, `time` (seconds since the epoch), `data`
- `end`: `state` (`finished`, `preempted` or `crashed`), `exit_code`, `time`

In `data` the strings `"NaN"`, `"Infinity"` and `"-Infinity"` stand for these numbers, which JSON lacks. A reader
ignores and reports a line that is not whole, ignores a kind that it does not know, and ignores a row whose number a
later segment has claimed by its `first_row`: the later segment wins.
"""

from __future__ import annotations

from tracking.journal.lines import Config, End, Event, Metadata, Row, Segment
from tracking.journal.reader import Follower, Journal, read_journal
from tracking.journal.writer import JournalWriter

__all__ = [
    "Config",
    "End",
    "Event",
    "Follower",
    "Journal",
    "JournalWriter",
    "Metadata",
    "Row",
    "Segment",
    "read_journal",
]
