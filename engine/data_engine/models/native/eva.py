"""The vision side of OmniLMM in plain PyTorch: the EVA-02 tower and the resampler, by the published weights' names.

The tower is timm's `eva02_enormous_patch14_clip_224` as OmniLMM uses it: without head and last block, with the final
norm. timm itself is not used, since it needs torchvision. The resampler turns the tower's grid of features into
`num_query` tokens of the decoder.

Shapes: B images, P patches, W tower width, N queries, D decoder width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6


@dataclass(frozen=True)
class EvaConfig:
    """Sizes of a tower. Published: width 1792, 63 blocks of 64, 16 heads, mlp 15360, patch 14, grid 16."""

    width: int
    num_blocks: int
    """blocks in the checkpoint, one less than the tower was trained with"""
    num_heads: int
    mlp_width: int
    patch_size: int
    grid: int
    """side of the stored position table, in patches"""


def heads_of(width: int) -> int:
    """The number of heads of a tower of this width, which neither config.json nor the shape of a weight contains.

    The largest power of two up to 16 for which the width of a head is a multiple of 4: 16 heads of 112 for 1792, the
    only published width.
    """
    return next((heads for heads in (16, 8, 4, 2) if width % (4 * heads) == 0), 1)


class _SelfAttention(nn.Module):
    """Self-attention with one fused weight; queries and values have a bias, keys have none."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.empty(width))
        self.v_bias = nn.Parameter(torch.empty(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x_BPW: Tensor) -> Tensor:
        query, key, value = self.qkv(x_BPW).chunk(3, dim=-1)
        return self.proj(_attend(query + self.q_bias, key, value + self.v_bias, self.num_heads))


def _attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """Multi-head attention without a mask: query [B, Q, D], key and value [B, P, D] -> [B, Q, D]."""
    query, key, value = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    """A transformer block with norms after attention and MLP, inside the residual branch."""

    def __init__(self, config: EvaConfig) -> None:
        super().__init__()
        self.attn = _SelfAttention(config.width, config.num_heads)
        self.norm1 = nn.LayerNorm(config.width, eps=EPS)
        self.mlp = _Mlp(config.width, config.mlp_width)
        self.norm2 = nn.LayerNorm(config.width, eps=EPS)

    def forward(self, x_BPW: Tensor) -> Tensor:
        x_BPW = x_BPW + self.norm1(self.attn(x_BPW))
        return x_BPW + self.norm2(self.mlp(x_BPW))


class _PatchEmbed(nn.Module):
    def __init__(self, config: EvaConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        return self.proj(pixels_BCHW)


class Eva(nn.Module):
    """Pixels [B, 3, H, W] -> features [B, 1 + P, W], that of the class token first."""

    def __init__(self, config: EvaConfig) -> None:
        super().__init__()
        self.patch_embed = _PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.grid**2, config.width))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.width, eps=EPS)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        patches_BWhw = self.patch_embed(pixels_BCHW)
        table = resized_table(self.pos_embed[0, 1:], patches_BWhw.shape[-2:], antialias=True)
        patches = patches_BWhw.flatten(2).transpose(1, 2) + table
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(patches), -1, -1)
        x = torch.cat([first, patches], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def resized_table(table_PW: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
    """A square table of position embeddings resized to [h * w, W]: bicubic, in fp32 whatever its dtype."""
    side = round(len(table_PW) ** 0.5)
    grid = table_PW.float().unflatten(0, (side, side)).permute(2, 0, 1)[None]
    grid = F.interpolate(grid, size=tuple(size), mode="bicubic", align_corners=False, antialias=antialias)
    return grid[0].flatten(1).T.to(table_PW.dtype)


class _CrossAttention(nn.Module):
    """torch.nn.MultiheadAttention, with the same names of weights."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query, key, value = map(F.linear, (query, key, value), weights, biases)
        return self.out_proj(_attend(query, key, value, self.num_heads))


class Resampler(nn.Module):
    """Patch features [B, P, W] of an h x w grid -> [B, N, D], by one cross-attention of learned queries."""

    def __init__(self, num_query: int, width: int, vision_width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(num_query, width))
        self.pos_embed = nn.Parameter(torch.empty(num_query, width))
        self.kv_proj = nn.Identity() if vision_width == width else nn.Linear(vision_width, width, bias=False)
        self.attn = _CrossAttention(width, width // 128)
        self.ln_q = nn.LayerNorm(width, eps=EPS)
        self.ln_kv = nn.LayerNorm(width, eps=EPS)
        self.ln_post = nn.LayerNorm(width, eps=EPS)
        self.proj = nn.Parameter(torch.empty(width, width))

    def forward(self, features_BPW: Tensor, size: tuple[int, int]) -> Tensor:
        value = self.ln_kv(self.kv_proj(features_BPW))
        key = value + resized_table(self.pos_embed, size, antialias=False)
        query = (self.ln_q(self.query) + self.pos_embed).expand(len(value), -1, -1)
        return self.ln_post(self.attn(query, key, value)) @ self.proj
