# SPDX-License-Identifier: Apache-2.0
"""
Draw the sequences an engine of an evaluation does worst on, beside another engine's masks.

``python tools/worst_sequences.py RUN ROOT --before before --after tracker --out worst.jpg`` draws
three frames of each: truth, before, after. RUN is what ``drift_ros eval davis ROOT --out RUN``
wrote.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import sys

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from drift_ros.evaluation.datasets import BrokenSequence, find_sequences  # noqa: E402
from drift_ros.evaluation.results import mask_file  # noqa: E402
from drift_ros.media.labels import read_labels  # noqa: E402
from drift_ros.media.overlay import contact_sheet, draw_labels  # noqa: E402

PLACES = (0.33, 0.66, 0.95)
"""Which frames are drawn, as shares of the sequence's length."""


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('run', type=Path)
    parser.add_argument('root', type=Path)
    parser.add_argument('--before', default='before')
    parser.add_argument('--after', default='tracker')
    parser.add_argument('--count', type=int, default=3)
    parser.add_argument('--out', type=Path, default=Path('worst.jpg'))
    options = parser.parse_args()

    rows = json.loads((options.run / 'results.json').read_text())['sequences']
    scores = {(row['engine'], row['sequence']): row['j_and_f'] for row in rows}
    ranked = sorted(
        (value, name) for (engine, name), value in scores.items() if engine == options.after
    )
    worst = [name for _, name in ranked[: options.count]]
    if not worst:
        parser.error(f'{options.run} has no results of an engine {options.after}')
    cells: list[np.ndarray] = []
    captions: list[str] = []
    for sequence in find_sequences(options.root, names=worst):
        if isinstance(sequence, BrokenSequence):
            parser.error(f'{sequence.name} cannot be read')
        frames = list(sequence)
        for place in PLACES:
            frame = frames[round(place * (len(frames) - 1))]
            truth = frame.truth
            assert truth is not None
            cells.append(draw_labels(frame.image, truth))
            captions.append(f'{sequence.name} {frame.name}: truth')
            for engine in (options.before, options.after):
                labels = read_labels(mask_file(options.run, engine, sequence.name, frame.name))
                cells.append(draw_labels(frame.image, labels))
                captions.append(f'{engine}, J&F {100 * scores[engine, sequence.name]:.1f}')
    sheet = contact_sheet(cells, columns=3, width=320, captions=captions)
    cv2.imwrite(str(options.out), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])


if __name__ == '__main__':
    main()
