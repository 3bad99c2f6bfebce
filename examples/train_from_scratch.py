"""Train a small model on one sentence, with nothing but the layers: no recipe, no files.

python examples/train_from_scratch.py [STEPS]
"""

import sys

import torch

import selfspec as ss

TEXT = "the quick brown fox jumps over the lazy dog and runs away "
LENGTH, ROWS = 32, 32


def main(steps: str = "300") -> None:
    torch.manual_seed(0)
    tokenizer = ss.CharTokenizer()
    shape = ss.TrunkConfig(vocab_size=27, length=LENGTH, width=64, blocks=3, heads=2)
    model = ss.SSMD(ss.Trunk(shape), ss.CausalHead(ss.HeadConfig(heads=2), width=64))
    model.tokenizer = tokenizer
    stream = torch.from_numpy(tokenizer.encode(TEXT * 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98))

    for step in range(int(steps)):
        start = torch.randint(len(TEXT), (ROWS, 1))
        tokens = stream[start + torch.arange(LENGTH)]
        order = torch.rand(ROWS, LENGTH).argsort(1)  # σ, uniform
        revealed = torch.randint(LENGTH, (ROWS,))  # i, uniform
        loss = ss.ssmd_loss(model, tokens, order, revealed)
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == int(steps) - 1:
            assert loss.target is not None
            print(f"step {step}: draft {loss.draft.item():.3f}, target {loss.target.item():.3f}")

    samples = ss.generate(model.eval(), 3, window=ss.CosineWindow(0.1), rounds=4)
    print(*samples, sep="\n")
    print(f"{samples.nfe.mean():.1f} evaluations for {LENGTH} characters")


if __name__ == "__main__":
    main(*sys.argv[1:])
