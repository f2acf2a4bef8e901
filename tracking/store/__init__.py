"""The model store: a folder on a shared disk that finds models by name, without a network.

```
MODELS/
  store.json                    what makes the folder a store
  objects/ab/abcd…              contents, by their SHA-256 digest; the same weights are there once
  names/act-lift/
    log/000000.json …           what happened to the name, one immutable record each: versions, alias moves, uses, pins
    files/5f3a…/                the files of one version, links to the contents: what is loaded
    cards/5f3a….md              its model card
  intents/                      uploads that wait (tracking.intents)
  incoming/                     what a publication is writing, or a killed one left
```
Every record is created by an exclusive link under the next number, after all before it were read. So two hosts never
make the same version, and whatever is decided (a version, an alias, a deletion) is decided in one order, without locks.
"""

from __future__ import annotations

from tracking.store.publish import Published, publish
from tracking.store.resolve import Resolved, resolve
from tracking.store.root import Store, open_store

__all__ = ["Published", "Resolved", "Store", "open_store", "publish", "resolve"]
