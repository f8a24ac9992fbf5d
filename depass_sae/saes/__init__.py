"""SAEs: loaded through sae-lens, read as directions, split into features. Importing this does not import sae-lens."""

from ..models.place import HOOKS as HOOK_NAMES
from ..models.place import Place
from .cross_layer import CrossLayer, CrossLayerFeatures
from .direction import (
    PATHS,
    Direction,
    activations,
    encoder_direction,
    encoder_directions,
    feature_index,
    live_activations,
    live_pre_activation,
    pre_activations,
    threshold_gap,
)
from .encode import (
    ActiveFeatures,
    Encoded,
    FeatureParts,
    Fit,
    encode,
    feature_parts,
    fit,
    reconstructs,
    written,
    written_by,
)
from .hook import hook_of
from .load import check_folder, load_saes
from .own import describe
from .stands import Stands, standing, stands_for

Hook = Place  # as it was called before
parse_hook = Place.parse

__all__ = [
    "HOOK_NAMES",
    "PATHS",
    "ActiveFeatures",
    "CrossLayer",
    "CrossLayerFeatures",
    "Direction",
    "Encoded",
    "FeatureParts",
    "Fit",
    "Hook",
    "Stands",
    "activations",
    "check_folder",
    "describe",
    "encode",
    "encoder_direction",
    "encoder_directions",
    "feature_index",
    "feature_parts",
    "fit",
    "hook_of",
    "live_activations",
    "live_pre_activation",
    "load_saes",
    "parse_hook",
    "pre_activations",
    "reconstructs",
    "standing",
    "stands_for",
    "threshold_gap",
    "written",
    "written_by",
]
