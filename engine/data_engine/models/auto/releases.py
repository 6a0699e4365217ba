"""Releases of transformers that compute a model otherwise than later ones do, or not at all."""

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import transformers
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from data_engine.models.checkpoints.json_files import ModelError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fault:
    """What some releases do with some models of a type."""

    in_releases: str
    """as pip writes them"""
    does: str
    """what is said of the release"""
    install: str
    """releases without it, as pip writes them"""
    concerns: Callable[[Mapping], bool] = lambda config: True
    """whether a config.json of the type is meant"""


def _has_softcap(config: Mapping) -> bool:
    text = config.get("text_config")
    # Gemma 2 has one where its configuration does not say.
    return isinstance(text, Mapping) and bool(text.get("final_logit_softcapping", text.get("model_type") == "gemma2"))


def _names_its_layers(config: Mapping) -> bool:
    """Of the tower, by the name that 5.23 gave them; releases before take those of the published model then."""
    return config.get("vision_feature_layer", _VIPLLAVA_LAYERS) != _VIPLLAVA_LAYERS


_VIPLLAVA_LAYERS = [-2, -5, -8, -11, 6]
# By model_type. What `make test-oldest` and `make test-newest` find of such faults belongs here.
FAULTS = {
    "cohere_compass": Fault("<5.21", "turns heads by other positions", ">=5.21"),
    "hunyuan_vl": Fault("<5.20", "cannot load it", ">=5.20"),
    "llama4": Fault("==5.24.0", "ends its forward with an AttributeError", "!=5.24.0"),
    "minicpmv4_6": Fault("<5.19", "cannot run pictures that are higher than wide", ">=5.19"),
    "minimax_m3_vl": Fault("<5.23", "has the pictures of a prompt see each other in its tower", ">=5.23"),
    "muse_glimmer": Fault("<5.24", "takes height for width in the positions of its tower", ">=5.24"),
    "paddleocr_vl": Fault("<5.23", "interpolates the positions of its tower otherwise", ">=5.23"),
    "paligemma": Fault("<5.23", "leaves out the softcap of its logits", ">=5.23", _has_softcap),
    "step3p7": Fault("<5.23", "takes height for width in the positions of its tower", ">=5.23"),
    "vipllava": Fault("<5.23", "does not read which layers of the tower are meant", ">=5.23", _names_its_layers),
}


def refuse_faulty(where: Path, config: Mapping, release: str = transformers.__version__) -> None:
    """Raise ModelError, which says what mends it, where this release of transformers has a fault for a config.json."""
    found = FAULTS.get(config.get("model_type"))
    if found is None or not found.concerns(config):
        return
    # Builds on the way to the release that mends it, such as 5.23.0.dev0, may have that by now, and are taken.
    if SpecifierSet(found.in_releases).contains(release, prereleases=True):
        raise ModelError(
            f"{where} has model_type {config['model_type']!r}, and transformers {release} {found.does}: pip install "
            f"'transformers{found.install}'"
        )


def is_newer(written_by: str, release: str = transformers.__version__) -> bool:
    """Whether a config.json was written by a release after this one."""
    try:
        return Version(written_by).release > Version(release).release
    except InvalidVersion:
        return False


@functools.cache
def warn_of_newer(where: Path, written_by: str, release: str = transformers.__version__) -> None:
    """Log, once for each process, that a release after this one wrote a config.json.

    This release ignores the fields that it does not know. The model is not refused for them: releases also write fields
    that they do not know themselves, and that change nothing.
    """
    if is_newer(written_by, release):
        log.warning(
            "%s was written by transformers %s; this one, %s, ignores what it does not know in it. To have all of it "
            "read: pip install 'transformers>=%s'",
            where, written_by, release, written_by,
        )  # fmt: skip
