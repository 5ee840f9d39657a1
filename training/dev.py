# SPDX-License-Identifier: Apache-2.0
"""Scores of an exported model on development sequences, by the tracker and metric of drift_ros."""
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from drift_ros import Tracker, TrackerConfig
from drift_ros.evaluation.metric import SequenceScorer, summarize


def dev_score(davis: Path, model: Path, frames: int = 16, config: TrackerConfig | None = None,
              sequences: Iterable[str] | None = None) -> tuple[float, dict[str, float]]:
    """
    Return mean J&F and J&F per sequence on the first frames of every sequence of a folder.

    Parameters
    ----------
    davis : folder with JPEGImages/<sequence>/*.jpg and Annotations/<sequence>/*.png
    model : exported diffusers folder
    frames : frames per sequence, 0 for all
    config : tracker options; default: the tracker's, without refinement
    sequences : names; default: all of the folder

    """
    config = config or TrackerConfig(refinement='none')
    tracker = Tracker(model, config)
    scores = {}
    names = sorted(p.name for p in (davis / 'JPEGImages').iterdir())
    for name in sequences or names:
        images = sorted((davis / 'JPEGImages' / name).glob('*.jpg'))[:frames or None]
        scorer = SequenceScorer()
        tracker.reset()
        for i, path in enumerate(images):
            image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
            truth = np.array(Image.open(davis / 'Annotations' / name / f'{path.stem}.png'))
            if i == 0:
                ids = tracker.seed(image, np.where(truth == 255, 0, truth))
                true_ids = [int(v) for v in np.unique(truth) if v not in (0, 255)]
                scorer.add(truth, None)
                continue
            labels = tracker.step(image).labels
            prediction = np.zeros_like(truth)
            for true_id, object_id in zip(true_ids, ids, strict=True):
                prediction[labels == object_id] = true_id
            scorer.add(truth, prediction)
        scores[name] = scorer.finish()
    return (summarize(scores.values()).j_and_f,
            {name: summarize([score]).j_and_f for name, score in scores.items()})
