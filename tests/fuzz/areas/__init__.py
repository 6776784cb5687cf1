"""The areas by name."""

from __future__ import annotations

from fuzz.area import Area
from fuzz.areas.audio import Audio
from fuzz.areas.best import Best
from fuzz.areas.cluster import ClusterFile
from fuzz.areas.config import Configuration
from fuzz.areas.corpora import Corpora
from fuzz.areas.notes import Notes
from fuzz.areas.replies import Replies
from fuzz.areas.runs import Checkpoints, RunFiles
from fuzz.areas.shardfolders import IndexFile, ManifestFile
from fuzz.areas.tables import Tables
from fuzz.areas.tars import Tars

_ALL = (
    *(ManifestFile, IndexFile, Tars, Notes, Checkpoints, RunFiles, Configuration),
    *(Tables, Corpora, Audio, Best, Replies, ClusterFile),
)
AREAS: dict[str, type[Area]] = {area.name: area for area in _ALL}
