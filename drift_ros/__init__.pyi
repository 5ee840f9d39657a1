# SPDX-License-Identifier: Apache-2.0
from .api import Tracker as Tracker
from .engine.config import TrackerConfig as TrackerConfig
from .engine.errors import CheckpointError as CheckpointError
from .engine.errors import DriftRosError as DriftRosError
from .engine.errors import FrameError as FrameError
from .engine.errors import NotFoundError as NotFoundError
from .engine.errors import OptimizeError as OptimizeError
from .engine.errors import PromptError as PromptError
from .engine.errors import SeedError as SeedError
from .engine.errors import UnknownObjectError as UnknownObjectError
from .engine.estimates import ObjectEstimate as ObjectEstimate
from .engine.estimates import TrackResult as TrackResult
from .engine.seeds import SeedRequest as SeedRequest
from .engine.table import ObjectInfo as ObjectInfo
from .engine.table import ObjectState as ObjectState
from .prompts.segmenter import Prompt as Prompt
from .prompts.segmenter import Segmentation as Segmentation
from .ros.client import TrackerClient as TrackerClient

__version__: str
