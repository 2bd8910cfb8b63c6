"""Experiment trackers, one file each, found by discovery: where the figures of a run go beside `metrics.jsonl`.

The file's name is the tracker's name in `train.report_to`. It defines

    PACKAGE = "wandb"                              # what must be installed
    def start(run: TrackedRun) -> Tracker: ...     # opens a run of the tracker, or goes on with the one of `run.id`

Other packages add trackers by entry points of the group `lamina.trackers` (`lamina/plugins.py`). A tracker that raises
is left out from then on, with a note; it never ends a run.
"""
