"""Tiny checkpoints of families whose Q-Former makes a few tokens of a picture, in front of all others."""

import transformers as tf
from tiny_parts import BOS, EOS, LAYERS, PAD, SIZE, TOWER, VOCABULARY, WIDTH, build, ids, template, text, tokenizer

QUERIES = 4
Q_FORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
            "cross_attention_frequency": 1, "vocab_size": VOCABULARY, "pad_token_id": PAD}  # fmt: skip


def _blip(kind, text_config, chat_template, *tokenizers):
    """`kind`: the prefix of the classes' names; `tokenizers`: further ones of its processor."""
    tokens = tokenizer()
    # Its processor makes the image token, and writes it in front of the text.
    processor = getattr(tf, f"{kind}Processor")(
        tf.BlipImageProcessorPil(size=SIZE), tokens, *tokenizers, num_query_tokens=QUERIES
    )
    processor.chat_template = chat_template
    config = getattr(tf, f"{kind}Config")(
        vision_config=TOWER | {"image_size": 28, "patch_size": 14}, qformer_config=Q_FORMER, text_config=text_config,
        num_query_tokens=QUERIES, image_token_index=ids(tokens, "<image>")[0],
    )  # fmt: skip
    model = build(getattr(tf, f"{kind}ForConditionalGeneration"), config)
    # Zero in a new model: all would see the same.
    model.query_tokens.data.normal_(std=0.5)
    return model, processor


def instructblip():
    """Its Q-Former reads the question as well."""
    return _blip("InstructBlip", text(), template("", "\n", "", "", end_of_answer="</s>"), tokenizer())


def blip_2():
    opt = tf.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, word_embed_proj_dim=WIDTH, ffn_dim=96, num_hidden_layers=LAYERS,
        num_attention_heads=4, max_position_embeddings=1024, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
    )  # fmt: skip
    return _blip("Blip2", opt, template("Question: ", " ", "Answer:", "", end_of_answer="</s>"))
