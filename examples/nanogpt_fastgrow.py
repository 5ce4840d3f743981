"""Train a small GPT on a text file: `python examples/nanogpt.py [file] [steps]`."""

import sys
import time
from pathlib import Path

import torch
from torch import nn

import fastgrow as fg

WIDTH, HEADS, LAYERS, CONTEXT, BATCH = 128, 4, 4, 64, 16


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
        batch, length, _ = x.shape
        qkv = self.qkv(self.norm_1(x)).view(batch, length, 3, HEADS, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = fg.ops.attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        return fg.ops.mlp(self.norm_2(x), self.up.weight, self.down.weight, residual=x)


class GPT(nn.Module):
    def __init__(self, vocabulary):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)

    def hidden(self, ids):
        positions = torch.arange(ids.shape[1], device=ids.device)
        return self.norm(self.blocks(self.tokens(ids) + self.positions(positions)))

    def forward(self, ids):
        return self.head(self.hidden(ids))

    def loss(self, ids, targets):
        return fg.ops.linear_cross_entropy(self.hidden(ids), self.head.weight, targets)


def train(text, steps, device="cpu", seed=0):
    """Train a model whose tokens are the bytes of `text`; return the model and the losses."""
    torch.manual_seed(seed)
    data = torch.tensor(list(text.encode()), device=device)
    model = GPT(256).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        starts = torch.randint(len(data) - CONTEXT, (BATCH,)).tolist()
        rows = torch.stack([data[start : start + CONTEXT + 1] for start in starts])
        loss = model.loss(rows[:, :-1], rows[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def main():
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__)
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = time.perf_counter()
    _, losses = train(file.read_text(encoding="utf-8"), steps, device)
    seconds = time.perf_counter() - start
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {steps} steps, {seconds:.1f} s on {device}")


if __name__ == "__main__":
    main()
