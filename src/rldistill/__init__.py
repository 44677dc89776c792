"""Policy distillation for reinforcement learning.

Each verb of the command is a function here: `train`, `record`, `inspect`, `distill`, `evaluate`, `report`, `export`,
`watch`, `push`; those of `rldistill dataset` are in `rldistill.datasets`.
"""

from __future__ import annotations

__version__ = "0.1.0"

_PLACES = {
    "DistillConfig": "distillation",
    "EvaluateConfig": "evaluation",
    "ExportConfig": "exporting",
    "ForeignTeacher": "teachers",
    "InspectConfig": "inspection",
    "PushConfig": "pushing",
    "RecordConfig": "recording",
    "ReportConfig": "reporting",
    "SavedPolicy": "policies",
    "Task": "types",
    "TeacherOptions": "teachers",
    "TrainConfig": "training",
    "UserError": "types",
    "WatchConfig": "watching",
    "distill": "distillation",
    "evaluate": "evaluation",
    "export": "exporting",
    "inspect": "inspection",
    "load_policy": "teachers",
    "load_teacher": "teachers",
    "make_task": "envs",
    "open_dataset": "datasets",
    "push": "pushing",
    "record": "recording",
    "report": "reporting",
    "save_policy": "policies",
    "train": "training",
    "watch": "watching",
}
__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> object:
    # Loaded when first asked for: `rldistill --help` and `import rldistill` need not wait for torch.
    if name not in _PLACES:
        raise AttributeError(f"module 'rldistill' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"rldistill.{_PLACES[name]}"), name)
