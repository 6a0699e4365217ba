"""config.json of a checkpoint of transformers, for a model that continues text and images and nothing else."""

from pathlib import Path

import transformers
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from data_engine.models import internvl_chat
from data_engine.models.auto.releases import is_newer, refuse_faulty, warn_of_newer
from data_engine.models.checkpoints.json_files import READING_PART, ModelError, read_json, reading_part, reason
from data_engine.models.internvl_chat.config import read_config

# For all that transformers reads of a folder.
LOCAL = {"local_files_only": True, "trust_remote_code": False}
# transformers' name of it; Unlimited-OCR has such layers.
OWN_WINDOW = "reference_sliding_attention"


def load_config(folder: Path) -> PreTrainedConfig:
    """config.json as transformers reads it. Raises ModelError where it is not of a model that continues text and
    images: a text-only one, an encoder-decoder, one that this transformers does not know or computes wrongly, or that
    needs remote code.
    """
    where = folder / "config.json"
    whole = read_json(where)
    if internvl_chat.is_own(whole):
        return read_config(folder)
    raw = reading_part(whole)
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ModelError(_unknown(where, kind, "auto_map" in whole))
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        what, mend = "no image-text-to-text", ""
        if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            what, mend = "a text-only", ": pass a model that takes images and text"
        raise ModelError(
            f"{where} has model_type {kind!r}, which is {what} model to transformers {transformers.__version__}{mend}"
        )
    refuse_faulty(where, raw)
    written_by = str(whole.get("transformers_version", ""))
    warn_of_newer(where, written_by)
    try:
        config = AutoConfig.from_pretrained(folder, **LOCAL)
    # Configurations check themselves with assertions, KeyErrors and exceptions of huggingface_hub.
    except Exception as error:
        advice = f"; {written_by} wrote it: pip install 'transformers>={written_by}'" if is_newer(written_by) else ""
        raise ModelError(
            f"{where} is refused by transformers {transformers.__version__}: {reason(error)}{advice}"
        ) from error
    config = getattr(config, READING_PART, config)
    # Some trainings ask for FlashAttention there; what attends is chosen here.
    config._attn_implementation = None
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{where} is of an encoder-decoder ({kind}): models that continue their prompt are supported")
    if OWN_WINDOW in (getattr(config.get_text_config(decoder=True), "layer_types", None) or ()):
        raise ModelError(
            f"{where} has layers of the kind {OWN_WINDOW}, which see all of a prompt, and of an answer a window that "
            "they have while it is decoded alone: one forward pass gives other log-probs, so no path gives numbers to "
            "rely on"
        )
    return config


def _unknown(where: Path, kind: object, remote: bool) -> str:
    if remote:
        return (
            f"{where} has model_type {kind!r}, whose code comes with the checkpoint (auto_map): remote code is never "
            f"run; pass a checkpoint that transformers {transformers.__version__} reads by itself"
        )
    return (
        f"{where} has model_type {kind!r}, which transformers {transformers.__version__} does not know; if a newer one "
        "does: pip install -U transformers"
    )
