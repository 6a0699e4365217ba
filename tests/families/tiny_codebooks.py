"""Tiny checkpoints of families that make a picture's patches tokens of the vocabulary, which the text model embeds."""

import transformers as tf
from tiny_parts import SIZE, build, template, text, tokenizer

CODES = 32


def _encoder(**more):
    return {"base_channels": 32, "num_res_blocks": 1, **more}


def chameleon():
    """Its logits of picture tokens are the least number there is: it never says one."""
    letters = "ABCDEFGHIJ"
    codes = ["IMGIMG" + "".join(letters[int(digit)] for digit in str(code)) + "Z" for code in range(CODES)]
    named = {"image_token": "<image>", "boi_token": "<racm3:break>", "eoi_token": "<eoss>"}
    tokens = tokenizer(["<reserved08706>", *codes], **named)
    tokens.sep_token = "<reserved08706>"
    processor = tf.ChameleonProcessor(
        tf.ChameleonImageProcessorPil(size={"shortest_edge": 28}, crop_size=SIZE), tokens, image_seq_length=49
    )
    processor.chat_template = template("", "", "", "<image>", bos="<s>", end_of_answer="</s>")
    encoder = _encoder(
        embed_dim=8, num_embeddings=CODES, latent_channels=32, resolution=28, channel_multiplier=[1, 1, 1]
    )
    vocabulary = {name: number for name, number in tokens.get_vocab().items() if name in codes or name == "<image>"}
    config = text("ChameleonConfig", vq_config=encoder, vocabulary_map=vocabulary)
    return build(tf.ChameleonForConditionalGeneration, config, embed=0.8), processor


def emu3():
    codes = [f"<|visual token {code:06d}|>" for code in range(CODES)]
    named = {"image_token": "<image>", "boi_token": "<|image start|>", "eoi_token": "<|image end|>",
             "image_wrapper_token": "<|image token|>", "eof_token": "<|extra_201|>"}  # fmt: skip
    tokens = tokenizer(["<|extra_200|>", *codes], **named)
    processor = tf.Emu3Processor(
        tf.Emu3ImageProcessor(min_pixels=28 * 28, max_pixels=64 * 64, spatial_factor=8), tokens,
        chat_template=template("USER: ", ". ", "ASSISTANT:", "<image>", end_of_answer="</s>"),
    )  # fmt: skip
    encoder = _encoder(codebook_size=CODES, channel_multiplier=[1, 1, 1, 1], attn_resolutions=[3], hidden_size=32)
    config = tf.Emu3Config(
        vq_config=encoder, text_config=text("Emu3TextConfig").to_dict(),
        vocabulary_map={name: tokens.get_vocab()[name] for name in (*codes, "<image>", "<|extra_200|>")},
    )  # fmt: skip
    return build(tf.Emu3ForConditionalGeneration, config), processor
