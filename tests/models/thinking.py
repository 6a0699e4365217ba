"""A chat template in the manner of Qwen3.5's and Qwen3-VL-Thinking's, whose prompt opens a thought."""

ASSISTANT = (
    "{% macro text(m) %}{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}IMAGE{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}{% endmacro %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}"
    "{% set said = text(m) %}{% set final = said.split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.last %}<think>\n{{ said.split('</think>')[0].split('<think>')[-1].strip('\n') "
    "if '</think>' in said else '' }}\n</think>\n\n{% endif %}{{ final }}"
    "{% else %}{{ text(m) }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% else %}<think>\n"
    "{% endif %}{% endif %}"
)


def opening(image: str, opens: str = "<think>", ends: str = "</think>") -> str:
    """It writes what stands for an image as `image`; `enable_thinking` false puts an empty thought into the prompt."""
    return ASSISTANT.replace("IMAGE", image).replace("<think>", opens).replace("</think>", ends)
