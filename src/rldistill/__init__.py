"""Policy distillation for reinforcement learning.

Each verb of the command is a function here: `train`, `record`, `inspect`, `distill`, `evaluate`, `report`, `export`,
`watch`, `push`; those of `rldistill dataset` are in `rldistill.datasets`.
"""

from __future__ import annotations

__version__ = "0.1.0"

_PLACES = {
    "DistillConfig": "verbs.distill",
    "EvaluateConfig": "verbs.evaluate",
    "ExportConfig": "verbs.export",
    "ForeignTeacher": "teachers",
    "InspectConfig": "verbs.inspect",
    "PushConfig": "verbs.push",
    "RecordConfig": "verbs.record",
    "ReportConfig": "verbs.report",
    "SavedPolicy": "policies",
    "Task": "types",
    "TeacherOptions": "teachers",
    "TrainConfig": "verbs.train",
    "UserError": "types",
    "WatchConfig": "verbs.watch",
    "distill": "verbs.distill",
    "evaluate": "verbs.evaluate",
    "export": "verbs.export",
    "inspect": "verbs.inspect",
    "load_policy": "teachers",
    "load_teacher": "teachers",
    "make_task": "play.envs",
    "open_dataset": "datasets",
    "push": "verbs.push",
    "record": "verbs.record",
    "report": "verbs.report",
    "save_policy": "policies",
    "train": "verbs.train",
    "watch": "verbs.watch",
}
__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> object:
    # Loaded when first asked for: `rldistill --help` and `import rldistill` need not wait for torch.
    if name not in _PLACES:
        raise AttributeError(f"module 'rldistill' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"rldistill.{_PLACES[name]}"), name)
