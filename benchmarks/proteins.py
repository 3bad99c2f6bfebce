"""Train the models of `proteins` one after another, as books27.py does those of `books27`.

    selfspec prepare proteins --source uniprot.fasta.gz --relatives 0.05 --out DATA
    python benchmarks/proteins.py --data DATA --runs RUNS trunk=3000 head=2000 windows=800@head
    python benchmarks/proteins.py --data DATA --runs RUNS judge=600

The trunk stays frozen in `head` and `windows`; `joint` trains both. The quality curve of a model:

    python benchmarks/quality.py --model RUNS/windows/model --judge RUNS/judge/model --data DATA \\
        --orders uniform --n 2048 --batch-size 512 --heldout 256 --relatives 256 --optimal 64 \\
        --most 70 --out benchmarks/results/proteins-quality.json

The judge has read the same training proteins as the model. So a sample scores well if it is like
them, by whatever share of it is copied: read `judge` beside `novelty`. pLDDT, which would not know
them, needs the weights of ESMFold (`selfspec.metrics.ESMFold`) and is not measured here.
"""

from books27 import main

from selfspec.recipes import proteins

if __name__ == "__main__":
    main(proteins, __doc__)
