"""The verbs that cells of a study run."""

from __future__ import annotations

from typing import Any

from rldistill.verbs.distill.config import DistillConfig
from rldistill.verbs.distill.config import checked as check_distill
from rldistill.verbs.record.config import RecordConfig
from rldistill.verbs.record.config import check_config as check_record
from rldistill.verbs.study.entries import VerbOptions
from rldistill.verbs.train.config import TrainConfig
from rldistill.verbs.train.config import check_config as check_train


def _following(**settings: Any) -> DistillConfig:
    """A configuration of `distill --learner`; a study names the environment."""
    return DistillConfig.of(**{"learner": "the study's environment", **settings})


VERBS = {
    "distill": VerbOptions(DistillConfig, DistillConfig.of, check_distill, {"preset": str}),
    "follow": VerbOptions(DistillConfig, _following, check_distill, {"preset": str}),
    "train": VerbOptions(TrainConfig, TrainConfig.of, check_train),
    "record": VerbOptions(RecordConfig, RecordConfig, check_record),
}
