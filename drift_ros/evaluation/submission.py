# SPDX-License-Identifier: Apache-2.0
"""Masks of a run, packed as the servers of benchmarks take them."""

from __future__ import annotations

from collections.abc import Sequence
import os
from pathlib import Path
import zipfile

import numpy as np

from drift_ros.evaluation.datasets import DatasetError, DavisSequence, frame_names
from drift_ros.evaluation.layouts import Split
from drift_ros.evaluation.results import check_masks, mask_file
from drift_ros.media.labels import encode_labels
from drift_ros.media.video import read_image


def write_submission(
    folder: Path, engine: str, split: Split, sequences: Sequence[DavisSequence]
) -> Path:
    """
    Pack an engine's masks of a benchmark's frames: indexed PNG files in one zip file.

    A frame before the first annotation of its sequence is in it as background.

    Parameters
    ----------
    folder : Path
        Of results.
    engine : str
        Its label in the run.
    split : Split
    sequences : sequence of DavisSequence
        All of the split.

    Returns
    -------
    Path
        ``folder/submission/ENGINE.zip``; it appears once it is whole.

    Raises
    ------
    DatasetError
        Masks are missing, or not those of the run.

    """
    path = folder / 'submission' / f'{engine}.zip'
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
    try:
        with zipfile.ZipFile(partial, 'w', zipfile.ZIP_STORED) as packed:  # PNG is compressed
            for sequence in sequences:
                check_masks(folder, engine, sequence.name)
                tracked = {image.stem for image in sequence.images}
                begun, empty = False, _background(sequence)
                for name in frame_names(split.root, sequence.name):
                    inside = f'{split.packed}/{sequence.name}/{name}.png'.lstrip('/')
                    if name in tracked:
                        begun = True
                        packed.write(mask_file(folder, engine, sequence.name, name), inside)
                    elif begun:
                        raise DatasetError(
                            f'{sequence.name} was tracked without its frame {name}: a submission '
                            'needs whole sequences (no --max-frames)'
                        )
                    else:
                        packed.writestr(inside, empty)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _background(sequence: DavisSequence) -> bytes:
    height, width, _ = read_image(sequence.images[0]).shape
    return encode_labels(np.zeros((height, width), np.uint8))
